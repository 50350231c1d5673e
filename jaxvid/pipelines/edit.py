"""Images edited by an instruction, as InstructPix2Pix does it (Brooks et al. 2023): from noise, or again from a noised image.

The network sees the latents of the image to be edited beside z; text and image are guided apart. `edit_image` begins with pure
noise. `revise_image` begins with an image of its own, noised in part, which is what Instruct-NeRF2NeRF does with renders of a
scene that is half edited (Haque et al. 2023, section 4.1): the original stays the condition. `Revision` is the same as a pure
function of a traced noise level, for use inside a larger program. Pixels are in [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.diffusion import guidance
from jaxvid.diffusion.driver import Progress, scan
from jaxvid.diffusion.guidance import guided
from jaxvid.diffusion.process import q_sample
from jaxvid.diffusion.samplers import ddim
from jaxvid.models.autoencoder import Autoencoder
from jaxvid.models.conditional_unet import ConditionalUNet
from jaxvid.models.folding import PixelFolding
from jaxvid.pipelines.denoise import SamplerName, guided_program, network_denoise, one_each, start
from jaxvid.pipelines.latent import LatentDiffusion, decode, latent_mean
from jaxvid.pipelines.noise import PublishedNoise


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


class Told(NamedTuple):
    """An editing model's networks and what it is told, all arrays: embedded texts [1, n, d], and the two scales."""

    unet: ConditionalUNet
    autoencoder: Autoencoder | PixelFolding
    text: Float[Array, "1 n d"]
    none: Float[Array, "1 n d"]
    text_scale: Float[Array, ""]
    image_scale: Float[Array, ""]


def tell(
    model: LatentDiffusion,
    instruction: str,
    *,
    negative: str = "",
    text_scale: float = 7.5,
    image_scale: float = 1.5,
) -> Told:
    """The arguments of `Revision`. Raises UserError for a model that is no editing one."""
    _check_editing(model)
    return Told(
        model.unet,
        model.autoencoder,
        model.embed([instruction]),
        model.embed([negative]),
        jnp.float32(text_scale),
        jnp.float32(image_scale),
    )


@dataclass(frozen=True)
class Revision:
    """`revise_image` as a pure function: DDIM from a level that is an array.

    lowest, highest: the levels there may be, entries of the table; `grids` holds one for each. together: the three branches as
    one batch, or one at a time for a third of the memory.
    """

    noise: PublishedNoise
    steps: int
    lowest: int
    highest: int
    together: bool = True

    def __post_init__(self) -> None:
        if self.lowest > self.highest:
            raise UserError(
                f"noise levels {self.lowest} to {self.highest}: the lowest must not be above the highest"
            )
        self.noise.grid(self.steps, self.lowest)  # refuses what the table does not have
        self.noise.grid(self.steps, self.highest)

    def grids(self) -> Float[np.ndarray, "levels steps"]:
        """The log-SNRs of each level's steps and of the end."""
        levels = range(self.lowest, self.highest + 1)
        return np.stack([self.noise.grid(self.steps, level) for level in levels])

    def __call__(
        self,
        told: Told,
        images: Float[Array, "b y x 3"],
        originals: Float[Array, "b y x 3"],
        level: Int[Array, ""],
        key: Key[Array, ""],
    ) -> Float[Array, "b y x 3"]:
        """The images taken further towards the instruction; the key's use is `revise_image`'s."""
        args = conditions(told, originals)
        grid = jnp.asarray(self.grids())[level - self.lowest]
        z = _noised(told.autoencoder, images[:, None], grid[0], key)
        network = network_denoise(self.noise, told.unet)
        branches = of_instruction(args)
        denoise = self.noise.bounded(guided(network, branches, together=self.together))
        z = scan(ddim(), denoise, z, grid, key)
        return told.autoencoder.decode(z)[:, 0]


def conditions(told: Told, originals: Float[Array, "b y x 3"]) -> dict[str, Any]:
    """What `of_instruction` takes, for those originals."""
    count = originals.shape[0]
    return {
        "text": jnp.broadcast_to(told.text, (count, *told.text.shape[1:])),
        "none": jnp.broadcast_to(told.none, (count, *told.none.shape[1:])),
        "image": latent_mean(told.autoencoder, originals[:, None]),
        "text_scale": told.text_scale,
        "image_scale": told.image_scale,
    }


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
    _check_editing(model)
    count, height, width, _ = originals.shape
    model.latent_shape(count, 1, (height, width))  # refuses sides that it cannot take
    return {
        "unet": model.unet,
        "text": model.embed(instructions),
        "none": model.embed([negative] * count),
        "image": latent_mean(model.autoencoder, originals[:, None]),
        "text_scale": jnp.float32(text_scale),
        "image_scale": jnp.float32(image_scale),
    }


def _check_editing(model: LatentDiffusion) -> None:
    inputs, latents = model.unet.config.inputs, model.autoencoder.config.latents
    if inputs != 2 * latents:
        raise UserError(
            f"the U-Net takes {inputs} channels, an editing one takes {2 * latents}; give InstructPix2Pix's folder"
        )


@jax.jit
def _noised(
    autoencoder: Autoencoder | PixelFolding,
    x: Float[Array, "b t y x 3"],
    logsnr: Float[Array, ""],
    key: Key[Array, ""],
) -> Float[Array, "b t h w c"]:
    """A sample of the pixels' latents, noised."""
    z = autoencoder.encode(x, named(key, "latents"))
    return q_sample(z, jax.random.normal(named(key, "noise"), z.shape), logsnr)
