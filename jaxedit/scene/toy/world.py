"""Toy scenes in words and numbers: what exists, where it stands, and how one is drawn at random.

A `ToyScene` is one object of a template over a plain background, in the box [-1, 1]^3, z up; there is no ground. It
says which part has which shape, size, colours and texture; `stage` places the parts and gives the arrays that `trace`
renders. Nothing else decides how it looks.

A scene depends on (seed, index, split) alone, on every machine and release (`jaxvid.data.shapes.world.Draws`).
Some (template, part, colour) triples never occur in the split "train": see `held_out`.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float

from jaxedit.scene.toy.sdf import KINDS, Solids
from jaxedit.scene.toy.templates import TEMPLATES, PartRule, Triple
from jaxedit.scene.toy.trace import TEXTURES, Light, Stage
from jaxvid.core.errors import UserError
from jaxvid.data.shapes.world import Draws

ToySplit: TypeAlias = Literal["train", "heldout", "all"]
Vector: TypeAlias = Float[np.ndarray, "3"]

MAX_PARTS = 6
COLOURS: dict[str, Triple] = {
    "red": (0.88, 0.13, 0.14),
    "orange": (1.0, 0.52, 0.08),
    "yellow": (0.98, 0.88, 0.16),
    "green": (0.15, 0.65, 0.22),
    "cyan": (0.2, 0.85, 0.88),
    "blue": (0.16, 0.28, 0.92),
    "purple": (0.5, 0.18, 0.7),
    "pink": (1.0, 0.55, 0.75),
    "brown": (0.42, 0.24, 0.12),
    "white": (0.96, 0.96, 0.96),
}
SKIES: tuple[Triple, ...] = ((0.66, 0.68, 0.71), (0.6, 0.74, 0.9), (0.8, 0.73, 0.62))
NIGHT_SKY: Triple = (0.1, 0.11, 0.22)
# (sun, ambient) of the two times: an upward face turned to the sun has a factor of about 1 by day.
LIGHTS: dict[str, tuple[Triple, Triple]] = {
    "day": ((0.38, 0.37, 0.34), (0.66, 0.66, 0.68)),
    "night": ((0.26, 0.3, 0.42), (0.42, 0.44, 0.58)),
}
SUN_ELEVATION = (math.radians(35.0), math.radians(65.0))

PLAIN, USUAL, OPTIONAL, DAY = 0.6, 0.7, 0.65, 0.8  # probabilities
SIZE_RANGE, TALL_RANGE = (0.88, 1.14), (0.92, 1.12)
BIG, SMALL = 1.2, 0.84  # sizes relative to the usual from which a part is called so
# The largest coordinate of a new object, and of one with all its optional parts.
FIT, FIT_ALL = 0.84, 0.97
FAR = 1.18  # how far from the middle a new object reaches, so that `capture` sees all of it
REACH = 0.99  # the largest coordinate of an edited one


@dataclass(frozen=True)
class ToyPart:
    """One part. size: half edges in the template's unit; factor: what edits made of it, 1 at first.

    colour, second: names in COLOURS; the second is that of the texture's marks.
    """

    kind: str
    size: Triple
    colour: str
    second: str
    texture: str
    present: bool
    factor: float = 1.0

    @property
    def size_word(self) -> str | None:
        """Either "big" or "small", or None for the usual size."""
        return "big" if self.factor > BIG else "small" if self.factor < SMALL else None


@dataclass(frozen=True)
class ToyScene:
    """One object. Its parts are those of TEMPLATES[template], in that order; a part's label is its position.

    heading: turn about z, radians. scale: world units a template unit. lift: z of the template's origin in the world.
    sun: azimuth and elevation of the sun or moon, radians. sky: the background by day.
    """

    template: str
    parts: tuple[ToyPart, ...]
    heading: float
    scale: float
    lift: float
    light: Literal["day", "night"]
    sun: tuple[float, float]
    sky: Triple

    @property
    def rules(self) -> tuple[PartRule, ...]:
        """The rules of its parts."""
        return TEMPLATES[self.template]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts that are there."""
        return tuple(r.name for r, p in zip(self.rules, self.parts, strict=True) if p.present)

    def label(self, name: str) -> int:
        """The label of a part, whether it is there or not."""
        for i, rule in enumerate(self.rules):
            if rule.name == name:
                return i
        known = ", ".join(rule.name for rule in self.rules)
        raise UserError(f"a {self.template} has no part {name!r}; its parts are {known}")

    def part(self, name: str) -> ToyPart:
        """The part of that name."""
        return self.parts[self.label(name)]

    def with_part(self, name: str, **changes) -> "ToyScene":
        """The scene with some fields of a part replaced."""
        i = self.label(name)
        parts = (*self.parts[:i], replace(self.parts[i], **changes), *self.parts[i + 1 :])
        return replace(self, parts=parts)

    def stage(self) -> Stage:
        """The arrays of the scene, padded to MAX_PARTS."""
        places = placed(self.template, self.parts)
        rows = [self._solid(i, *place) for i, place in enumerate(places)]
        rows += [replace(rows[0], present=np.array(False))] * (MAX_PARTS - len(rows))
        solids = Solids(*(np.stack(column) for column in zip(*map(_fields, rows), strict=True)))
        azimuth, elevation = self.sun
        direction = np.array([math.cos(azimuth), math.sin(azimuth), math.tan(elevation)])
        sun, ambient = LIGHTS[self.light]
        light = Light(
            direction=(direction / np.linalg.norm(direction)).astype(np.float32),
            sun=np.array(sun, np.float32),
            ambient=np.array(ambient, np.float32),
            background=np.array(self.sky if self.light == "day" else NIGHT_SKY, np.float32),
        )
        heading = np.array([math.cos(self.heading), math.sin(self.heading)], np.float32)
        return Stage(solids, light, heading)

    def _solid(self, i: int, centre: Vector, size: Vector) -> Solids:
        part, rule = self.parts[i], self.rules[i]
        return Solids(
            kind=np.array(KINDS.index(part.kind), np.int32),
            centre=(self.scale * centre + [0.0, 0.0, self.lift]).astype(np.float32),
            rotation=rule.rotation().astype(np.float32),
            size=(self.scale * size).astype(np.float32),
            mirror=np.array(["x" in rule.mirror, "y" in rule.mirror]),
            colour=np.array(COLOURS[part.colour], np.float32),
            second=np.array(COLOURS[part.second], np.float32),
            texture=np.array(TEXTURES.index(part.texture), np.int32),
            present=np.array(part.present),
        )

    def bounds(self) -> Float[np.ndarray, "2 3"]:
        """A box (lowest, highest) in world axes that holds the parts that are there; tight for most shapes."""
        low, high = extent(self.template, self.parts, self.heading, optional=False)
        lift = np.array([0.0, 0.0, self.lift])
        return np.stack([self.scale * low + lift, self.scale * high + lift])


def _fields(solids: Solids) -> tuple:
    return tuple(vars(solids).values())


def held_out(template: str, part: str, colour: str) -> bool:
    """Whether the triple is kept out of the train split: one colour in ten of every part.

    With the part fixed the sum below takes every residue, so each part is trained in nine colours; with template and
    colour fixed 7 p repeats no residue, so each colour is trained on all parts of a template but one.
    """
    t = tuple(TEMPLATES).index(template)
    p = next(i for i, rule in enumerate(TEMPLATES[template]) if rule.name == part)
    return (3 * t + 7 * p + tuple(COLOURS).index(colour)) % len(COLOURS) == 0


def has_held_out(scene: ToyScene) -> bool:
    """Whether any part that is there has a held-out colour."""
    return any(held_out(scene.template, name, scene.part(name).colour) for name in scene.names)


def toy_scene(
    seed: int = 0, index: int = 0, *, split: ToySplit = "train", template: str | None = None
) -> ToyScene:
    """The scene number `index` (>= 0): a pure function of its arguments.

    split: "train" has no held-out triple, "heldout" at least one, "all" ignores the rule.
    """
    check_draw(split, seed, index)
    if template is not None and template not in TEMPLATES:
        raise UserError(f"toy scene: template {template!r}; choose from {', '.join(TEMPLATES)}")
    draws = Draws(seed, index, 0)
    name = draws.choice(tuple(TEMPLATES))
    scene = draw_object(draws, template or name, split, draws.uniform(0.0, 2 * math.pi))
    return replace(
        scene,
        light="day" if draws.uniform() < DAY else "night",
        sun=(draws.uniform(0.0, 2 * math.pi), draws.uniform(*SUN_ELEVATION)),
        sky=draws.choice(SKIES),
    )


def check_draw(split: str, seed: int, index: int = 0) -> None:
    """Raises `UserError` for a name that is no split, or negative numbers."""
    if split not in get_args(ToySplit):
        raise UserError(f"toy scene: split {split!r}; choose from {', '.join(get_args(ToySplit))}")
    if seed < 0 or index < 0:
        raise UserError(f"toy scene: seed {seed}, index {index}; both must be >= 0")


def draw_object(draws: Draws, template: str, split: ToySplit, heading: float) -> ToyScene:
    """An object of the template in daylight, scaled to the box."""
    rules = TEMPLATES[template]
    parts: list[ToyPart] = []
    for rule in rules:
        kind = rule.kinds[0] if draws.uniform() < USUAL else draws.choice(rule.kinds)
        factor, tall = draws.uniform(*SIZE_RANGE), draws.uniform(*TALL_RANGE)
        x, y, z = rule.size
        parent = next((i for i, r in enumerate(rules) if r.name == rule.parent), None)
        texture = "plain" if draws.uniform() < PLAIN else draws.choice(TEXTURES[1:])
        # A part in its parent's colour would be hard to see, and hard to speak of.
        taken = set() if parent is None else {parts[parent].colour}
        colour = draws.choice(free_colours(template, rule.name, split, taken))
        second = draws.choice([c for c in COLOURS if c != colour])
        shown = rule.needed or draws.uniform() < OPTIONAL
        shown = shown and (parent is None or parts[parent].present)
        size = (factor * x, factor * y, factor * tall * z)
        parts.append(ToyPart(kind, size, colour, second, texture, shown))
    if split == "heldout":
        parts = _with_held_out(draws, template, parts)
    scale, lift = _fitted(template, tuple(parts), heading)
    return ToyScene(template, tuple(parts), heading, scale, lift, "day", (0.0, 1.0), SKIES[0])


def _fitted(template: str, parts: tuple[ToyPart, ...], heading: float) -> tuple[float, float]:
    """Scale and lift: the object in the middle, but with room for the parts that it lacks."""
    scale = math.inf
    limits = {False: FIT, True: FIT_ALL}
    found = {optional: extent(template, parts, heading, optional=optional) for optional in limits}
    for optional, (low, high) in found.items():
        reach = max(-low[0], high[0], -low[1], high[1], (high[2] - low[2]) / 2)
        scale = min(scale, limits[optional] / float(reach))
        if not optional:
            across = np.maximum(-low, high)[:2]
            scale = min(scale, FAR / math.hypot(*across, (high[2] - low[2]) / 2))
    (low, high), (lowest, highest) = found[False], found[True]
    lift = -scale * float(high[2] + low[2]) / 2
    lift = min(max(lift, -FIT_ALL - scale * float(lowest[2])), FIT_ALL - scale * float(highest[2]))
    return scale, lift


def free_colours(template: str, part: str, split: ToySplit, taken: set[str]) -> list[str]:
    """The colours that a part may get; none is held out, unless the split is "all"."""
    return [
        colour
        for colour in COLOURS
        if colour not in taken and (split == "all" or not held_out(template, part, colour))
    ]


def _with_held_out(draws: Draws, template: str, parts: list[ToyPart]) -> list[ToyPart]:
    i = draws.choice([i for i, part in enumerate(parts) if part.present])
    name = TEMPLATES[template][i].name
    colour = next(c for c in COLOURS if held_out(template, name, c))
    second = draws.choice([c for c in COLOURS if c != colour])
    return [*parts[:i], replace(parts[i], colour=colour, second=second), *parts[i + 1 :]]


def placed(template: str, parts: tuple[ToyPart, ...]) -> list[tuple[Vector, Vector]]:
    """Centre and size of every part, in the template's unit and axes."""
    found: dict[str, tuple[str, Vector, Vector]] = {}
    for rule, part in zip(TEMPLATES[template], parts, strict=True):
        size = legal_size(part.kind, part.factor * np.array(part.size))
        centre = np.zeros(3)
        if rule.parent is not None:
            kind, parent_centre, parent_size = found[rule.parent]
            towards = np.array(rule.at) * parent_size
            point = parent_centre + rule.depth * surface_scale(kind, parent_size, towards) * towards
            centre = point - rule.rotation() @ (np.array(rule.by) * size)
        found[rule.name] = (part.kind, centre, size)
    return [(centre, size) for _, centre, size in found.values()]


def legal_size(kind: str, size: Vector) -> Vector:
    """The size of a solid of that kind nearest to the half edges wanted (see `sdf` for what each kind allows)."""
    radius = math.sqrt(size[0] * size[1])
    z = float(size[2])
    if kind in ("box", "prism"):
        return size
    if kind == "sphere":
        radius = z = float(np.cbrt(size.prod()))
    elif kind == "torus":
        z = min(z, 0.4 * radius)
    elif kind == "capsule":
        z = max(z, radius)
    elif kind == "dome":
        z = radius / 2
    return np.array([radius, radius, z])


def surface_scale(kind: str, size: Vector, towards: Vector) -> float:
    """The factor that brings a vector from a convex solid's middle to its surface; 0 for the zero vector."""
    if not towards.any():
        return 0.0
    x, y, z = np.abs(towards / size)
    rho = math.hypot(x, y)
    if kind in ("cone", "prism"):
        rising = float(towards[2] / size[2])
        across = rho if kind == "cone" else x
        return float(1.0 / max(2 * across + rising, -rising, 0.0 if kind == "cone" else y))
    if kind == "cylinder":
        return float(1.0 / max(rho, z))
    if kind == "box":
        return float(1.0 / max(x, y, z))
    if kind == "dome":  # of a ball around the middle of its flat side
        flat = size[2] / -towards[2] if towards[2] < 0 else math.inf
        return min(flat, _to_ball(towards, np.array([0.0, 0.0, -size[2]]), size[0]))
    core = size[2] - size[0] if kind == "capsule" else 0.0
    side = 1.0 / rho if rho > 0 else math.inf
    if side * abs(towards[2]) <= core:
        return side
    return _to_ball(towards, np.array([0.0, 0.0, math.copysign(core, towards[2])]), size[0])


def _to_ball(towards: Vector, middle: Vector, radius: float) -> float:
    """The s > 0 with |s towards - middle| = radius, for a ball that holds the origin."""
    square, along = float(towards @ towards), float(towards @ middle)
    return (along + math.sqrt(along**2 - square * float(middle @ middle - radius**2))) / square


def extent(
    template: str, parts: tuple[ToyPart, ...], heading: float, *, optional: bool
) -> tuple[Vector, Vector]:
    """(lowest, highest) in the template's unit, world axes. optional: count parts that are not there."""
    cos, sin = math.cos(heading), math.sin(heading)
    axes = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])  # columns: world axes
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    rows = zip(TEMPLATES[template], parts, placed(template, parts), strict=True)
    for rule, part, (centre, size) in rows:
        if not (part.present or optional):
            continue
        for sx in (1.0, -1.0) if "x" in rule.mirror else (1.0,):
            for sy in (1.0, -1.0) if "y" in rule.mirror else (1.0,):
                directions = np.array([[sx], [sy], [1.0]]) * axes
                own = np.abs(rule.rotation().T @ directions)
                if part.kind in ("box", "prism"):
                    reach = size @ own
                elif part.kind == "sphere":
                    reach = np.full(3, size[0])
                else:  # of the cylinder around it
                    reach = size[0] * np.hypot(own[0], own[1]) + size[2] * own[2]
                middle = centre @ directions
                low, high = np.minimum(low, middle - reach), np.maximum(high, middle + reach)
    return low, high
