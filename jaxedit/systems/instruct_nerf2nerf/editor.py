"""The editor as arrays that a step takes, and the functions that edit one view of a scene with it.

Images of a scene are [h, w, 3] in [0, 1]; the editor's are in [-1, 1], at sides that its autoencoder can take.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from jaxedit.distill.score import distilled, score_gradient
from jaxedit.systems.instruct_nerf2nerf.config import EditConfig
from jaxvid.core.rng import named
from jaxvid.diffusion.guidance import guided
from jaxvid.diffusion.schedule import EDM
from jaxvid.models.lpips import LPIPS
from jaxvid.pipelines.denoise import network_denoise
from jaxvid.pipelines.edit import Revision, Told, conditions, of_instruction, tell
from jaxvid.pipelines.latent import LatentDiffusion
from jaxvid.pipelines.noise import PublishedNoise


class Weights(NamedTuple):
    """What an edit needs beside the scene, as arrays: the editor that has been told what to do, and LPIPS or None."""

    told: Told
    lpips: LPIPS | None


@dataclass(frozen=True)
class Editor:
    """The static half of an editor: its noise, the sides that it works at, and the configuration of the edit.

    height, width: of the scene's views.
    """

    noise: PublishedNoise
    factor: int
    edit: EditConfig
    height: int
    width: int

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in the editor: the views', or `edit.size` along the longest, to the nearest multiples of the factor."""
        longest = max(self.height, self.width)
        scale = 1.0 if self.edit.size is None else self.edit.size / longest
        height, width = (
            max(1, round(side * scale / self.factor)) * self.factor
            for side in (self.height, self.width)
        )
        return height, width

    def levels(self, lower: float, upper: float) -> tuple[int, int]:
        """The entries of the table from which edits begin, for a range in fractions; at least as many as there are steps."""
        table = self.noise.table
        entries = 0 if isinstance(table, EDM) else table.entries
        lowest, highest = (max(self.edit.steps, int(entries * end)) for end in (lower, upper))
        return lowest, highest

    def revision(self, lower: float, upper: float) -> Revision:
        """The editing function for that range of levels. Raises UserError where the noise has no such levels."""
        lowest, highest = self.levels(lower, upper)
        return Revision(self.noise, self.edit.steps, lowest, highest, self.edit.together)

    def resized(
        self, image: Float[Array, "h w 3"], sides: tuple[int, int]
    ) -> Float[Array, "h2 w2 3"]:
        """The image at other sides, bilinear, with low-pass where it shrinks."""
        return image if image.shape[:2] == sides else _resized(image, sides)

    def _given(self, image: Float[Array, "h w 3"]) -> Float[Array, "1 y x 3"]:
        """An image as the networks take it."""
        return 2.0 * self.resized(image, self.sides)[None] - 1.0

    def edited(
        self,
        told: Told,
        image: Float[Array, "h w 3"],
        original: Float[Array, "h w 3"],
        key: Key[Array, ""],
        lower: float,
        upper: float,
    ) -> Float[Array, "h w 3"]:
        """A view edited once more, in [0, 1] (Instruct-NeRF2NeRF, section 4.2)."""
        revision = self.revision(lower, upper)
        level = jax.random.randint(
            named(key, "level"), (), revision.lowest, revision.highest + 1, jnp.int32
        )
        x, condition = self._given(image), self._given(original)
        x = revision(told, x, condition, level, key)[0]
        x = jnp.clip(0.5 * x.astype(jnp.float32) + 0.5, 0.0, 1.0)
        return self.resized(x, (self.height, self.width))

    def score_loss(
        self,
        told: Told,
        image: Float[Array, "h w 3"],
        original: Float[Array, "h w 3"],
        key: Key[Array, ""],
        lower: float,
        upper: float,
    ) -> Float[Array, "1"]:
        """A loss whose gradient in the image is the editor's score (`jaxedit.distill.score`); its value means nothing."""
        lowest, highest = self.levels(lower, upper)
        entries = range(
            min(lowest, highest - 1), highest
        )  # the last level of all has no entry of its own
        table = jnp.asarray(np.array([self.noise.at_index(i) for i in entries], np.float32))
        index = jax.random.randint(named(key, "level"), (), 0, table.shape[0], jnp.int32)
        x, condition = self._given(image), self._given(original)
        z = told.autoencoder.encode(x[:, None], named(key, "latents")).astype(jnp.float32)
        branches = of_instruction(conditions(told, condition))
        network = network_denoise(self.noise, told.unet)
        denoise = self.noise.bounded(guided(network, branches, together=self.edit.together))
        fixed = jax.lax.stop_gradient(z)
        gradient = score_gradient(denoise, fixed, table[index], named(key, "noise"))
        return distilled(z, gradient) / math.prod(z.shape[1:])


def _resized(image: Float[Array, "h w 3"], sides: tuple[int, int]) -> Float[Array, "h2 w2 3"]:
    return jax.image.resize(image, (*sides, 3), "linear")


def make_editor(
    model: LatentDiffusion, edit: EditConfig, height: int, width: int
) -> tuple[Editor, Told]:
    """The editor for views of that size, static half and arrays. Raises UserError for a model that is no editing one."""
    told = tell(
        model,
        edit.instruction,
        negative=edit.negative,
        text_scale=edit.text_scale,
        image_scale=edit.image_scale,
    )
    editor = Editor(model.noise, model.autoencoder.config.factor, edit, height, width)
    editor.revision(edit.lower, edit.upper)
    return editor, told


def to_pixels(image: Float[Array, "*n 3"]) -> Array:
    """[0, 1] to bytes."""
    return jnp.round(jnp.clip(image, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def from_pixels(image: UInt8[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """Bytes to [0, 1]."""
    return image.astype(jnp.float32) / 255.0
