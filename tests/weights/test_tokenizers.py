"""CLIP's and T5's tokenizers against the published ones, on a thousand strings."""

import json
import struct
import zlib

import numpy as np
import pytest
from fabricate import write_tokenizer

from jaxvid.core.errors import UserError
from jaxvid.weights.tokenizers import ClipTokenizer, T5Tokenizer, read_sentence_pieces

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz",
    "the red circle moves left and right ",
    "ABCdef 0123456789 ",
    "'s't're've'm'll'd ",
    '!"#$%&()*+,-./:;<=>?@[]^_`{|}~ ',
    "äöüßéèñçåøœ ŷ",
    "привет мир ",
    "你好世界的人 ",
    "こんにちは カタカナ ",
    "안녕하세요 ",
    "مرحبا بالعالم ",
    "שלום עולם ",
    "नमस्ते दुनिया ",
    "😀🎬👩‍🚀🏳️‍🌈❤️ ",
    " \t\n\r\u00a0\u3000\u200b",
    "ﬁ½²ⅷ①Å",
    "e\u0301n\u0303",
    "\x00\x07\ud7ff\ufffd\U0010ffff",
]
MARKS = ["<|startoftext|>", "<|endoftext|>", "</s>", "<pad>", "<extra_id_0>", "▁"]
# Of the tokens of all strings, as transformers 5.24 has them.
CLIP_SUM = 2106927781


def strings():
    """A thousand: empty, blank, mixed scripts, marks in the middle, one of 10,000 characters."""
    rng = np.random.default_rng(5)
    made = ["", " ", "\n\t", "a" * 10_000, "word " * 500, *MARKS]
    while len(made) < 1000:
        text = ""
        for _ in range(int(rng.integers(1, 4))):
            letters = list(ALPHABETS[int(rng.integers(len(ALPHABETS)))])
            text += "".join(rng.choice(letters, int(rng.integers(1, 30))))
            if rng.random() < 0.05:
                text += MARKS[int(rng.integers(2))]
        made.append(text)
    return made


def test_clips_tokens_are_transformers(tmp_path):
    """By a sum over all of them; `test_clips_tokens_one_by_one` has the live comparison."""
    encoded = ClipTokenizer(str(write_tokenizer(tmp_path)), 20).encode(strings())
    assert encoded.tokens.shape == (1000, 20)
    assert zlib.crc32(encoded.tokens.tobytes()) == CLIP_SUM


@pytest.mark.parity
def test_clips_tokens_one_by_one(tmp_path):
    from transformers import CLIPTokenizer

    folder = write_tokenizer(tmp_path)
    theirs = CLIPTokenizer.from_pretrained(folder)(
        strings(), padding="max_length", max_length=20, truncation=True
    )
    ours = ClipTokenizer(str(folder), 20).encode(strings())
    for row, text in enumerate(strings()):
        assert ours.tokens[row].tolist() == theirs["input_ids"][row], text
        assert ours.mask[row].tolist() == [bool(x) for x in theirs["attention_mask"][row]], text


@pytest.fixture(scope="module")
def sentence_pieces(tmp_path_factory):
    """A folder with a model that SentencePiece trains on the strings, with its standard normalisation."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("t5")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(
            [text for text in strings() if text.strip() and "\x00" not in text and len(text) < 200]
        ),
        model_prefix=str(folder / "spiece"),
        vocab_size=400,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
    )
    return folder


def same_rows(ours, rows):
    """The tokens of each text, cut to 40 with the end kept."""
    for row, (text, ids) in enumerate(rows):
        ids = ids if len(ids) <= 40 else [*ids[:39], 1]
        assert ours.tokens[row, ours.mask[row]].tolist() == ids, text
        assert not ours.tokens[row, ~ours.mask[row]].any()


@pytest.mark.parity
def test_t5s_tokens_are_transformers(sentence_pieces):
    from transformers import T5Tokenizer as Theirs

    pieces, characters = read_sentence_pieces((sentence_pieces / "spiece.model").read_bytes())
    extra = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    theirs = Theirs(vocab=[*pieces, *extra], _spm_precompiled_charsmap=characters)
    ours = T5Tokenizer(str(sentence_pieces), 40).encode(strings())
    same_rows(ours, [(text, theirs(text)["input_ids"]) for text in strings()])


def varint(number):
    """A protocol buffer's."""
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number, content):
    """A field of bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def pieces_file(pieces):
    """A SentencePiece model of pieces and scores, with fields that are to be passed over."""
    content = b""
    for text, score in pieces:
        own = field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18\x01"
        content += field(1, own)
    return content + field(2, b"trainer") + field(3, field(1, b"identity")) + b"\x21" + bytes(8)


PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("▁red", -1.0), ("re", -2.5), ("d", -2.0)]  # fmt: skip


def test_t5_takes_the_likeliest_pieces(tmp_path):
    """By hand: "red" is one piece, "d" after a space two, "x" unknown; the end mark closes, also what is cut."""
    (tmp_path / "spiece.model").write_bytes(pieces_file(PIECES))
    found = T5Tokenizer(str(tmp_path), 6).encode(
        ["red", "d red", "x", "", "red red red red red red"]
    )
    assert found.tokens.tolist() == [
        [4, 1, 0, 0, 0, 0],
        [3, 6, 4, 1, 0, 0],
        [3, 2, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [4, 4, 4, 4, 4, 1],
    ]
    assert found.mask.sum(1).tolist() == [2, 4, 3, 1, 6]


def test_sentence_pieces_are_read_and_damaged_ones_refused(tmp_path):
    content = pieces_file(PIECES)
    pieces, characters = read_sentence_pieces(content)
    assert pieces == PIECES
    assert characters == b""
    for size in range(0, len(content), 7):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "spiece.model").write_bytes(content[:size] + b"\xff")
        with pytest.raises(UserError, match="is no tokenizer") as caught:
            T5Tokenizer(str(folder), 4).encode(["red"])
        assert "\n" not in str(caught.value)


def test_padding_is_what_the_folder_names(tmp_path):
    """The end mark where it names nothing; a token that is not there is refused."""
    folder = write_tokenizer(tmp_path / "own")
    named = ClipTokenizer(str(folder), 5).encode(["a"]).tokens[0]
    (write_tokenizer(tmp_path / "plain") / "tokenizer_config.json").unlink()
    plain = ClipTokenizer(str(tmp_path / "plain"), 5).encode(["a"]).tokens[0]
    vocabulary = json.loads((folder / "vocab.json").read_text())
    end = vocabulary["<|endoftext|>"]
    assert named[2:].tolist() == [end, vocabulary["!"], vocabulary["!"]]
    assert plain[2:].tolist() == [end] * 3
    wrong = write_tokenizer(tmp_path / "wrong")
    (wrong / "tokenizer_config.json").write_text('{"pad_token": "nothing"}')
    with pytest.raises(UserError, match="padding 'nothing' is not in the vocabulary"):
        ClipTokenizer(str(wrong), 5).encode(["a"])


def test_folders_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"vocab.json does not exist"):
        ClipTokenizer(str(tmp_path)).encode(["a"])
    with pytest.raises(UserError, match=r"spiece.model does not exist"):
        T5Tokenizer(str(tmp_path)).encode(["a"])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json is no tokenizer"):
        ClipTokenizer(str(tmp_path)).encode(["a"])
