"""Images edited by an instruction, as InstructPix2Pix does it (Brooks et al. 2023): from noise, or again from a noised image.

The network sees the latents of the image to be edited beside z; text and image are guided apart. `edit_image` begins with pure
noise. `revise_image` begins with an image of its own, noised in part, which is what Instruct-NeRF2NeRF does with renders of a
scene that is half edited (Haque et al. 2023, section 4.1): the original stays the condition. Pixels are in [-1, 1].
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.diffusion import guidance
from jaxvid.diffusion.driver import Progress
from jaxvid.diffusion.process import q_sample
from jaxvid.models.autoencoder import Autoencoder
from jaxvid.pipelines.denoise import SamplerName, guided_program, one_each, start
from jaxvid.pipelines.latent import LatentDiffusion, decode, latent_mean


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

    images: in [-1, 1], sides multiples of the autoencoder's factor. text_scale, image_scale: s_T and s_I. z: latents of pure
    noise instead of the key's own. Raises UserError.
    """
    args = _arguments(model, images, instructions, negative, text_scale, image_scale)
    z = start(z, args["image"].shape, key)
    run = guided_program(sampler, model.noise, of_instruction)
    z = run(args, z, model.noise.grid(steps), key, progress=progress)
    return decode(model.autoencoder, z)


def revise_image(
    model: LatentDiffusion,
    images: Float[Array, "b y x 3"],
    originals: Float[Array, "b y x 3"],
    instructions: Sequence[str],
    key: Key[Array, ""],
    *,
    level: int,
    negative: str = "",
    steps: int = 20,
    text_scale: float = 7.5,
    image_scale: float = 1.5,
    sampler: SamplerName = "ddim",
    progress: Progress | None = None,
) -> Float[Array, "b 1 y x 3"]:
    """Images taken further towards an instruction each, whose originals the model is told (Instruct-NeRF2NeRF).

    level: an entry of the table, at least `steps`; the grid is that of a table which ends there, so that the first level is a
    little below it: 19 (level // 20) + 1 for 20 steps. Raises UserError.
    """
    if originals.shape != images.shape:
        raise UserError(
            f"images have shape {images.shape} and originals {originals.shape}; give one original for each, as large"
        )
    args = _arguments(model, originals, instructions, negative, text_scale, image_scale)
    grid = model.noise.grid(steps, level)
    z = _noised(model.autoencoder, images[:, None], jnp.float32(grid[0]), key)
    run = guided_program(sampler, model.noise, of_instruction)
    z = run(args, z, grid, key, progress=progress)
    return decode(model.autoencoder, z)


def of_instruction(args: Any) -> Sequence[guidance.Branch]:
    """InstructPix2Pix's three branches."""
    image, blank = args["image"], jnp.zeros_like(args["image"])
    return guidance.instruct_pix2pix(
        {"context": args["text"], "image": image},
        {"context": args["none"], "image": image},
        {"context": args["none"], "image": blank},
        args["image_scale"],
        args["text_scale"],
    )


def _arguments(
    model: LatentDiffusion,
    originals: Float[Array, "b y x 3"],
    instructions: Sequence[str],
    negative: str,
    text_scale: float,
    image_scale: float,
) -> dict[str, Any]:
    """What the loop takes: the network, both texts, the latents of the originals, the scales."""
    one_each(len(originals), instructions)
    count, height, width, _ = originals.shape
    latents = model.latent_shape(count, 1, (height, width))[-1]
    if model.unet.config.inputs != 2 * latents:
        raise UserError(
            f"the U-Net takes {model.unet.config.inputs} channels, an editing one takes {2 * latents}; "
            "give InstructPix2Pix's folder"
        )
    return {
        "unet": model.unet,
        "text": model.embed(instructions),
        "none": model.embed([negative] * count),
        "image": latent_mean(model.autoencoder, originals[:, None]),
        "text_scale": jnp.float32(text_scale),
        "image_scale": jnp.float32(image_scale),
    }


@jax.jit
def _noised(
    autoencoder: Autoencoder,
    x: Float[Array, "b t y x 3"],
    logsnr: Float[Array, ""],
    key: Key[Array, ""],
) -> Float[Array, "b t h w c"]:
    """A sample of the pixels' latents, noised."""
    z = autoencoder.encode(x, named(key, "latents"))
    return q_sample(z, jax.random.normal(named(key, "noise"), z.shape), logsnr)
