"""Stable Diffusion's x4 upscaler: the small image, noised a little, lies beside the latents, which have its sides.

How much noise it was given is told to the network (Ho et al. 2021, "Cascaded Diffusion Models", section 4.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.diffusion.driver import Progress
from jaxvid.diffusion.process import q_sample
from jaxvid.pipelines.denoise import SamplerName, guided_program, one_each, start, two_branches
from jaxvid.pipelines.folders import check_parts
from jaxvid.pipelines.latent import LatentDiffusion, decode, load_latent_diffusion
from jaxvid.pipelines.noise import PublishedNoise, read_noise
from jaxvid.weights.loading import WHOLE, Loading


@dataclass(frozen=True)
class Upscaler:
    """The networks, and `image_noise`, the table by which the small image is noised."""

    base: LatentDiffusion
    image_noise: PublishedNoise


def load_upscaler(folder: str | Path, how: Loading = WHOLE) -> Upscaler:
    """The pipeline in `folder`: Stable Diffusion's parts and low_res_scheduler. Raises UserError naming the file."""
    check_parts(Path(folder), ("low_res_scheduler",))
    return Upscaler(
        load_latent_diffusion(folder, how), read_noise(Path(folder) / "low_res_scheduler")
    )


def upscale_image(
    model: Upscaler,
    images: Float[Array, "b y x 3"],
    prompts: Sequence[str],
    key: Key[Array, ""],
    *,
    negative: str = "",
    level: int = 20,
    steps: int = 75,
    scale: float = 9.0,
    sampler: SamplerName = "ddim",
    z: Float[Array, "b 1 h w c"] | None = None,
    eps: Float[Array, "b y x 3"] | None = None,
    progress: Progress | None = None,
) -> Float[Array, "b 1 y4 x4 3"]:
    """Images four times as high and wide, each by a prompt.

    images: in [-1, 1]. level: how noisy the images are made, an index of the table. z, eps: pure noise for the latents and for
    the images instead of the key's own.
    """
    base = model.base
    one_each(len(images), prompts)
    rows = base.unet.config.labels
    if base.unet.config.label != "table":
        raise UserError("the U-Net is told no noise level; give the x4 upscaler's folder")
    if not 0 <= level < rows:
        raise UserError(f"noise level {level}: give 0 to {rows - 1}")
    count, height, width, _ = images.shape
    shape = (count, 1, height, width, base.autoencoder.config.latents)
    if eps is None:
        eps = jax.random.normal(named(key, "image noise"), images.shape)
    logsnr = jnp.full(count, model.image_noise.at_index(level))
    shared = {
        "image": q_sample(images, eps, logsnr)[:, None],
        "label": jnp.full(count, level),
    }
    args = {
        "unet": base.unet,
        "given": {"context": base.embed(prompts), **shared},
        "none": {"context": base.embed([negative] * count), **shared},
        "scale": jnp.float32(scale),
    }
    run = guided_program(sampler, base.noise, two_branches)
    z = run(args, start(z, shape, key), base.noise.grid(steps), key, progress=progress)
    return decode(base.autoencoder, z)
