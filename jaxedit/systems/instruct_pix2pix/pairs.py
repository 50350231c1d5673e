"""Pictures of toy scenes before and after an edit, with its instruction: endless, a function of (seed, number) alone."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from jaxedit.scene.cameras import Cameras, pinhole_cameras
from jaxedit.scene.poses import look_at
from jaxedit.scene.scene import composite
from jaxedit.scene.toy.capture import ANGLE, ELEVATION, RADIUS, take
from jaxedit.scene.toy.edits import EditKind, ToyEdit, toy_edit
from jaxedit.scene.toy.world import ToySplit
from jaxedit.systems.instruct_pix2pix.config import PixToPixConfig
from jaxedit.systems.instruct_pix2pix.words import said, toy_tokenizer
from jaxvid.core.errors import UserError
from jaxvid.data.shapes.world import Draws

NEAREST, FARTHEST = 0.85, 1.25  # of the toy captures' distance, from which pictures are taken


@dataclass(frozen=True)
class Pair:
    """An edit seen by a camera: bytes over one background."""

    edit: ToyEdit
    before: UInt8[np.ndarray, "h w 3"]
    after: UInt8[np.ndarray, "h w 3"]


def pair_edit(config: PixToPixConfig, seed: int, number: int, split: ToySplit = "train") -> ToyEdit:
    """The edit of pair `number`."""
    kind: EditKind = Draws(seed, number, 3).choice(config.kinds)
    return toy_edit(seed, number, kind=kind, split=split)


def pair_camera(seed: int, number: int, size: int) -> Cameras:
    """A camera at a random place on a sphere, at about the distance of toy captures."""
    draws = Draws(seed, number, 4)
    lowest, highest = (math.sin(angle) for angle in ELEVATION)
    turn, up = draws.uniform(0.0, 2 * math.pi), draws.uniform(lowest, highest)
    flat = math.sqrt(1.0 - up * up)
    place = np.array([[flat * math.cos(turn), flat * math.sin(turn), up]])
    place = RADIUS * draws.uniform(NEAREST, FARTHEST) * place
    pose = look_at(place, np.zeros(3), np.array([0.0, 0.0, 1.0]))
    return pinhole_cameras(pose, size / 2 / math.tan(ANGLE / 2), size, size)


def pair_background(config: PixToPixConfig, seed: int, number: int) -> Float[np.ndarray, "3"]:
    """White, or a random colour."""
    draws = Draws(seed, number, 5)
    white = draws.uniform() < config.white
    colour = np.array([draws.uniform() for _ in range(3)], np.float32)
    return np.ones(3, np.float32) if white else colour


def toy_pair(config: PixToPixConfig, seed: int, number: int, split: ToySplit = "train") -> Pair:
    """Pair `number`. split: "heldout" has colours and phrasings that "train" never has."""
    edit, camera = pair_edit(config, seed, number, split), pair_camera(seed, number, config.size)
    background = pair_background(config, seed, number)

    def seen(scene: Any) -> UInt8[np.ndarray, "h w 3"]:
        picture = take(scene.stage(), camera, 0)
        colour, alpha = jax.device_get((picture.colour, picture.alpha))
        laid = composite(np.concatenate([colour, alpha[..., None]], axis=-1), background)
        return np.round(255.0 * np.clip(laid, 0.0, 1.0)).astype(np.uint8)

    return Pair(edit, seen(edit.before), seen(edit.scene))


class PairBatches:
    """An endless iterator over {"tokens": [b, n] int32, "before", "after": [b, h, w, 3] uint8}; without pictures {"tokens", "said"}.

    This process's part is the index-th of `count` equal parts. `get_state` is the number of batches given.
    """

    def __init__(
        self,
        config: PixToPixConfig,
        batch: int,
        *,
        seed: int,
        pictures: bool,
        index: int = 0,
        count: int = 1,
        state: int | None = None,
    ):
        if batch % count:
            raise UserError(f"batch is {batch}; it must be a multiple of the {count} processes")
        self._config, self._seed, self._batch, self._pictures = config, seed, batch, pictures
        self._part = range(index * batch // count, (index + 1) * batch // count)
        self._step = state or 0
        self._tokenizer = toy_tokenizer()

    def __next__(self) -> dict[str, np.ndarray]:
        numbers = [self._step * self._batch + place for place in self._part]
        self._step += 1
        if not self._pictures:
            edits = [pair_edit(self._config, self._seed, number) for number in numbers]
            tokens = self._tokens(edits)
            return {"tokens": tokens, "said": np.stack([said(edit) for edit in edits])}
        pairs = [toy_pair(self._config, self._seed, number) for number in numbers]
        return {
            "tokens": self._tokens([pair.edit for pair in pairs]),
            "before": np.stack([pair.before for pair in pairs]),
            "after": np.stack([pair.after for pair in pairs]),
        }

    def _tokens(self, edits: list[ToyEdit]) -> np.ndarray:
        return self._tokenizer.encode([edit.instruction for edit in edits]).tokens

    def get_state(self) -> Any:
        """How many batches have been given."""
        return self._step
