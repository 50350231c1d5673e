"""Edits of toy scenes with their sentences and their truth: which parts change, and into what.

    recolour   another first colour                  add      a part that the template knows and the scene lacks
    retexture  marks in a second colour, or none     remove   an optional part that carries no other
    resize     a part bigger or smaller; what is     reshape  a part of another shape
               fixed to it moves along               become   another object, in the same colours where it may
    light      day to night or night to day

An edited object stays in the box and in one piece. Everything is a pure function of the arguments.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from jaxedit.scene.toy.templates import TEMPLATES
from jaxedit.scene.toy.trace import TEXTURES
from jaxedit.scene.toy.words import (
    HELD_OUT_PHRASES,
    OPENINGS,
    PHRASES,
    caption,
    phrase_fields,
    with_article,
)
from jaxedit.scene.toy.world import (
    COLOURS,
    REACH,
    ToyScene,
    ToySplit,
    check_draw,
    draw_object,
    held_out,
    toy_scene,
)
from jaxvid.core.errors import UserError
from jaxvid.data.shapes.world import Draws

EditKind: TypeAlias = Literal[
    "recolour", "retexture", "resize", "add", "remove", "reshape", "become", "light"
]
EDITS: tuple[EditKind, ...] = (
    "recolour",
    "retexture",
    "resize",
    "add",
    "remove",
    "reshape",
    "become",
    "light",
)

BIGGER, SMALLER = 1.45, 0.62
FACTORS = (0.35, 2.2)  # how far repeated resizing goes
_ATTEMPTS = 256  # scenes tried until one can be edited
_STRIDE = 1 << 20  # between the numbers of scenes of one edit and of the next
_OTHERS = 2  # parts that captions mention beside the edited one


class NothingToEditError(UserError):
    """The scene has no part that can be edited in the way asked for."""


@dataclass(frozen=True)
class ToyEdit:
    """An edit. part: its name, None for "become" and "light".

    changed: labels of the parts that look different or stand elsewhere, as counted in both scenes; an object that
    becomes another one changes all of them, light none.
    """

    scene: ToyScene
    instruction: str
    caption_before: str
    caption_after: str
    before: ToyScene
    kind: EditKind
    part: str | None
    changed: tuple[int, ...]


class _Option(NamedTuple):
    """One possible edit of a part. phrases: a key of PHRASES; marks: which its phrasings name."""

    part: str
    scene: ToyScene
    phrases: str
    marks: str = ""


def make_edit(
    seed: int,
    scene: ToyScene,
    kind: EditKind,
    *,
    split: ToySplit = "train",
    phrases: Literal["train", "heldout"] | None = None,
) -> ToyEdit:
    """A random edit of that kind.

    split: "train" never edits a part that has, or gets, a held-out colour (`world.held_out`); "heldout" does only
    that; "all" ignores the rule. Light has no part, so any scene takes it. phrases: which phrasings; None for those of
    the split, trained ones for "all".
    Raises `NothingToEditError`, a `UserError`, if the scene has nothing to edit in that way.
    """
    if kind not in EDITS:
        raise UserError(f"toy edit: kind {kind!r}; choose from {', '.join(EDITS)}")
    check_draw(split, seed)
    draws = Draws(seed, EDITS.index(kind), 1)
    opening = draws.choice(OPENINGS)
    table = HELD_OUT_PHRASES if (phrases or split) == "heldout" else PHRASES
    if kind == "light":
        after = replace(scene, light="night" if scene.light == "day" else "day")
        instruction = draws.choice(table[after.light])
        names = _some(draws, scene.names)
        texts = [caption(s, names, opening=opening, say_light=True) for s in (scene, after)]
        return _edit(scene, after, kind, None, instruction, texts)
    if kind == "become":
        after = _another(draws, scene, split)
        fields = {"thing": scene.template, "new": with_article(after.template)}
        instruction = draws.choice(table["become"]).format(**fields)
        texts = [caption(s, _some(draws, s.names), opening=opening) for s in (scene, after)]
        return _edit(scene, after, kind, None, instruction, texts)
    option = _draw_option(draws, scene, kind, split)
    after = option.scene
    fields = phrase_fields(after, option.part) | {"marks": option.marks}
    instruction = draws.choice(table[option.phrases]).format(**fields)
    others = _some(draws, tuple(name for name in scene.names if name != option.part))
    texts = []
    for state in (scene, after):
        said = [option.part] if option.part in state.names else []
        texts.append(caption(state, [*said, *others], opening=opening))
    return _edit(scene, after, kind, option.part, instruction, texts)


def toy_edit(
    seed: int = 0,
    index: int = 0,
    *,
    kind: EditKind | None = None,
    split: ToySplit = "train",
    phrases: Literal["train", "heldout"] | None = None,
) -> ToyEdit:
    """The edit number `index` (>= 0), with its scene: an endless set of pairs; see `make_edit`.

    kind: of all of them; None draws one of the kinds. A held-out colour comes with the edit where the edit brings a
    colour, else with the scene.
    """
    check_draw(split, seed, index)
    draws = Draws(seed, index, 2)
    wanted = kind or draws.choice(EDITS)
    scene_split = split
    if split == "heldout" and wanted in ("recolour", "add", "become"):
        scene_split = "train"
    for attempt in range(_ATTEMPTS):
        # Scenes of their own, so that a pair is no twin of the scene of the same number.
        scene = toy_scene(seed, (index + 1) * _STRIDE + attempt, split=scene_split)
        try:
            return make_edit(
                int(draws.uniform() * 2**31), scene, wanted, split=split, phrases=phrases
            )
        except NothingToEditError:
            continue
    raise UserError(f"toy edit: no scene for {wanted} in split {split}; take another seed")


def changed_parts(before: ToyScene, after: ToyScene) -> tuple[int, ...]:
    """Labels of the parts whose solids differ, light apart."""
    if before.template != after.template:
        return tuple(range(max(len(before.parts), len(after.parts))))
    a, b = before.stage().solids, after.stage().solids
    differs = np.zeros(a.present.shape, bool)
    for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
        differs |= (x != y).reshape(len(x), -1).any(axis=-1)
    return tuple(np.flatnonzero(differs & (a.present | b.present)).tolist())


def _edit(
    before: ToyScene,
    after: ToyScene,
    kind: EditKind,
    part: str | None,
    instruction: str,
    texts: list[str],
) -> ToyEdit:
    changed = changed_parts(before, after)
    return ToyEdit(after, instruction, texts[0], texts[1], before, kind, part, changed)


def _draw_option(draws: Draws, scene: ToyScene, kind: EditKind, split: ToySplit) -> _Option:
    """One of the options that the split allows, parts equally likely."""
    by_part: dict[str, list[_Option]] = {}
    for option in _OPTIONS[kind](scene):
        holder = scene if kind == "remove" else option.scene
        held = held_out(scene.template, option.part, holder.part(option.part).colour)
        if split == "all" or held == (split == "heldout"):
            by_part.setdefault(option.part, []).append(option)
    if not by_part:
        raise NothingToEditError(
            f"this {scene.template} has no part to {kind} in split {split}; "
            "take another kind, scene or split"
        )
    return draws.choice(by_part[draws.choice(tuple(by_part))])


def _some(draws: Draws, names: tuple[str, ...]) -> tuple[str, ...]:
    """A few of the names, in their order."""
    left = list(names)
    while len(left) > _OTHERS:
        left.remove(draws.choice(left))
    return tuple(left)


def _neighbours(scene: ToyScene, name: str) -> set[str]:
    """Colours of the parts that it is fixed to or that are fixed to it."""
    parent = scene.rules[scene.label(name)].parent
    near = {r.name for r in scene.rules if r.parent == name} | {parent}
    return {scene.part(other).colour for other in scene.names if other in near}


def _fits(scene: ToyScene) -> bool:
    return bool(np.abs(scene.bounds()).max() <= REACH)


def _recolour(scene: ToyScene) -> Iterator[_Option]:
    for name in scene.names:
        part = scene.part(name)
        taken = _neighbours(scene, name) | {part.colour, part.second}
        for colour in COLOURS:
            if colour not in taken:
                yield _Option(name, scene.with_part(name, colour=colour), "recolour")


def _retexture(scene: ToyScene) -> Iterator[_Option]:
    for name in scene.names:
        part = scene.part(name)
        if part.texture != "plain":
            plain = scene.with_part(name, texture="plain")
            yield _Option(name, plain, "unmark", part.texture)
        for texture in TEXTURES[1:]:
            for second in COLOURS:
                if texture != part.texture and second != part.colour:
                    marked = scene.with_part(name, texture=texture, second=second)
                    yield _Option(name, marked, "mark", texture)


def _resize(scene: ToyScene) -> Iterator[_Option]:
    for name in scene.names:
        factor, shrinks = scene.part(name).factor, scene.rules[scene.label(name)].shrinks
        bigger = scene.with_part(name, factor=factor * BIGGER)
        if factor * BIGGER <= FACTORS[1] and _fits(bigger):
            yield _Option(name, bigger, "bigger")
        smaller = scene.with_part(name, factor=factor * SMALLER)
        if factor * SMALLER >= FACTORS[0] and shrinks and _fits(smaller):
            yield _Option(name, smaller, "smaller")


def _add(scene: ToyScene) -> Iterator[_Option]:
    for rule in scene.rules:
        there = rule.name in scene.names
        if there or (rule.parent is not None and rule.parent not in scene.names):
            continue
        if not _fits(scene.with_part(rule.name, present=True)):
            continue
        taken = _neighbours(scene, rule.name) | {scene.part(rule.name).second}
        for colour in COLOURS:
            if colour not in taken:
                added = scene.with_part(rule.name, present=True, colour=colour)
                yield _Option(rule.name, added, "add")


def _remove(scene: ToyScene) -> Iterator[_Option]:
    carrying = {rule.parent for rule in scene.rules if rule.name in scene.names}
    for rule in scene.rules:
        if rule.name in scene.names and not rule.needed and rule.name not in carrying:
            yield _Option(rule.name, scene.with_part(rule.name, present=False), "remove")


def _reshape(scene: ToyScene) -> Iterator[_Option]:
    for name in scene.names:
        for kind in scene.rules[scene.label(name)].kinds:
            other = scene.with_part(name, kind=kind)
            if kind != scene.part(name).kind and _fits(other):
                yield _Option(name, other, "reshape")


_OPTIONS: dict[EditKind, Callable[[ToyScene], Iterator[_Option]]] = {
    "recolour": _recolour,
    "retexture": _retexture,
    "resize": _resize,
    "add": _add,
    "remove": _remove,
    "reshape": _reshape,
}


def _another(draws: Draws, scene: ToyScene, split: ToySplit) -> ToyScene:
    """Another object in the same place, light and direction."""
    template = draws.choice([t for t in TEMPLATES if t != scene.template])
    new = draw_object(draws, template, split, scene.heading)
    new = replace(new, light=scene.light, sun=scene.sun, sky=scene.sky)
    if split == "heldout":
        return new
    for rule, old in zip(new.rules, scene.parts, strict=False):
        free = split == "all" or not held_out(template, rule.name, old.colour)
        if free and old.colour not in _neighbours(new, rule.name):
            second = new.part(rule.name).second
            second = second if second != old.colour else new.part(rule.name).colour
            new = new.with_part(rule.name, colour=old.colour, second=second)
    return new
