"""The words of toy instructions as a tokenizer, and what an instruction says as numbers.

The tokenizer knows every word of the toy phrases whole; any other text comes apart into shorter pieces.
"""

import functools
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from jaxedit.scene.toy.edits import EDITS, ToyEdit
from jaxedit.scene.toy.sdf import KINDS
from jaxedit.scene.toy.templates import TEMPLATES
from jaxedit.scene.toy.trace import TEXTURES
from jaxedit.scene.toy.words import HELD_OUT_PHRASES, MARKS, PHRASES, SHAPES
from jaxedit.scene.toy.world import COLOURS
from jaxvid.weights.tokenizers import END, PIECES, START, ClipTokenizer

POSITIONS = 24  # of 3000 toy instructions the longest takes 16

PARTS = tuple(sorted({rule.name for rules in TEMPLATES.values() for rule in rules}))
# What an instruction may say, each with its values; 0 stands for "nothing said".
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": EDITS,
    "part": PARTS,
    "colour": tuple(COLOURS),
    "second": tuple(COLOURS),
    "texture": TEXTURES[1:],
    "shape": KINDS,
    "size": ("bigger", "smaller"),
    "thing": tuple(TEMPLATES),
    "light": ("day", "night"),
}


def said(edit: ToyEdit) -> Int32[np.ndarray, "a"]:
    """What the edit's instruction says of each of `ATTRIBUTES`: 1 + the value's number, or 0."""
    values = _said(edit)
    return np.array(
        [
            1 + names.index(values[name]) if name in values else 0
            for name, names in ATTRIBUTES.items()
        ],
        np.int32,
    )


def _said(edit: ToyEdit) -> dict[str, str]:
    values: dict[str, str] = {"kind": edit.kind}
    if edit.kind == "light":
        return {**values, "light": edit.scene.light}
    if edit.kind == "become":
        return {**values, "thing": edit.scene.template}
    assert edit.part is not None, "all other kinds are of a part"
    before, after = edit.before.part(edit.part), edit.scene.part(edit.part)
    values["part"] = edit.part
    if edit.kind in ("recolour", "add"):
        values["colour"] = after.colour
    if edit.kind == "retexture" and after.texture == "plain":
        values["texture"] = before.texture
    elif edit.kind == "retexture" or (edit.kind == "add" and after.texture != "plain"):
        values |= {"second": after.second, "texture": after.texture}
    usual = edit.scene.rules[edit.scene.label(edit.part)].kinds[0]
    if edit.kind == "reshape" or (edit.kind == "add" and after.kind != usual):
        values["shape"] = after.kind
    if edit.kind == "resize":
        values["size"] = "bigger" if after.factor > before.factor else "smaller"
    return values


def toy_words() -> tuple[str, ...]:
    """All words that toy instructions are made of."""
    texts: list[str] = [
        *(
            phrase
            for table in (PHRASES, HELD_OUT_PHRASES)
            for all_ in table.values()
            for phrase in all_
        ),
        *COLOURS,
        *PARTS,
        *TEMPLATES,
        *(word for pair in SHAPES.values() for word in pair),
        *MARKS,
        *MARKS.values(),
        "shaped a an and big small bigger smaller",
    ]
    return tuple(
        sorted({word for text in texts for word in re.findall(r"(?<!\{)\b[a-z]+\b(?!\})", text)})
    )


def write_tokenizer(folder: str | Path, words: Sequence[str] | None = None) -> None:
    """Writes tokenizer.json and tokenizer_config.json of a tokenizer that knows those words (`toy_words`) and all letters."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = toy_words() if words is None else words
    tokens = [*letters, *(letter + "</w>" for letter in letters), *known, START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    # Without merges a word that is in the vocabulary is one token, and any other its letters.
    model = BPE(vocabulary, [], end_of_word_suffix="</w>", unk_token=END, ignore_merges=True)
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
    pieces.add_special_tokens([START, END])
    pieces.post_processor = processors.RobertaProcessing(
        (END, vocabulary[END]),
        (START, vocabulary[START]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pieces.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"model_max_length": POSITIONS, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


@functools.lru_cache
def toy_tokenizer() -> ClipTokenizer:
    """The tokenizer, written for this process."""
    folder = tempfile.mkdtemp(prefix="jaxedit-words-")
    write_tokenizer(folder)
    return ClipTokenizer(folder, POSITIONS)


def vocabulary_size() -> int:
    """How many tokens `write_tokenizer` knows: letters, letters that end a word, words, two marks."""
    return 2 * 256 + len(toy_words()) + 2
