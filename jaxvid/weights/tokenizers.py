"""Tokenizers of public text encoders from local folders: CLIP's byte pairs and T5's sentence pieces.

They give what the published ones give, also for empty texts, emoji and any script; long texts are cut, and the closing mark
is kept. `mask` says which tokens are text.
"""

import functools
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from jaxvid.core.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's pieces: marks, English contractions, runs of letters, single digits, runs of anything else.
PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
T5_EXTRA = 100  # sentinels after the pieces


class Encoded(NamedTuple):
    """Texts as numbers."""

    tokens: Int32[np.ndarray, "b n"]
    mask: Bool[np.ndarray, "b n"]


@dataclass(frozen=True)
class ClipTokenizer:
    """Of a folder with `tokenizer.json`, or `vocab.json` and `merges.txt`; `tokenizer_config.json` names the padding."""

    folder: str
    length: int = 77

    def encode(self, texts: list[str]) -> Encoded:
        """Start, pieces, end, padding."""
        pieces, token = _clip(self.folder), _padding(self.folder)
        padding = pieces.token_to_id(token)
        if padding is None:
            raise UserError(
                f"{self.folder}: the padding {token!r} is not in the vocabulary; fetch it again"
            )
        return _encoded(pieces, texts, self.length, padding)


@dataclass(frozen=True)
class T5Tokenizer:
    """Of a folder with `tokenizer.json` or `spiece.model`."""

    folder: str
    length: int = 77

    def encode(self, texts: list[str]) -> Encoded:
        """Pieces, end, padding."""
        return _encoded(_t5(self.folder), texts, self.length, 0)


def _encoded(pieces: Any, texts: list[str], length: int, padding: int) -> Encoded:
    tokens = np.full((len(texts), length), padding, np.int32)
    mask = np.zeros((len(texts), length), bool)
    for row, text in enumerate(texts):
        ids = pieces.encode(text).ids
        if len(ids) > length:
            ids = ids[: length - 1] + ids[-1:]
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
    return Encoded(tokens, mask)


@functools.lru_cache(maxsize=8)
def _clip(folder: str) -> Any:
    """CLIP's `tokenizers.Tokenizer`."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    whole = _whole(folder)
    if whole is not None:
        return whole
    vocabulary, merges = (_file(folder, name) for name in ("vocab.json", "merges.txt"))
    padding = _padding(folder)
    try:
        model = BPE.from_file(
            str(vocabulary), str(merges), end_of_word_suffix="</w>", unk_token=END
        )
        pieces = Tokenizer(model)
        pieces.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        pieces.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        marks = [(mark, pieces.token_to_id(mark) or 0) for mark in (END, START)]
        # The padding is a mark too: a "!" in a text for Stable Diffusion 2 is a token of its own.
        known = [mark for mark in (START, END, padding) if pieces.token_to_id(mark) is not None]
        pieces.add_special_tokens(known)
        pieces.post_processor = processors.RobertaProcessing(
            *marks, trim_offsets=False, add_prefix_space=False
        )
    except Exception as error:  # the library raises a bare Exception for any malformed file
        raise _unusable(vocabulary, error) from error
    return _plain(pieces)


@functools.lru_cache(maxsize=8)
def _t5(folder: str) -> Any:
    """T5's `tokenizers.Tokenizer`."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    whole = _whole(folder)
    if whole is not None:
        return whole
    file = _file(folder, "spiece.model")
    try:
        vocabulary, characters = read_sentence_pieces(file.read_bytes())
        extra = [f"<extra_id_{i}>" for i in reversed(range(T5_EXTRA))]
        vocabulary += [(mark, 0.0) for mark in extra]
        pieces = Tokenizer(Unigram(vocabulary, unk_id=2, byte_fallback=False))
        if characters:
            pieces.normalizer = normalizers.Precompiled(characters)
        pieces.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.WhitespaceSplit(),
                pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=True),
            ]
        )
        pieces.add_special_tokens(["<pad>", "</s>", "<unk>", *extra])
        pieces.post_processor = processors.TemplateProcessing(
            single=["$A", "</s>"], special_tokens=[("</s>", pieces.token_to_id("</s>"))]
        )
    except Exception as error:  # as above; a damaged model raises ValueError and struct.error
        raise _unusable(file, error) from error
    return _plain(pieces)


def _whole(folder: str) -> Any:
    """The tokenizer of `tokenizer.json`, where there is one."""
    from tokenizers import Tokenizer

    # The library forks threads of its own, which data workers cannot use and warn about.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        return _plain(Tokenizer.from_file(str(file)))
    except Exception as error:
        raise _unusable(file, error) from error


def _plain(pieces: Any) -> Any:
    """Without padding or cutting of its own."""
    pieces.no_padding()
    pieces.no_truncation()
    return pieces


def _file(folder: str, name: str) -> Path:
    file = Path(folder) / name
    if not file.is_file():
        raise UserError(f"{file} does not exist; give a folder with {name} or tokenizer.json")
    return file


def _unusable(file: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:120]
    return UserError(f"{file} is no tokenizer ({reason}); fetch it again")


def _padding(folder: str) -> str:
    """The padding token that the folder names: the end mark, or "!" in Stable Diffusion 2."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = Path(folder) / name
        if not file.is_file():
            continue
        try:
            given = json.loads(file.read_text()).get("pad_token")
        except (ValueError, AttributeError) as error:
            raise _unusable(file, error) from error
        token = given.get("content") if isinstance(given, dict) else given
        if isinstance(token, str):
            return token
    return END


def read_sentence_pieces(content: bytes) -> tuple[list[tuple[str, float]], bytes]:
    """Pieces with their scores, and the table of the normaliser, of a SentencePiece model (a protocol buffer).

    Of the message only fields 1 (pieces: 1 text, 2 score) and 3 (normaliser: 2 table) are read. Raises ValueError or
    struct.error for bytes that are none.
    """
    pieces, characters = [], b""
    for number, value in _fields(content):
        if number == 1 and isinstance(value, bytes):
            own = dict(_fields(value))
            text, score = own[1], own.get(2, bytes(4))
            if not isinstance(text, bytes) or not isinstance(score, bytes):
                raise ValueError("a piece is not text and a score")
            pieces.append((text.decode(), struct.unpack("<f", score)[0]))
        elif number == 3 and isinstance(value, bytes):
            table = dict(_fields(value)).get(2, b"")
            characters = table if isinstance(table, bytes) else b""
    if not pieces:
        raise ValueError("it holds no pieces")
    return pieces, characters


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: an integer, or bytes."""
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(content, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, place = _varint(content, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of wire type {kind}")
        if place + size > len(content):
            raise ValueError("it ends within a field")
        yield tag >> 3, content[place : place + size]
        place += size


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(content) or shift > 63:
            raise ValueError("it ends within a number")
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
