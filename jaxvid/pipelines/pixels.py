"""DeepFloyd IF, the public relative of Imagen (Saharia et al. 2022): diffusion of pixels on T5's text, then enlarged by 4.

first = load_pixel_diffusion("IF-I-XL-v1.0"); images = text_to_pixels(first, ["a red fox"], key)
second = load_pixel_diffusion("IF-II-L-v1.0"); large = enlarge_pixels(second, images, ["a red fox"], key)

Images are `b 1 h w c` in [-1, 1]. The networks give the variance of the reverse step too, and the estimate is kept in range
by dynamic thresholding. The publisher's safety checker and watermark are not part of this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.diffusion.driver import Progress
from jaxvid.diffusion.process import q_sample
from jaxvid.models.conditional_unet import ConditionalUNet
from jaxvid.models.t5 import T5Encoder
from jaxvid.pipelines.denoise import SamplerName, guided_program, one_each, start, two_branches
from jaxvid.pipelines.folders import check_parts, trained_sides
from jaxvid.pipelines.images import resize_corners
from jaxvid.pipelines.noise import PublishedNoise, read_noise
from jaxvid.weights.loading import WHOLE, Loading
from jaxvid.weights.registry import load_as
from jaxvid.weights.tokenizers import T5Tokenizer

PARTS = ("unet", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class PixelDiffusion:
    """One stage. size: height and width in pixels. image_noise: by which the small image is noised, for a second stage."""

    unet: ConditionalUNet
    text: T5Encoder
    tokenizer: T5Tokenizer
    noise: PublishedNoise
    size: tuple[int, int]
    image_noise: PublishedNoise | None = None

    def embed(self, texts: Sequence[str]) -> Float[Array, "b n d"]:
        """The context of the texts in small letters; the U-Net attends to padding too, as it was trained."""
        encoded = self.tokenizer.encode([text.lower().strip() for text in texts])
        return _embed(self.text, jnp.asarray(encoded.tokens), jnp.asarray(encoded.mask))


@jax.jit
def _embed(
    text: T5Encoder, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"]
) -> Float[Array, "b n d"]:
    return text(tokens, mask)


def load_pixel_diffusion(
    folder: str | Path, how: Loading = WHOLE, *, text: T5Encoder | None = None
) -> PixelDiffusion:
    """A stage in `folder`: unet, text_encoder, tokenizer, scheduler, and image_noising_scheduler in a second one.

    text: the encoder of another stage, which is the same, instead of a second copy. Raises UserError naming the file.
    """
    folder = Path(folder)
    check_parts(folder, PARTS if text is None else (*PARTS[:1], *PARTS[2:]))
    second = folder / "image_noising_scheduler"
    return PixelDiffusion(
        unet=load_as(ConditionalUNet, folder / "unet", how),
        text=load_as(T5Encoder, folder / "text_encoder", how) if text is None else text,
        tokenizer=T5Tokenizer(str(folder / "tokenizer")),
        noise=read_noise(folder / "scheduler"),
        size=trained_sides(folder / "unet", 64),
        image_noise=read_noise(second) if second.is_dir() else None,
    )


def text_to_pixels(
    model: PixelDiffusion,
    prompts: Sequence[str],
    key: Key[Array, ""],
    *,
    negative: str = "",
    size: tuple[int, int] | None = None,
    steps: int = 100,
    scale: float = 7.0,
    sampler: SamplerName = "ancestral",
    z: Float[Array, "b 1 h w 3"] | None = None,
    progress: Progress | None = None,
) -> Float[Array, "b 1 h w 3"]:
    """Small images of the prompts, in about [-1, 1].

    negative: the text that guidance leads away from. size: height and width in pixels, the model's own by default. scale: of
    classifier-free guidance. z: pure noise instead of the key's own.
    """
    one_each(len(prompts), prompts)
    if model.image_noise is not None:
        raise UserError("this stage enlarges images; give the first stage's folder")
    args = {
        "unet": model.unet,
        "given": {"context": model.embed(prompts)},
        "none": {"context": model.embed([negative] * len(prompts))},
        "scale": jnp.float32(scale),
    }
    z = start(z, (len(prompts), 1, *(size or model.size), model.unet.config.inputs), key)
    run = guided_program(sampler, model.noise, two_branches)
    return run(args, z, model.noise.grid(steps), key, progress=progress)


def enlarge_pixels(
    model: PixelDiffusion,
    images: Float[Array, "b 1 h w 3"],
    prompts: Sequence[str],
    key: Key[Array, ""],
    *,
    negative: str = "",
    size: tuple[int, int] | None = None,
    level: int = 250,
    steps: int = 50,
    scale: float = 4.0,
    sampler: SamplerName = "ancestral",
    z: Float[Array, "b 1 y x 3"] | None = None,
    eps: Float[Array, "b 1 y x 3"] | None = None,
    progress: Progress | None = None,
) -> Float[Array, "b 1 y x 3"]:
    """The images at the second stage's size, each by its prompt.

    level: how noisy the images are made before, an index of the table. z, eps: pure noise for the result and for the images
    instead of the key's own.
    """
    one_each(len(images), prompts)
    if model.image_noise is None:
        raise UserError("this stage takes no image; give the second stage's folder")
    count = len(images)
    shape = (count, 1, *(size or model.size), model.unet.config.inputs // 2)
    if eps is None:
        eps = jax.random.normal(named(key, "image noise"), shape)
    logsnr = jnp.full(count, model.image_noise.at_index(level))
    shared = {
        "image": q_sample(resize_corners(images, shape[2:4], "linear"), eps, logsnr),
        "label": jnp.full(count, level),
    }
    args = {
        "unet": model.unet,
        "given": {"context": model.embed(prompts), **shared},
        "none": {"context": model.embed([negative] * count), **shared},
        "scale": jnp.float32(scale),
    }
    run = guided_program(sampler, model.noise, two_branches)
    return run(args, start(z, shape, key), model.noise.grid(steps), key, progress=progress)
