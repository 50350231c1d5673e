"""What toy objects are made of: named parts, and where each is fixed to another.

Sizes are half edges (x, y, z) in a unit of the template's own; an object is scaled to the world as a whole. A part with
a parent is fixed to the parent's surface in the direction `at`, given in the parent's half edges from its middle, a
little below the surface (`depth` is the share of the way from the middle). The point of the part that comes there is
`by`, in its own half edges: (0, 0, -1) is its foot. So whatever is resized or swapped for another shape, parts touch.

The front is -y, up is +z.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Triple = tuple[float, float, float]

FOOT: Triple = (0.0, 0.0, -1.0)
MIDDLE: Triple = (0.0, 0.0, 0.0)
UP: Triple = (0.0, 0.0, 1.0)


@dataclass(frozen=True)
class PartRule:
    """A part. kinds: the shapes that it may have, the usual one first.

    turn: (axis, degrees), of its own axes against the object's. needed: the object always has it.
    plural: its name is ("the legs"). shrinks: smaller it still shows.
    """

    name: str
    kinds: tuple[str, ...]
    size: Triple
    parent: str | None = None
    at: Triple = UP
    by: Triple = FOOT
    depth: float = 0.94
    turn: tuple[str, float] = ("x", 0.0)
    mirror: str = ""
    needed: bool = False
    plural: bool = False
    shrinks: bool = True

    def rotation(self) -> Float[np.ndarray, "3 3"]:
        """Own axes to the object's."""
        axis, angle = "xyz".index(self.turn[0]), math.radians(self.turn[1])
        i, j = (axis + 1) % 3, (axis + 2) % 3
        rotation = np.eye(3)
        rotation[[i, j], [i, j]] = math.cos(angle)
        rotation[i, j], rotation[j, i] = -math.sin(angle), math.sin(angle)
        return rotation


_FORWARDS = ("x", 90.0)  # turns +z to -y
_DOWN = ("x", 180.0)

TEMPLATES: dict[str, tuple[PartRule, ...]] = {
    "snowman": (
        PartRule("body", ("sphere", "box", "cylinder", "dome"), (0.42, 0.42, 0.42), needed=True),
        PartRule(
            "head",
            ("sphere", "box", "cylinder"),
            (0.28, 0.28, 0.28),
            "body",
            depth=0.85,
            needed=True,
        ),
        PartRule("hat", ("cylinder", "cone", "dome", "box"), (0.2, 0.2, 0.17), "head", depth=0.86),
        PartRule(
            "nose",
            ("cone", "sphere", "capsule"),
            (0.07, 0.07, 0.16),
            "head",
            (0.0, -1.0, 0.0),
            turn=_FORWARDS,
        ),
        PartRule(
            "arms",
            ("capsule", "cylinder", "cone"),
            (0.055, 0.055, 0.24),
            "body",
            (1.0, 0.0, 0.45),
            depth=0.85,
            turn=("y", 60.0),
            mirror="x",
            plural=True,
        ),
        PartRule(
            "scarf", ("torus",), (0.29, 0.29, 0.08), "body", by=MIDDLE, depth=0.9, shrinks=False
        ),
    ),
    "table": (
        PartRule("top", ("box", "cylinder"), (0.6, 0.46, 0.055), needed=True),
        PartRule(
            "legs",
            ("cylinder", "box"),
            (0.06, 0.06, 0.3),
            "top",
            (0.8, 0.8, -1.0),
            UP,
            mirror="xy",
            needed=True,
            plural=True,
        ),
        PartRule(
            "vase",
            ("cylinder", "box", "sphere", "capsule"),
            (0.11, 0.11, 0.15),
            "top",
            (0.35, 0.0, 1.0),
        ),
        PartRule("flower", ("sphere", "cone", "dome"), (0.13, 0.13, 0.12), "vase"),
        PartRule(
            "bowl",
            ("dome", "cone", "sphere"),
            (0.19, 0.19, 0.12),
            "top",
            (-0.45, -0.1, 1.0),
            UP,
            turn=_DOWN,
        ),
    ),
    "mushroom": (
        PartRule("stem", ("cylinder", "capsule", "box"), (0.17, 0.17, 0.36), needed=True),
        PartRule(
            "cap",
            ("dome", "cone", "sphere", "box"),
            (0.5, 0.5, 0.25),
            "stem",
            depth=0.8,
            needed=True,
        ),
        PartRule("knob", ("sphere", "box", "cone"), (0.1, 0.1, 0.1), "cap", by=MIDDLE),
        PartRule(
            "collar",
            ("torus", "cylinder", "box"),
            (0.27, 0.27, 0.07),
            "stem",
            MIDDLE,
            by=MIDDLE,
            shrinks=False,
        ),
        PartRule(
            "door",
            ("box", "prism", "capsule"),
            (0.09, 0.05, 0.13),
            "stem",
            (0.0, -1.0, -0.6),
            by=MIDDLE,
        ),
        PartRule(
            "mound",
            ("dome", "cylinder", "box"),
            (0.4, 0.4, 0.1),
            "stem",
            (0.0, 0.0, -1.0),
            by=UP,
            depth=0.8,
        ),
    ),
    "lamp": (
        PartRule("base", ("cylinder", "box", "dome"), (0.32, 0.32, 0.06), needed=True),
        PartRule("pole", ("cylinder",), (0.045, 0.045, 0.42), "base", needed=True),
        PartRule(
            "shade",
            ("cone", "dome", "cylinder", "sphere", "box"),
            (0.36, 0.36, 0.22),
            "pole",
            by=(0.0, 0.0, -0.5),
            needed=True,
        ),
        PartRule(
            "knob",
            ("sphere", "box", "cone"),
            (0.09, 0.09, 0.09),
            "shade",
            by=MIDDLE,
            depth=0.97,
        ),
        PartRule(
            "switch", ("box", "sphere", "dome"), (0.07, 0.07, 0.05), "base", (0.0, -0.65, 1.0)
        ),
    ),
    "tree": (
        PartRule("trunk", ("cylinder", "box"), (0.1, 0.1, 0.3), needed=True),
        PartRule(
            "leaves",
            ("cone", "sphere", "dome", "cylinder", "box"),
            (0.42, 0.42, 0.42),
            "trunk",
            depth=0.75,
            needed=True,
            plural=True,
        ),
        PartRule(
            "apples",
            ("sphere", "box", "torus"),
            (0.09, 0.09, 0.09),
            "leaves",
            (0.6, 0.6, -0.4),
            MIDDLE,
            mirror="xy",
            plural=True,
        ),
        PartRule(
            "pot",
            ("cylinder", "box", "dome"),
            (0.24, 0.24, 0.14),
            "trunk",
            (0.0, 0.0, -1.0),
            by=(0.0, 0.0, 0.6),
        ),
        PartRule("ornament", ("sphere", "cone", "box"), (0.1, 0.1, 0.1), "leaves", by=MIDDLE),
    ),
    "house": (
        PartRule("walls", ("box", "cylinder"), (0.44, 0.4, 0.3), needed=True, plural=True),
        PartRule(
            "roof",
            ("prism", "cone", "dome", "box"),
            (0.54, 0.48, 0.21),
            "walls",
            depth=0.98,
            needed=True,
        ),
        PartRule(
            "door",
            ("box", "prism", "capsule"),
            (0.1, 0.05, 0.17),
            "walls",
            (0.0, -1.0, -0.97),
            by=FOOT,
        ),
        PartRule(
            "windows",
            ("box", "cylinder", "torus", "sphere"),
            (0.08, 0.08, 0.05),
            "walls",
            (0.62, -1.0, 0.3),
            MIDDLE,
            depth=1.0,
            turn=_FORWARDS,
            mirror="x",
            plural=True,
        ),
        PartRule(
            "chimney", ("box", "cylinder"), (0.075, 0.075, 0.2), "roof", (0.5, 0.3, 0.6), MIDDLE
        ),
        PartRule("lawn", ("cylinder", "box"), (0.62, 0.62, 0.04), "walls", (0.0, 0.0, -1.0), UP),
    ),
    "robot": (
        PartRule("body", ("box", "cylinder", "capsule", "sphere"), (0.3, 0.22, 0.32), needed=True),
        PartRule(
            "head",
            ("box", "sphere", "cylinder", "dome"),
            (0.21, 0.18, 0.18),
            "body",
            depth=0.92,
            needed=True,
        ),
        PartRule(
            "arms",
            ("capsule", "box", "cylinder"),
            (0.075, 0.075, 0.27),
            "body",
            (1.0, 0.0, 0.6),
            (0.0, 0.0, 0.75),
            turn=("y", -20.0),
            mirror="x",
            plural=True,
        ),
        PartRule(
            "legs",
            ("box", "cylinder", "capsule"),
            (0.09, 0.1, 0.2),
            "body",
            (0.5, 0.0, -1.0),
            (0.0, 0.0, 0.9),
            mirror="x",
            needed=True,
            plural=True,
        ),
        PartRule(
            "antenna", ("capsule", "cone", "cylinder", "sphere"), (0.035, 0.035, 0.15), "head"
        ),
        PartRule(
            "eyes",
            ("sphere", "cylinder", "torus", "box"),
            (0.06, 0.06, 0.05),
            "head",
            (0.45, -1.0, 0.2),
            MIDDLE,
            turn=_FORWARDS,
            mirror="x",
            plural=True,
        ),
    ),
    "rocket": (
        PartRule("body", ("cylinder", "capsule", "box"), (0.21, 0.21, 0.42), needed=True),
        PartRule(
            "nose", ("cone", "dome", "sphere"), (0.21, 0.21, 0.2), "body", depth=0.97, needed=True
        ),
        PartRule(
            "fins",
            ("prism", "box", "cone"),
            (0.16, 0.04, 0.17),
            "body",
            (1.0, 1.0, -0.75),
            (-0.45, 0.0, 0.0),
            turn=("z", 45.0),
            mirror="xy",
            plural=True,
        ),
        PartRule(
            "window",
            ("cylinder", "sphere", "torus", "box"),
            (0.1, 0.1, 0.05),
            "body",
            (0.0, -1.0, 0.35),
            MIDDLE,
            turn=_FORWARDS,
        ),
        PartRule(
            "engine",
            ("cone", "cylinder", "dome"),
            (0.2, 0.2, 0.12),
            "body",
            (0.0, 0.0, -1.0),
            (0.0, 0.0, 0.4),
            needed=True,
        ),
        PartRule(
            "flame",
            ("cone", "sphere", "capsule"),
            (0.13, 0.13, 0.16),
            "engine",
            (0.0, 0.0, -1.0),
            turn=_DOWN,
        ),
    ),
    "car": (
        PartRule("body", ("box", "prism"), (0.27, 0.6, 0.16), needed=True),
        PartRule(
            "cabin",
            ("box", "dome", "cylinder"),
            (0.23, 0.3, 0.16),
            "body",
            (0.0, 0.1, 1.0),
            needed=True,
        ),
        PartRule(
            "wheels",
            ("cylinder", "sphere", "torus"),
            (0.16, 0.16, 0.07),
            "body",
            (1.0, 0.6, -0.8),
            MIDDLE,
            turn=("y", 90.0),
            mirror="xy",
            needed=True,
            plural=True,
        ),
        PartRule(
            "lights",
            ("sphere", "cylinder", "box"),
            (0.08, 0.08, 0.06),
            "body",
            (0.6, -1.0, 0.0),
            MIDDLE,
            turn=_FORWARDS,
            mirror="x",
            plural=True,
        ),
        PartRule("flag", ("cone", "capsule", "sphere"), (0.07, 0.07, 0.17), "cabin"),
    ),
}
