"""Latent diffusion with published weights: Stable Diffusion, InstructPix2Pix, ModelScope and ZeroScope.

A text goes through CLIP, the U-Net denoises latents, the autoencoder decodes them. Samplers, guidance and grids are the
project's own (`jaxvid.diffusion`), with the published table, spacing and offset; so every sampler, guidance and hook of it
works here. Arrays are `b t h w c`, pixels in [-1, 1]; an image is a clip of one frame.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.diffusion import guidance, samplers
from jaxvid.diffusion.driver import Program, Progress, program
from jaxvid.diffusion.parameterization import to_prediction
from jaxvid.diffusion.types import Denoise, Level, Prediction
from jaxvid.models.autoencoder import Autoencoder
from jaxvid.models.clip import ClipText
from jaxvid.models.conditional_unet import ConditionalUNet
from jaxvid.pipelines.noise import PublishedNoise, read_noise
from jaxvid.weights.autoencoders import load_autoencoder
from jaxvid.weights.encoders import load_clip_text
from jaxvid.weights.loading import WHOLE, Loading
from jaxvid.weights.tokenizers import ClipTokenizer
from jaxvid.weights.unets import load_motion, load_unet

SamplerName = Literal["ddim", "ancestral", "dpm++", "heun"]
SAMPLERS: dict[SamplerName, Callable[[], samplers.Sampler]] = {
    "ddim": samplers.ddim,
    "ancestral": samplers.ancestral,
    "dpm++": samplers.dpm_solver_2m,
    "heun": samplers.heun,
}


@dataclass(frozen=True)
class LatentDiffusion:
    """A published pipeline: networks, tokenizer, and the noise that they were trained with."""

    unet: ConditionalUNet
    autoencoder: Autoencoder
    text: ClipText
    tokenizer: ClipTokenizer
    noise: PublishedNoise

    @property
    def factor(self) -> int:
        """Pixels a side of a latent."""
        return 2 ** (len(self.autoencoder.config.widths) - 1)

    def embed(self, texts: Sequence[str]) -> Float[Array, "b n d"]:
        """The context of the texts, padding included, as these models were trained."""
        tokens = self.tokenizer.encode(list(texts)).tokens
        return _embed(self.text, jnp.asarray(tokens))

    def decode(self, z: Float[Array, "b t h w c"], frames: int = 4) -> Float[Array, "b t y x 3"]:
        """Pixels of latents, `frames` at a time where the decoder takes them one by one."""
        if self.autoencoder.config.temporal:
            return _decode(self.autoencoder, z)
        parts = [
            _decode(self.autoencoder, z[:, start : start + frames])
            for start in range(0, z.shape[1], frames)
        ]
        return jnp.concatenate(parts, axis=1)


@jax.jit
def _embed(text: ClipText, tokens: Int[Array, "b n"]) -> Float[Array, "b n d"]:
    return text(tokens).tokens


@jax.jit
def _decode(autoencoder: Autoencoder, z: Float[Array, "b t h w c"]) -> Float[Array, "b t y x 3"]:
    return autoencoder.decode(z)


@jax.jit
def _mean(autoencoder: Autoencoder, x: Float[Array, "b t h w c"]) -> Float[Array, "b t y x d"]:
    return autoencoder.moments(x)[0]


def load_latent_diffusion(
    folder: str | Path, how: Loading = WHOLE, *, motion: str | Path | None = None
) -> LatentDiffusion:
    """The pipeline in `folder`, which holds unet, vae, text_encoder, tokenizer and scheduler.

    motion: a folder of AnimateDiff's modules, which make an image model one of video. Raises UserError naming the file.
    """
    folder = Path(folder)
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if not (folder / name).is_dir():
            raise UserError(
                f"{folder / name} does not exist; give a pipeline's folder of diffusers"
            )
    unet, text = folder / "unet", load_clip_text(folder / "text_encoder", how)
    return LatentDiffusion(
        load_unet(unet, how) if motion is None else load_motion(unet, motion, how),
        load_autoencoder(folder / "vae", how),
        text,
        ClipTokenizer(str(folder / "tokenizer"), text.config.positions),
        read_noise(folder / "scheduler"),
    )


def text_to_video(
    model: LatentDiffusion,
    prompts: Sequence[str],
    key: Key[Array, ""],
    *,
    negative: str = "",
    frames: int = 16,
    size: tuple[int, int] = (256, 256),
    steps: int = 50,
    scale: float = 9.0,
    sampler: SamplerName = "ddim",
    z: Float[Array, "b t h w c"] | None = None,
    progress: Progress | None = None,
) -> Float[Array, "b t y x 3"]:
    """Clips of the prompts, in about [-1, 1].

    negative: the text that guidance leads away from. size: height and width in pixels. scale: of classifier-free guidance,
    1 is unguided. z: latents of pure noise instead of the key's own.
    """
    if not prompts:
        raise UserError("there are no prompts; give at least one")
    shape = _latent_shape(model, len(prompts), frames, size)
    if z is None:
        z = jax.random.normal(named(key, "start"), shape)
    if z.shape != shape:
        raise UserError(f"the start has shape {z.shape}, these settings need {shape}")
    args = {
        "unet": model.unet,
        "text": model.embed(prompts),
        "none": model.embed([negative] * len(prompts)),
        "scale": jnp.float32(scale),
    }
    run = _text_program(sampler, model.noise)
    return model.decode(run(args, z, model.noise.grid(steps), key, progress=progress))


def text_to_image(
    model: LatentDiffusion,
    prompts: Sequence[str],
    key: Key[Array, ""],
    *,
    negative: str = "",
    size: tuple[int, int] = (512, 512),
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


def edit_image(
    model: LatentDiffusion,
    images: Float[Array, "b y x 3"],
    instructions: Sequence[str],
    key: Key[Array, ""],
    *,
    negative: str = "",
    steps: int = 100,
    text_scale: float = 7.5,
    image_scale: float = 1.5,
    sampler: SamplerName = "ddim",
    z: Float[Array, "b 1 h w c"] | None = None,
    progress: Progress | None = None,
) -> Float[Array, "b 1 y x 3"]:
    """Images changed by an instruction each (InstructPix2Pix, Brooks et al. 2023, Eq. 3).

    images: in [-1, 1], sides multiples of the autoencoder's factor. text_scale, image_scale: s_T and s_I.
    """
    if len(images) != len(instructions):
        raise UserError(
            f"{len(images)} images and {len(instructions)} instructions; give one for each"
        )
    count, height, width, _ = images.shape
    shape = _latent_shape(model, count, 1, (height, width))
    wanted = shape[-1] + model.autoencoder.config.latents
    if model.unet.config.inputs != wanted:
        raise UserError(
            f"the U-Net takes {model.unet.config.inputs} channels, an editing one takes {wanted}; "
            "give InstructPix2Pix's folder"
        )
    if z is None:
        z = jax.random.normal(named(key, "start"), shape)
    args = {
        "unet": model.unet,
        "text": model.embed(instructions),
        "none": model.embed([negative] * count),
        # As published: the mean, and not scaled.
        "image": _mean(model.autoencoder, images[:, None]),
        "text_scale": jnp.float32(text_scale),
        "image_scale": jnp.float32(image_scale),
    }
    run = _edit_program(sampler, model.noise)
    return model.decode(run(args, z, model.noise.grid(steps), key, progress=progress))


def _latent_shape(
    model: LatentDiffusion, count: int, frames: int, size: tuple[int, int]
) -> tuple[int, ...]:
    if any(side < 1 or side % model.factor for side in size):
        raise UserError(
            f"height x width is {size[0]} x {size[1]}; both must be multiples of {model.factor}"
        )
    if frames < 1:
        raise UserError(f"frames is {frames}; it must be 1 or more")
    return (
        count,
        frames,
        *(side // model.factor for side in size),
        model.autoencoder.config.latents,
    )


def network_denoise(
    noise: PublishedNoise, unet: ConditionalUNet
) -> Callable[[Array, Level, Any], Prediction]:
    """The conditional denoiser of a published U-Net.

    Conditions are a dictionary: "context", the text's tokens, and, for networks that take more channels, "image", which is laid
    beside z.
    """

    def denoise(z: Array, level: Level, conditions: Any) -> Prediction:
        dtype = unet.conv_in.kernel[...].dtype
        given = z
        if "image" in conditions:
            given = jnp.concatenate([z, conditions["image"].astype(z.dtype)], axis=-1)
        time = noise.table.network_time(level.logsnr)
        output = unet(given.astype(dtype), time, conditions["context"])
        return to_prediction(output.astype(jnp.float32), z, level.logsnr, noise.target)

    return denoise


def _bounded(denoise: Denoise, noise: PublishedNoise) -> Denoise:
    if noise.clip is None:
        return denoise
    return guidance.static_threshold(denoise, -noise.clip, noise.clip)


@functools.lru_cache(maxsize=8)
def _text_program(sampler: SamplerName, noise: PublishedNoise) -> Program:
    def make(args: Any) -> Denoise:
        table = guidance.classifier_free(
            {"context": args["text"]}, {"context": args["none"]}, args["scale"]
        )
        return _bounded(guidance.guided(network_denoise(noise, args["unet"]), table), noise)

    return program(SAMPLERS[sampler](), make)


@functools.lru_cache(maxsize=8)
def _edit_program(sampler: SamplerName, noise: PublishedNoise) -> Program:
    def make(args: Any) -> Denoise:
        image, blank = args["image"], jnp.zeros_like(args["image"])
        table = guidance.instruct_pix2pix(
            {"context": args["text"], "image": image},
            {"context": args["none"], "image": image},
            {"context": args["none"], "image": blank},
            args["image_scale"],
            args["text_scale"],
        )
        return _bounded(guidance.guided(network_denoise(noise, args["unet"]), table), noise)

    return program(SAMPLERS[sampler](), make)
