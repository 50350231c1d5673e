"""The `shapes` world: what exists in a clip, how it moves, and how a clip is drawn at random.

Law of the file:

- A frame is a TORUS: what leaves on one side comes in at the other. So motion never stops at a wall and
  every window of a longer clip looks like a fresh clip, which makes extension far beyond the trained
  length a well-posed task. The one exception: growing and shrinking end at `RADIUS_LIMITS`.
- Positions `x`, `y` are fractions in [0, 1) of the frame's width and height, x to the right, y down.
  Lengths (radius, speed, orbit radius, hop height) are fractions of the frame's shorter side, so that a
  scene means the same at every resolution.
- Angles are radians, positive is clockwise as seen on the screen; time is the frame number.
- A scene depends on `(config, index)` alone. Draws use the raw bits of the Philox counter generator:
  numpy keeps those stable between releases, which it does not promise for `Generator` methods.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Float

from jaxvid.core.errors import UserError

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (225, 30, 35),
    "green": (30, 175, 55),
    "blue": (40, 70, 235),
    "yellow": (245, 225, 40),
    "cyan": (45, 220, 230),
    "magenta": (225, 50, 215),
    "white": (245, 245, 245),
}
BACKGROUNDS = {
    "black": (12, 12, 12),
    "gray": (128, 128, 128),
    "white": (245, 245, 245),
    "brown": (112, 70, 36),
}
SIZES = {"small": (0.132, 0.155), "large": (0.205, 0.24)}  # radius ranges
MOTIONS = (
    "moves right",
    "moves left",
    "moves up",
    "moves down",
    "spins",
    "orbits",
    "bounces",
    "grows",
    "shrinks",
)
DIRECTIONS = {  # unit vectors (x, y), y down
    "moves right": (1.0, 0.0),
    "moves left": (-1.0, 0.0),
    "moves up": (0.0, -1.0),
    "moves down": (0.0, 1.0),
}
ROUND = ("circle", "ring")  # nothing to see when these spin

MIN_CONTRAST = 130.0  # Euclidean RGB distance (0..255 units) between an object and its background
RADIUS_LIMITS = (0.06, 0.38)  # where growing and shrinking stop

# Kinematic ranges at pace 1.
SPEED = (0.75 / 32, 1.4 / 32)  # per frame
SPIN = (math.radians(8), math.radians(14))  # per frame
ORBIT_RADIUS = (5 / 32, 7 / 32)
ORBIT_PERIOD = (12.0, 20.0)  # frames
HOP_HEIGHT = (6 / 32, 9 / 32)
HOP_PERIOD = (8.0, 12.0)  # frames
GROWTH = (math.log(1.8) / 16, math.log(2.2) / 16)  # log radius per frame
GROWTH_START = (
    0.115,
    0.135,
)  # radius of a growing object at frame 0; a shrinking one runs backwards

_MAX_DRAWS = 2000
_T = TypeVar("_T")


@dataclass(frozen=True)
class ShapesConfig:
    """What clips are drawn. `size` is height = width, or (height, width).

    `two_objects` is the probability of two objects. `split`: "train" never shows a held-out
    (shape, colour, motion) triple, "heldout" gives one to the first object, "all" ignores the rule.
    `pace` multiplies every rate, for clips shorter than 16 frames. The last five fields narrow the choice.
    Raises UserError on values outside the world.
    """

    frames: int = 16
    size: int | tuple[int, int] = 32
    two_objects: int | float = 0.5
    seed: int = 0
    split: Literal["train", "heldout", "all"] = "train"
    pace: int | float = 1.0
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    sizes: tuple[str, ...] = tuple(SIZES)
    motions: tuple[str, ...] = MOTIONS

    def __post_init__(self):
        for name, known in (
            ("shapes", SHAPES),
            ("colours", COLOURS),
            ("backgrounds", BACKGROUNDS),
            ("sizes", SIZES),
            ("motions", MOTIONS),
            ("split", ("train", "heldout", "all")),
        ):
            value = getattr(self, name)
            for item in (value,) if name == "split" else value:
                if item not in known:
                    raise UserError(f"shapes: {name} has {item!r}; choose from {', '.join(known)}")
            if not value:
                raise UserError(f"shapes: {name} is empty; choose from {', '.join(known)}")
        if self.frames < 1 or min(self.height_width) < 8:
            raise UserError(
                f"shapes: {self.frames} frames of {self.size}; need >= 1 frame, >= 8 px"
            )
        if not 0 <= self.two_objects <= 1:
            raise UserError(f"shapes: two_objects is {self.two_objects}; give a probability 0..1")
        if self.two_objects > 0 and min(len(self.shapes), len(self.colours)) < 2:
            raise UserError(
                "shapes: two_objects > 0 needs two shapes and two colours; set two_objects=0 or add one"
            )
        if self.seed < 0 or not self.pace > 0:
            raise UserError(f"shapes: seed {self.seed}, pace {self.pace}; need seed >= 0, pace > 0")
        if not _triples(self):
            raise UserError(f"shapes: split {self.split!r} has no triple left; widen the choice")

    @property
    def height_width(self) -> tuple[int, int]:
        """Frame size in pixels."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)


@dataclass(frozen=True)
class Object:
    """One object. `size` is None while the radius changes (grows, shrinks).

    `x`, `y`: centre at frame 0; of the orbit for "orbits"; on the floor for "bounces".
    `rate` per frame: speed, angular speed (spins, orbits), hops (bounces), log radius (grows, shrinks).
    `extent`: orbit radius or hop height. `phase`: orbit angle, or hop fraction in [0, 1), at frame 0.
    """

    shape: str
    colour: str
    size: str | None
    motion: str
    x: float
    y: float
    radius: float
    angle: float = 0.0
    rate: float = 0.0
    extent: float = 0.0
    phase: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A background and one or two objects, the last drawn in front."""

    background: str
    objects: tuple[Object, ...]


class Draws:
    """A stream of random numbers fixed by three non-negative integers, on every machine and release."""

    def __init__(self, seed: int, index: int, stream: int):
        key = np.array([seed, index], np.uint64)
        self._bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in [low, high)."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def choice(self, items: Sequence[_T]) -> _T:
        """One of the items, all equally likely."""
        return items[int(self.uniform() * len(items))]

    def sign(self) -> float:
        """Plus or minus one."""
        return self.choice((-1.0, 1.0))


def possible(shape: str, motion: str) -> bool:
    """Whether the motion of such a shape can be seen."""
    return not (motion == "spins" and shape in ROUND)


def held_out(shape: str, colour: str, motion: str) -> bool:
    """Whether the triple is kept out of the train split.

    The rule (s + 2 c + 3 m) mod 10 = 0 on the positions in the tables takes a tenth. With two of the three
    fixed the sum moves through many residues, so every pair stays in the train split.
    """
    s, c, m = SHAPES.index(shape), tuple(COLOURS).index(colour), MOTIONS.index(motion)
    return (s + 2 * c + 3 * m) % 10 == 0


@functools.cache
def contrasts(colour: str, background: str) -> bool:
    """Whether an object of this colour is clearly visible on this background."""
    return math.dist(COLOURS[colour], BACKGROUNDS[background]) >= MIN_CONTRAST


@functools.lru_cache(maxsize=64)
def _triples(config: ShapesConfig) -> dict[str, tuple[tuple[str, str], ...]]:
    """Motion -> the (shape, colour) pairs that the config's split allows with it."""
    table = {}
    for motion in config.motions:
        pairs = tuple(
            (shape, colour)
            for shape in config.shapes
            for colour in config.colours
            if possible(shape, motion)
            and any(contrasts(colour, b) for b in config.backgrounds)
            and (
                config.split == "all" or held_out(shape, colour, motion) == _wants_held_out(config)
            )
        )
        if pairs:
            table[motion] = pairs
    return table


def _wants_held_out(config: ShapesConfig) -> bool:
    return config.split == "heldout"


def _draw_object(
    draws: Draws, config: ShapesConfig, shape: str, colour: str, motion: str
) -> Object:
    """Everything about an object that its triple leaves open."""
    size = draws.choice(config.sizes)
    radius = draws.uniform(*SIZES[size])
    x, y = draws.uniform(), draws.uniform()
    angle = rate = extent = phase = 0.0
    if motion in DIRECTIONS:
        rate = draws.uniform(*SPEED)
    elif motion == "spins":
        angle, rate = draws.uniform(0.0, 2 * math.pi), draws.uniform(*SPIN) * draws.sign()
    elif motion == "orbits":
        extent, phase = draws.uniform(*ORBIT_RADIUS), draws.uniform(0.0, 2 * math.pi)
        rate = draws.sign() * 2 * math.pi / draws.uniform(*ORBIT_PERIOD)
    elif motion == "bounces":
        extent, phase = draws.uniform(*HOP_HEIGHT), draws.uniform()
        rate = 1 / draws.uniform(*HOP_PERIOD)
    else:
        size, rate, radius = None, draws.uniform(*GROWTH), draws.uniform(*GROWTH_START)
        if motion == "shrinks":  # starts where 16 frames of growth at pace 1 would end
            radius, rate = radius * math.exp(16 * rate), -rate
    return Object(
        shape, colour, size, motion, x, y, radius, angle, rate * config.pace, extent, phase
    )


def sample_scene(config: ShapesConfig, index: int) -> Scene:
    """The scene number `index` (>= 0) of the config; a pure function of both.

    Attributes are drawn first and kept; only places and rates are drawn again while two objects hide each
    other, so rejection does not bias what is shown. Motions are equally likely, then the split's
    (shape, colour) pairs of that motion.
    """
    draws = Draws(config.seed, index, 0)
    count = 2 if draws.uniform() < config.two_objects else 1
    triples = [_draw_triple(draws, config)]
    others = config
    if config.split == "heldout":
        others = _train_twin(config)
    for _ in range(_MAX_DRAWS):
        if len(triples) == count:
            break
        shape, colour, motion = _draw_triple(draws, others)
        if shape != triples[0][0] and colour != triples[0][1]:
            both = [b for b in config.backgrounds if contrasts(colour, b)]
            if any(contrasts(triples[0][1], b) for b in both):
                triples.append((shape, colour, motion))
    backgrounds = [
        b for b in config.backgrounds if all(contrasts(colour, b) for _, colour, _ in triples)
    ]
    background = draws.choice(backgrounds)
    for _ in range(_MAX_DRAWS):
        objects = tuple(_draw_object(draws, config, *triple) for triple in triples)
        if len(objects) == 1 or _both_visible(objects, config):
            return Scene(background, objects)
    raise UserError(f"shapes: two objects do not fit into {config.size}; set two_objects=0")


@functools.lru_cache(maxsize=64)
def _train_twin(config: ShapesConfig) -> ShapesConfig:
    return replace(config, split="train")


def _draw_triple(draws: Draws, config: ShapesConfig) -> tuple[str, str, str]:
    table = _triples(config)
    motion = draws.choice(tuple(table))
    shape, colour = draws.choice(table[motion])
    return shape, colour, motion


def _both_visible(objects: tuple[Object, ...], config: ShapesConfig) -> bool:
    """Apart at frame 0 and overlapping in at most a quarter of the clip's frames."""
    height, width = config.height_width
    ax, ay, ar, _ = poses(objects[0], config.frames, height, width)
    bx, by, br, _ = poses(objects[1], config.frames, height, width)
    dx, dy = wrapped(ax - bx, width), wrapped(ay - by, height)
    gap = np.hypot(dx, dy) / (ar + br)  # 1 = two circles touch
    return bool(gap[0] > 1.15 and np.mean(gap < 0.95) <= 0.25)


def wrapped(offset: np.ndarray, side: int | float) -> np.ndarray:
    """The representative of an offset on a circle of length `side` that lies in [-side/2, side/2)."""
    return np.mod(offset + side / 2, side) - side / 2


def poses(
    item: Object, frames: int, height: int, width: int, start: int = 0
) -> tuple[Float[np.ndarray, " t"], ...]:
    """(x, y, radius, angle) at frames start .. start + frames - 1: pixels, pixels, pixels, radians.

    x and y are unwrapped: take them modulo width and height. Pixel i covers [i, i + 1).
    """
    time = np.arange(start, start + frames, dtype=np.float64)
    side = min(height, width)
    x, y = np.full(frames, item.x * width), np.full(frames, item.y * height)
    radius, angle = np.full(frames, item.radius), np.full(frames, item.angle)
    if item.motion in DIRECTIONS:
        ux, uy = DIRECTIONS[item.motion]
        x, y = x + side * item.rate * ux * time, y + side * item.rate * uy * time
    elif item.motion == "spins":
        angle = angle + item.rate * time
    elif item.motion == "orbits":
        turn = item.phase + item.rate * time
        x = x + side * item.extent * np.cos(turn)
        y = y + side * item.extent * np.sin(turn)
    elif item.motion == "bounces":  # parabolic hops: free fall between instant rebounds
        part = np.mod(item.phase + item.rate * time, 1.0)
        y = y - side * item.extent * 4 * part * (1 - part)
    else:
        radius = np.clip(radius * np.exp(item.rate * time), *RADIUS_LIMITS)
    return x, y, side * radius, angle


# 8x16x16 for experiments of minutes on a CPU; pace 1.5 shows three quarters of a 16-frame clip's motion.
SHAPES_TINY = ShapesConfig(
    frames=8,
    size=16,
    two_objects=0.0,
    pace=1.5,
    shapes=("circle", "square", "triangle", "cross"),
    colours=("red", "green", "blue", "yellow"),
    backgrounds=("black", "white"),
    sizes=("large",),
    motions=("moves right", "moves left", "moves up", "moves down", "bounces", "grows"),
)
