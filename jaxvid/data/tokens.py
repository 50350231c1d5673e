"""Text to token identifiers.

A tokenizer is a frozen dataclass with a pure `encode(text) -> int32 [n]`. Identifier 0 is padding, and a caption of
nothing but padding is the unconditional one. `n` (`length`) is fixed, because shapes are static on the device; `size`
is the number of identifiers, that is the rows of an embedding table.

Captions of a data set may be longer than `length`: they are cut, and the pipeline counts how many were. What a user
types is never cut silently: `encode_prompt` raises `UserError` for an empty or too long prompt.
"""

import functools
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from jaxvid.core.errors import UserError

PADDING = 0
UNKNOWN = 1
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")  # with either apostrophe inside


def words(text: str) -> list[str]:
    """Lower-case words and single punctuation marks, in order: `"It's red."` is `["it's", "red", "."]`."""
    return _WORD.findall(text.lower())


@runtime_checkable
class Tokenizer(Protocol):
    """What the pipeline and the samplers need of a tokenizer."""

    @property
    def length(self) -> int:
        """Identifiers a caption (n)."""
        ...

    @property
    def size(self) -> int:
        """Number of distinct identifiers, padding included."""
        ...

    def identifiers(self, text: str) -> list[int]:
        """The whole text, neither padded nor cut."""
        ...

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The text cut or padded to `length`."""
        ...


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> Int32[np.ndarray, " n"]:
    """Encodes what a user typed; raises `UserError` when it is empty or longer than the model reads."""
    shown = prompt if len(prompt) <= 60 else prompt[:57] + "..."
    if not prompt.strip():
        raise UserError("the prompt is empty; describe the video in a few words")
    count = len(tokenizer.identifiers(prompt))
    if count == 0:
        raise UserError(f"prompt {shown!r} holds no words; describe the video in a few words")
    if count > tokenizer.length:
        raise UserError(
            f"prompt {shown!r} has {count} tokens, this model reads {tokenizer.length}; shorten it"
        )
    return tokenizer.encode(prompt)


def _pad(identifiers: list[int], length: int) -> np.ndarray:
    ids = np.full(length, PADDING, np.int32)
    kept = identifiers[:length]
    ids[: len(kept)] = kept
    return ids


@dataclass(frozen=True)
class WordTokenizer:
    """A closed vocabulary of words, for data whose captions are generated: 0 pads, 1 is any unknown word."""

    vocabulary: tuple[str, ...]
    length: int = 16

    def __post_init__(self):
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise UserError("the vocabulary names a word twice; remove the repetition")
        for word in self.vocabulary:
            if words(word) != [word]:
                raise UserError(f"vocabulary entry {word!r} is not one lower-case word; split it")

    @property
    def size(self) -> int:
        """Words + padding + unknown."""
        return len(self.vocabulary) + 2

    def identifiers(self, text: str) -> list[int]:
        """One identifier a word."""
        table = _word_table(self.vocabulary)
        return [table.get(word, UNKNOWN) for word in words(text)]

    def unknown(self, text: str) -> list[str]:
        """Those words of `text` that the vocabulary lacks, to be told to the user."""
        table = _word_table(self.vocabulary)
        return [word for word in words(text) if word not in table]

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """Identifiers, cut or padded to `length`."""
        return _pad(self.identifiers(text), self.length)


@functools.lru_cache(maxsize=16)
def _word_table(vocabulary: tuple[str, ...]) -> dict[str, int]:
    return {word: i + 2 for i, word in enumerate(vocabulary)}


@dataclass(frozen=True)
class HashTokenizer:
    """An open vocabulary without state: a word's identifier is its CRC-32 modulo the number of buckets.

    Two words meet in a bucket with probability 1 / buckets; with 2^15 buckets a vocabulary of 1000 words has about
    15 such pairs. Identifier 1 is not used.
    """

    buckets: int = 32768
    length: int = 32

    @property
    def size(self) -> int:
        """Buckets + padding + unknown."""
        return self.buckets + 2

    def identifiers(self, text: str) -> list[int]:
        """One identifier a word."""
        return [zlib.crc32(word.encode()) % self.buckets + 2 for word in words(text)]

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """Identifiers, cut or padded to `length`."""
        return _pad(self.identifiers(text), self.length)


@dataclass(frozen=True)
class BertTokenizer:
    """Word pieces from a local `tokenizer.json`, `vocab.txt`, or a folder that holds one of them.

    A sequence is `[CLS] pieces [SEP]` (where the vocabulary has them); cutting keeps the closing `[SEP]`. Upper case
    is folded for `vocab.txt`; a `tokenizer.json` carries its own rule. `[PAD]` must be identifier 0.
    """

    path: str
    length: int = 77

    @property
    def size(self) -> int:
        """Entries of the vocabulary."""
        return _bert(self.path).get_vocab_size()

    def identifiers(self, text: str) -> list[int]:
        """Word pieces with the special marks around them; empty for a text without words."""
        if not words(text):
            return []
        return _bert(self.path).encode(text).ids

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """Identifiers, cut or padded to `length`; a cut sequence still ends with its last mark."""
        ids = self.identifiers(text)
        if len(ids) > self.length:
            marks = _bert(self.path).num_special_tokens_to_add(False)
            ids = ids[: self.length - 1] + ids[-1:] if marks else ids[: self.length]
        return _pad(ids, self.length)


@functools.lru_cache(maxsize=4)
def _bert(path: str) -> Any:
    """The `tokenizers.Tokenizer` of a file or folder, without padding or cutting of its own."""
    from tokenizers import Tokenizer as Pieces
    from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
    from tokenizers.models import WordPiece

    # The library forks threads of its own, which data workers cannot use and warn about.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    file = Path(path)
    if file.is_dir():
        names = [file / "tokenizer.json", file / "vocab.txt"]
        file = next((name for name in names if name.is_file()), names[0])
    if not file.is_file():
        raise UserError(f"{file}: no tokenizer there; give a tokenizer.json or a vocab.txt")
    try:
        if file.suffix == ".json":
            pieces = Pieces.from_file(str(file))
        else:
            pieces = BertWordPieceTokenizer(WordPiece.read_file(str(file)), lowercase=True)
    except Exception as error:  # the library raises a bare Exception for any malformed file
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{file}: not a tokenizer ({reason}); give a tokenizer.json or a vocab.txt"
        ) from error
    if pieces.token_to_id("[PAD]") != PADDING:
        raise UserError(f"{file}: [PAD] must be identifier 0; reorder the vocabulary")
    pieces.no_padding()
    pieces.no_truncation()
    return pieces
