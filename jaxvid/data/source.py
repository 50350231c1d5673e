"""What a data set is to the pipeline, and clips out of longer videos.

A `Source` is a random-access list of examples. `source[i]` is the one fixed view of example i (first window, central
crop, first caption: for evaluation); `source.read(i, rng)` is a random view (for training), and depends on nothing
but i and the generator. `repr(source)` tells its content, so that a resumed run notices that the data have changed.

Clips: frames `k = 0 .. frames - 1` are taken at `start + round(k * step)`, with step a whole number (`stride`) or
the video's rate divided by the wanted one (`fps`). Space: the frame is scaled by the smallest factor that covers
`height x width` (area average when it shrinks, bilinear when it grows), then cropped to it.
"""

import contextlib
from dataclasses import dataclass
from typing import Literal, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxvid.core.errors import UserError
from jaxvid.data.media import MediaError

Split = Literal["train", "test"]


class Example(TypedDict):
    """One clip: uint8 `[t, h, w, 3]`, its caption and class if the data have them.

    rate: which of the source's frame skips the clip was taken with, where there are several.
    """

    video: np.ndarray
    caption: str | None
    label: int | None
    rate: NotRequired[int]


@runtime_checkable
class Source(Protocol):
    """A random-access list of examples of one shape. `__repr__` must tell the content, not the object."""

    @property
    def frames(self) -> int:
        """Frames a clip."""
        ...

    @property
    def captioned(self) -> bool:
        """Whether examples have captions."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes; 0 if examples have no labels."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def read(
        self, index: int, rng: np.random.Generator | None, frames: int | None = None
    ) -> Example:
        """A view of example `index`, random by `rng` or the fixed one; `frames=1` gives a single image.

        Raises `MediaError` if this example is damaged or too short; the pipeline then takes another one.
        """
        ...

    def name(self, index: int) -> str:
        """How messages call example `index`."""
        ...


@runtime_checkable
class DataConfig(Protocol):
    """What every data configuration offers: the clip's size and a source for each split."""

    @property
    def frames(self) -> int:
        """Frames a clip."""
        ...

    @property
    def height(self) -> int:
        """Pixels."""
        ...

    @property
    def width(self) -> int:
        """Pixels."""
        ...

    def source(self, split: Split = "train") -> Source:
        """Opens the split; raises `UserError` if it is absent or empty."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClipView:
    """Which frames and which part of them make a clip; the data configurations extend it.

    frames, height, width: size of the clip. stride: source frames a step. fps: frames a second instead of a stride.
    skips: factors of the step. A training clip takes one at random, of those for which its video is long enough, the fixed
    view the first; a model that is told which (`Example["rate"]`) makes clips of several frame rates. crop: where in the
    covering frame a training clip lies (the fixed view is central). flip: mirror half of the training clips left to right.
    """

    frames: int = 16
    height: int = 64
    width: int = 64
    stride: int = 1
    fps: int | float | None = None
    skips: tuple[int, ...] = (1,)
    crop: Literal["center", "random"] = "center"
    flip: bool = False

    def __post_init__(self):
        for name in ("frames", "height", "width", "stride"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise UserError(f"fps is {self.fps}; it must be above 0")
        if not self.skips or min(self.skips) < 1 or len(set(self.skips)) != len(self.skips):
            raise UserError(f"skips are {self.skips}; give different whole numbers of 1 or more")
        if self.fps is not None and self.stride != 1:
            raise UserError(f"both stride {self.stride} and fps {self.fps} are given; choose one")

    def view(self) -> "ClipView":
        """These fields alone, without those of the data configuration that extends them."""
        return ClipView(**{name: getattr(self, name) for name in ClipView.__dataclass_fields__})

    def positions(
        self,
        name: str,
        first: int,
        stop: int,
        fps: int | float,
        frames: int,
        rng: np.random.Generator | None,
        skip: int = 1,
    ) -> list[int]:
        """Source frames of a clip within `[first, stop)` of a video of rate `fps`; the start is random by `rng`."""
        step = float(self.stride)
        if self.fps is not None and frames > 1:
            if fps <= 0:
                raise MediaError(f"{name}: has no frame rate; give a stride instead of fps")
            step = fps / self.fps
            if step < 1:
                raise MediaError(
                    f"{name}: {fps:g} frames a second, {self.fps:g} are asked; lower fps or take it out"
                )
        step *= skip
        offsets = [round(k * step) for k in range(frames)]
        room = stop - first - offsets[-1]
        if room < 1:
            raise MediaError(
                f"{name}: {max(stop - first, 0)} frames, a clip of {frames} at step {step:g} needs "
                f"{offsets[-1] + 1}; ask for fewer frames or take it out"
            )
        start = first if rng is None else first + int(rng.integers(room))
        return [start + offset for offset in offsets]

    def fitting(self, name: str, first: int, stop: int, fps: int | float, frames: int) -> list[int]:
        """Numbers of those skips at which the video is long enough for a clip; the first skip if none is."""
        fits = []
        for number, skip in enumerate(self.skips):
            with contextlib.suppress(MediaError):
                self.positions(name, first, stop, fps, frames, None, skip)
                fits.append(number)
        return fits or [0]

    def cover(self, height: int, width: int) -> tuple[int, int]:
        """Size (h, w) of a source frame scaled to just cover the clip."""
        scale = max(self.height / height, self.width / width)
        return max(round(height * scale), self.height), max(round(width * scale), self.width)

    def resize(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
        """The source frame scaled to its covering size."""
        height, width = self.cover(*frame.shape[:2])
        if (height, width) == frame.shape[:2]:
            return frame
        shrinks = height <= frame.shape[0] and width <= frame.shape[1]
        kernel = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
        return np.asarray(Image.fromarray(frame).resize((width, height), kernel))

    def cut(
        self, video: UInt8[np.ndarray, "t hc wc 3"], rng: np.random.Generator | None
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """Crops covering frames to the clip's size and perhaps mirrors them."""
        free = video.shape[1] - self.height, video.shape[2] - self.width
        top, left = free[0] // 2, free[1] // 2
        if rng is not None and self.crop == "random":
            top, left = int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1))
        video = video[:, top : top + self.height, left : left + self.width]
        if rng is not None and self.flip and rng.random() < 0.5:
            video = video[:, :, ::-1]
        return np.ascontiguousarray(video)
