"""The `shapes` world as a source: endless captioned clips, rendered when they are read.

Example i is scene i of the world. Its first frames are the clip; a single image is a random frame of it, with a
caption that states no motion. Nothing is stored, and nothing is rendered beyond the frames that are asked for.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from jaxvid.core.errors import UserError
from jaxvid.data.shapes import ShapesConfig, caption, render, sample_scene
from jaxvid.data.source import Example

SCENES = 2**31 - 1  # scenes a split: more than any run reads
_VARIANTS = 2**31


class ShapesSource:
    """Scenes `first .. first + SCENES - 1` of a world, `frames` of each."""

    captioned = True
    classes = 0

    def __init__(
        self, world: ShapesConfig, frames: int, first: int = 0, skips: tuple[int, ...] = (1,)
    ):
        self.skips = skips
        self.world = world
        self.frames = frames
        self.first = first

    def __len__(self) -> int:
        return SCENES

    def __repr__(self) -> str:
        return f"ShapesSource({self.world}, {self.frames} frames, from {self.first}, skips {self.skips})"

    def name(self, index: int) -> str:
        """The scene's number."""
        return f"scene {self.first + index}"

    def wording(self, index: int, rng: np.random.Generator, still: bool) -> str:
        """A caption of scene `index` in words that `rng` chooses, without drawing the scene."""
        scene = sample_scene(self.world, self.first + index)
        return caption(scene, int(rng.integers(_VARIANTS)), still)

    def __getitem__(self, index: int) -> Example:
        return self.read(index, None)

    def read(
        self, index: int, rng: np.random.Generator | None, frames: int | None = None
    ) -> Example:
        """Renders scene `index`; `rng` chooses the wording and, for an image, the moment."""
        count = self.frames if frames is None else frames
        number = self.first + index
        scene = sample_scene(self.world, number)
        variant = number if rng is None else int(rng.integers(_VARIANTS))
        start = 0 if rng is None or count > 1 else int(rng.integers(self.world.frames))
        rate = 0
        if rng is not None and count > 1 and len(self.skips) > 1:
            rate = int(rng.integers(len(self.skips)))
        skip = self.skips[rate]
        video = render(scene, (count - 1) * skip + 1, *self.world.height_width, start)[::skip]
        example = Example(video=video, caption=caption(scene, variant, count == 1), label=None)
        if len(self.skips) > 1:
            example["rate"] = rate
        return example


@dataclass(frozen=True)
class ShapesData:
    """Clips of the procedural world; no files.

    world: what is drawn. length: frames a clip where it differs from the world's own; 1 gives single images.
    skips: frame skips, of which a training clip takes one at random.
    Splits: "train"; "test", other scenes of the same kind; "heldout", scenes of (shape, colour, motion) triples that
    the others never show.
    """

    world: ShapesConfig = field(default_factory=ShapesConfig)
    length: int | None = None
    skips: tuple[int, ...] = (1,)

    def __post_init__(self):
        if self.length is not None and self.length < 1:
            raise UserError(f"length is {self.length}; it must be 1 or more")

    @property
    def frames(self) -> int:
        """Frames a clip."""
        return self.world.frames if self.length is None else self.length

    @property
    def height(self) -> int:
        """Pixels."""
        return self.world.height_width[0]

    @property
    def width(self) -> int:
        """Pixels."""
        return self.world.height_width[1]

    def source(self, split: Literal["train", "test", "heldout"] = "train") -> ShapesSource:
        """Opens a split."""
        if split == "heldout":
            world = dataclasses.replace(self.world, split="heldout")
            return ShapesSource(world, self.frames, 0, self.skips)
        first = 0 if split == "train" else SCENES
        return ShapesSource(self.world, self.frames, first, self.skips)
