"""Batches of patches: squares of pixels, drawn evenly from all views, a function of (seed, step) alone.

They say only where; the colours are those that the working images have when the step begins.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool

from jaxvid.core.errors import UserError


class PatchBatches:
    """An endless iterator over {"view": [b] int32, "corner": [b, 2] int32}; with masks also "counts": [b, side, side] bool.

    `corner` is (column, row) of a patch's first pixel. This process's part is the index-th of `count` equal parts.
    `get_state` is the number of batches given. masks: True where a pixel counts.
    """

    def __init__(
        self,
        views: int,
        height: int,
        width: int,
        patches: int,
        side: int,
        *,
        seed: tuple[int, ...],
        masks: Bool[np.ndarray, "n h w"] | None = None,
        index: int = 0,
        count: int = 1,
        state: int | None = None,
    ):
        if patches % count:
            raise UserError(f"patches is {patches}; it must be a multiple of the {count} processes")
        if side > min(height, width):
            raise UserError(
                f"training.side is {side}, and the images are {width}x{height} pixels; set it to {min(height, width)} or less"
            )
        self._highest = np.array([views, width - side + 1, height - side + 1])
        self._patches, self._side, self._seed, self._masks = patches, side, seed, masks
        self._part = slice(index * patches // count, (index + 1) * patches // count)
        self._step = state or 0

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((*self._seed, self._step))
        self._step += 1
        place = rng.integers(0, self._highest, (self._patches, 3))[self._part].astype(np.int32)
        batch = {"view": place[:, 0], "corner": place[:, 1:]}
        if self._masks is not None:
            step = np.arange(self._side)
            rows = place[:, 2, None, None] + step[:, None]
            columns = place[:, 1, None, None] + step
            batch["counts"] = self._masks[place[:, 0, None, None], rows, columns]
        return batch

    def get_state(self) -> Any:
        """How many batches have been given."""
        return self._step
