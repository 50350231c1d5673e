"""Tokenizers against hand-worked identifiers."""

import json
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxvid.core.errors import UserError
from jaxvid.data.shapes import MAX_CAPTION_WORDS, ShapesConfig, caption, sample_scene, vocabulary
from jaxvid.data.tokens import BertTokenizer, HashTokenizer, WordTokenizer, encode_prompt, words

WORDS = WordTokenizer(("a", "red", "circle"), length=4)
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "skier", "run", "##ning", "is", ".")


@pytest.fixture
def vocab(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return path


def test_words():
    assert words("It's a RED circle, isn\u2019t it?") == [
        "it's",
        "a",
        "red",
        "circle",
        ",",
        "isn\u2019t",
        "it",
        "?",
    ]
    assert words(" \n\t ") == []


def test_closed_vocabulary():
    assert WORDS.encode("A red Circle").tolist() == [2, 3, 4, 0]
    assert WORDS.encode("a blue circle").tolist() == [2, 1, 4, 0]
    assert WORDS.encode("").tolist() == [0, 0, 0, 0]
    assert WORDS.encode("red " * 9).tolist() == [3, 3, 3, 3]
    assert WORDS.size == 5
    assert WORDS.unknown("a blue Cube circle") == ["blue", "cube"]
    assert WORDS.encode("a").dtype == np.int32


def test_closed_vocabulary_must_be_single_words():
    with pytest.raises(UserError, match="twice"):
        WordTokenizer(("a", "a"))
    for entry in ("two words", "Red", ""):
        with pytest.raises(UserError, match="not one lower-case word"):
            WordTokenizer(("a", entry))


def test_shapes_captions_are_all_known_and_none_is_cut():
    tokenizer = WordTokenizer(vocabulary(), MAX_CAPTION_WORDS)
    config = ShapesConfig()
    for i in range(300):
        text = caption(sample_scene(config, i), variant=i)
        ids = tokenizer.identifiers(text)
        assert 1 not in ids
        assert len(ids) == len(text.split()) <= tokenizer.length


@given(st.text(max_size=80))
def test_hashed_identifiers_are_the_crc_of_each_word(text):
    tokenizer = HashTokenizer(buckets=50, length=6)
    expected = [zlib.crc32(word.encode()) % 50 + 2 for word in words(text)]
    assert tokenizer.identifiers(text) == expected
    ids = tokenizer.encode(text)
    assert ids.shape == (6,)
    assert ids.tolist() == (expected + [0] * 6)[:6]
    assert ids.max() < tokenizer.size


def test_word_pieces_from_a_vocabulary(vocab):
    tokenizer = BertTokenizer(str(vocab), length=7)
    assert tokenizer.encode("A skier is running.").tolist() == [
        2,
        4,
        5,
        8,
        6,
        7,
        3,
    ]  # cut before "."
    assert tokenizer.identifiers("A skier is running.") == [2, 4, 5, 8, 6, 7, 9, 3]
    assert tokenizer.encode("skier flies").tolist() == [2, 5, 1, 3, 0, 0, 0]
    assert tokenizer.encode(" ").tolist() == [0] * 7
    assert tokenizer.size == len(PIECES)
    folder = BertTokenizer(str(vocab.parent), length=7)
    assert folder.encode("a skier").tolist() == tokenizer.encode("a skier").tolist()
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("a skier").tolist() == [2, 4, 5, 3, 0, 0, 0]


def test_word_pieces_from_a_tokenizer_file(tmp_path):
    pieces = {"[PAD]": 0, "[UNK]": 1, "red": 2, "box": 3}
    model = {"type": "WordLevel", "vocab": pieces, "unk_token": "[UNK]"}
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
               "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, "model": model}  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    tokenizer = BertTokenizer(str(path), length=3)
    assert tokenizer.encode("red box sky red").tolist() == [2, 3, 1]  # no marks to keep when cut
    assert tokenizer.encode("box").tolist() == [3, 0, 0]


def test_unusable_tokenizer_files(tmp_path):
    with pytest.raises(UserError, match="no tokenizer there"):
        BertTokenizer(str(tmp_path)).encode("a")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        BertTokenizer(str(tmp_path)).encode("a")
    other = tmp_path / "vocab.txt"
    other.write_text("a\nb\n")
    with pytest.raises(UserError, match="not a tokenizer"):
        BertTokenizer(str(other)).encode("a")
    other.write_text("[CLS]\n[SEP]\n[UNK]\n[PAD]\n")
    with pytest.raises(UserError, match="identifier 0"):
        BertTokenizer(str(other)).encode("a")


@pytest.mark.parametrize("kind", ["words", "hash", "bert"])
def test_prompts_are_never_cut_in_silence(kind, vocab):
    tokenizer = {
        "words": WORDS,
        "hash": HashTokenizer(length=4),
        "bert": BertTokenizer(str(vocab), length=6),
    }[kind]
    np.testing.assert_array_equal(
        encode_prompt(tokenizer, "a red circle"), tokenizer.encode("a red circle")
    )
    for empty in ("", "  \n"):
        with pytest.raises(UserError, match="prompt is empty"):
            encode_prompt(tokenizer, empty)
    with pytest.raises(UserError, match=r"has \d+ tokens, this model reads \d; shorten it"):
        encode_prompt(tokenizer, "a red red red circle")
    with pytest.raises(UserError) as error:
        encode_prompt(tokenizer, "red\n" * 2500)
    assert len(str(error.value)) < 150
    assert "\n" not in str(error.value)
