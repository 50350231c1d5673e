"""Batches of rays: pixels drawn evenly from all training images, a function of (seed, step) alone."""

from typing import Any

import numpy as np
from jaxtyping import Bool, UInt32

from jaxedit.scene.scene import Views
from jaxvid.core.errors import UserError


class RayBatches:
    """An endless iterator over {"view": [b] int32, "pixel": [b, 2] int32, "colour": [b, c] uint8}, c = 3 or 4.

    `pixel` is (column, row). Step n draws `rays` pixels, with replacement, of those that the masks let count; this
    process's part is the index-th of `count` equal parts. `get_state` is the number of batches given.
    """

    def __init__(
        self,
        views: Views,
        rays: int,
        *,
        seed: tuple[int, ...],
        index: int = 0,
        count: int = 1,
        state: int | None = None,
    ):
        if rays % count:
            raise UserError(f"rays is {rays}; it must be a multiple of the {count} processes")
        self._views, self._rays, self._seed = views, rays, seed
        self._part = slice(index * rays // count, (index + 1) * rays // count)
        self._step = state or 0
        self._colour = views.images.reshape(-1, views.images.shape[-1])
        self._counting = None if views.masks is None else _true_places(views.masks)
        if self._counting is not None and not len(self._counting):
            raise UserError("the masks leave no pixel to train on; correct them")

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((*self._seed, self._step))
        self._step += 1
        total = len(self._colour) if self._counting is None else len(self._counting)
        place = rng.integers(0, total, self._rays)[self._part]
        if self._counting is not None:
            place = self._counting[place]
        width, height = self._views.cameras.width, self._views.cameras.height
        view, row, column = np.unravel_index(place, (len(self._views), height, width))
        return {
            "view": view.astype(np.int32),
            "pixel": np.stack([column, row], axis=-1).astype(np.int32),
            "colour": self._colour[place],
        }

    def get_state(self) -> Any:
        """How many batches have been given."""
        return self._step


def _true_places(masks: Bool[np.ndarray, "n h w"]) -> UInt32[np.ndarray, "k"]:
    """The places of all True, counted through; 4 bytes each and image by image, as there may be 10^8."""
    size = masks[0].size
    if len(masks) * size > np.iinfo(np.uint32).max:
        raise UserError(
            f"masks of {len(masks)} x {size} pixels are too many; set data.size smaller"
        )
    return np.concatenate(
        [
            np.flatnonzero(mask).astype(np.uint32) + np.uint32(i * size)
            for i, mask in enumerate(masks)
        ]
    )
