"""Latent diffusion with published weights: Stable Diffusion, ModelScope and ZeroScope, AnimateDiff; the base of `edit`.

A text goes through CLIP, the U-Net denoises latents, the autoencoder decodes them. Samplers, guidance and grids are the
project's own (`jaxvid.diffusion`), with the published table, spacing and offset; so every sampler, guidance and hook of it
works here. Arrays are `b t h w c`, pixels in [-1, 1]; an image is a clip of one frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxvid.core.errors import UserError
from jaxvid.diffusion.driver import Progress
from jaxvid.models.autoencoder import Autoencoder
from jaxvid.models.clip import ClipText
from jaxvid.models.conditional_unet import ConditionalUNet
from jaxvid.models.folding import PixelFolding
from jaxvid.pipelines.denoise import (
    SamplerName,
    guided_program,
    one_each,
    sides_of,
    start,
    two_branches,
)
from jaxvid.pipelines.folders import check_parts, trained_sides
from jaxvid.pipelines.noise import PublishedNoise, read_noise
from jaxvid.weights.loading import WHOLE, Loading
from jaxvid.weights.motion import load_motion
from jaxvid.weights.registry import load_as, load_coder
from jaxvid.weights.tokenizers import ClipTokenizer

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class LatentDiffusion:
    """A published pipeline: networks, tokenizer, and the noise that they were trained with.

    trained: height and width of the latents that the U-Net was trained on.
    """

    unet: ConditionalUNet
    autoencoder: Autoencoder | PixelFolding
    text: ClipText
    tokenizer: ClipTokenizer
    noise: PublishedNoise
    trained: tuple[int, int] = (64, 64)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was trained at."""
        factor = self.autoencoder.config.factor
        return self.trained[0] * factor, self.trained[1] * factor

    def embed(self, texts: Sequence[str]) -> Float[Array, "b n d"]:
        """The context of the texts, padding included, as these models were trained."""
        tokens = self.tokenizer.encode(list(texts)).tokens
        return _embed(self.text, jnp.asarray(tokens))

    def latent_shape(self, count: int, frames: int, size: tuple[int, int]) -> tuple[int, ...]:
        """Of clips of that size in pixels. Raises UserError for a size that the autoencoder cannot take."""
        config = self.autoencoder.config
        if frames < 1:
            raise UserError(f"frames is {frames}; it must be 1 or more")
        return count, frames, *sides_of(size, config.factor), config.latents


def decode(
    autoencoder: Autoencoder | PixelFolding, z: Float[Array, "b t h w c"], frames: int = 4
) -> Float[Array, "b t y x 3"]:
    """Pixels of scaled latents, `frames` at a time; a temporal decoder sees only those together."""
    parts = [
        _decode(autoencoder, z[:, first : first + frames]) for first in range(0, z.shape[1], frames)
    ]
    return jnp.concatenate(parts, axis=1)


@jax.jit
def _embed(text: ClipText, tokens: Int[Array, "b n"]) -> Float[Array, "b n d"]:
    return text(tokens).tokens


@jax.jit
def _decode(
    autoencoder: Autoencoder | PixelFolding, z: Float[Array, "b t h w c"]
) -> Float[Array, "b t y x 3"]:
    return autoencoder.decode(z)


@jax.jit
def latent_mean(
    autoencoder: Autoencoder | PixelFolding, x: Float[Array, "b t h w c"]
) -> Float[Array, "b t y x d"]:
    """The mean of the latents of pixels, unscaled, which is how image conditions are given."""
    return autoencoder.moments(x)[0]


def load_latent_diffusion(
    folder: str | Path, how: Loading = WHOLE, *, motion: str | Path | None = None
) -> LatentDiffusion:
    """The pipeline in `folder`, which holds unet, vae, text_encoder, tokenizer and scheduler.

    motion: a folder of AnimateDiff's modules, which make an image model one of video. Raises UserError naming the file.
    """
    folder = Path(folder)
    check_parts(folder, PARTS)
    unet, text = folder / "unet", load_as(ClipText, folder / "text_encoder", how)
    return LatentDiffusion(
        load_as(ConditionalUNet, unet, how) if motion is None else load_motion(unet, motion, how),
        load_coder(folder / "vae", how),
        text,
        ClipTokenizer(str(folder / "tokenizer"), text.config.positions),
        read_noise(folder / "scheduler"),
        trained_sides(unet, 64),
    )


def text_to_video(
    model: LatentDiffusion,
    prompts: Sequence[str],
    key: Key[Array, ""],
    *,
    negative: str = "",
    frames: int = 16,
    size: tuple[int, int] | None = None,
    steps: int = 50,
    scale: float = 9.0,
    sampler: SamplerName = "ddim",
    z: Float[Array, "b t h w c"] | None = None,
    progress: Progress | None = None,
) -> Float[Array, "b t y x 3"]:
    """Clips of the prompts, in about [-1, 1].

    negative: the text that guidance leads away from. size: height and width in pixels, the model's own by default. scale: of
    classifier-free guidance, 1 is unguided. z: latents of pure noise instead of the key's own.
    """
    one_each(len(prompts), prompts)
    z = start(z, model.latent_shape(len(prompts), frames, size or model.size), key)
    args = {
        "unet": model.unet,
        "given": {"context": model.embed(prompts)},
        "none": {"context": model.embed([negative] * len(prompts))},
        "scale": jnp.float32(scale),
    }
    run = guided_program(sampler, model.noise, two_branches)
    z = run(args, z, model.noise.grid(steps), key, progress=progress)
    return decode(model.autoencoder, z)


def text_to_image(
    model: LatentDiffusion,
    prompts: Sequence[str],
    key: Key[Array, ""],
    *,
    negative: str = "",
    size: tuple[int, int] | None = None,
    steps: int = 50,
    scale: float = 7.5,
    sampler: SamplerName = "ddim",
    z: Float[Array, "b 1 h w c"] | None = None,
    progress: Progress | None = None,
) -> Float[Array, "b 1 y x 3"]:
    """Images of the prompts, as clips of one frame; see `text_to_video`."""
    return text_to_video(
        model,
        prompts,
        key,
        negative=negative,
        frames=1,
        size=size,
        steps=steps,
        scale=scale,
        sampler=sampler,
        z=z,
        progress=progress,
    )
