"""Stable Video Diffusion (Blattmann et al. 2023): an image to a clip that begins with it.

The image conditions twice: by CLIP's vector, which is the context, and by its latents, noised a little, beside those of every
frame. Frame rate, motion and that noise are numbers that the network is told. Guidance grows over the frames (their section
D.3). Noise levels have no table: they lie as Karras et al. 2022 have them between the published two, and Euler's step on
their variance exploding `z` is DDIM's on ours.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.diffusion import guidance
from jaxvid.diffusion.driver import Progress
from jaxvid.models.autoencoder import Autoencoder
from jaxvid.models.clip import ClipImage, normalized
from jaxvid.models.conditional_unet import ConditionalUNet
from jaxvid.pipelines.denoise import SamplerName, guided_program, sides_of, start
from jaxvid.pipelines.folders import check_parts
from jaxvid.pipelines.images import resize_for_clip
from jaxvid.pipelines.latent import decode, latent_mean
from jaxvid.pipelines.noise import PublishedNoise, read_noise
from jaxvid.weights.loading import WHOLE, Loading
from jaxvid.weights.registry import load_as

PARTS = ("unet", "vae", "image_encoder", "scheduler")


@dataclass(frozen=True)
class ImageToVideo:
    """A published pipeline: networks, and the noise that they were trained with."""

    unet: ConditionalUNet
    autoencoder: Autoencoder
    image: ClipImage
    noise: PublishedNoise


def load_image_to_video(folder: str | Path, how: Loading = WHOLE) -> ImageToVideo:
    """The pipeline in `folder`: unet, vae, image_encoder, scheduler. Raises UserError naming the file."""
    folder = Path(folder)
    check_parts(folder, PARTS)
    image = load_as(ClipImage, folder / "image_encoder", how)
    if image.config.projection is None:
        raise UserError(
            f"{folder / 'image_encoder'} has no projection; give CLIPVisionModelWithProjection"
        )
    return ImageToVideo(
        load_as(ConditionalUNet, folder / "unet", how),
        load_as(Autoencoder, folder / "vae", how),
        image,
        read_noise(folder / "scheduler"),
    )


def image_to_video(
    model: ImageToVideo,
    images: Float[Array, "b y x 3"],
    key: Key[Array, ""],
    *,
    frames: int = 14,
    fps: int = 7,
    motion: int = 127,
    image_noise: float = 0.02,
    steps: int = 25,
    scale: tuple[float, float] = (1.0, 3.0),
    sampler: SamplerName = "ddim",
    decoded: int | None = None,
    z: Float[Array, "b t h w c"] | None = None,
    eps: Float[Array, "b y x 3"] | None = None,
    progress: Progress | None = None,
) -> Float[Array, "b t y x 3"]:
    """Clips that begin with the images, in about [-1, 1].

    images: in [-1, 1], sides multiples of the autoencoder's factor. fps: frames a second that the clip is to be shown at.
    motion: how much moves, 1 to 255 in training. image_noise: deviation of noise on the image. scale: of guidance at the first
    and at the last frame. decoded: frames that the temporal decoder sees together, all by default; fewer take less memory.
    z, eps: pure noise for the latents and for the images instead of the key's own.
    """
    if frames < 1:
        raise UserError(f"frames is {frames}; it must be 1 or more")
    count, height, width, _ = images.shape
    config = model.autoencoder.config
    shape = (count, frames, *sides_of((height, width), config.factor), config.latents)
    if model.unet.config.inputs != 2 * config.latents or model.unet.config.numbers != 3:
        raise UserError("the U-Net takes no image; give Stable Video Diffusion's folder")
    if eps is None:
        eps = jax.random.normal(named(key, "image noise"), images.shape)
    latents = latent_mean(model.autoencoder, (images + image_noise * eps)[:, None])
    vector = _embed(model.image, images)[:, None]
    # The networks were trained with one frame a second less than is shown.
    numbers = jnp.tile(jnp.array([[fps - 1.0, float(motion), image_noise]]), (count, 1))
    given = {
        "context": vector,
        "image": jnp.broadcast_to(latents, (count, frames, *latents.shape[2:])),
        "numbers": numbers,
    }
    args = {"unet": model.unet, "given": given, "scale": jnp.array(scale, jnp.float32)}
    run = guided_program(sampler, model.noise, over_frames)
    z = run(args, start(z, shape, key), model.noise.grid(steps), key, progress=progress)
    return decode(model.autoencoder, z, decoded or frames)


@jax.jit
def _embed(image: ClipImage, images: Float[Array, "b y x 3"]) -> Float[Array, "b e"]:
    size = (image.config.size, image.config.size)
    return image(normalized(resize_for_clip(images, size))).vector


def over_frames(args: dict) -> list[guidance.Branch]:
    """Classifier-free guidance by "scale" at the first and at the last frame."""
    given, (first, last) = args["given"], args["scale"]
    none = {
        "context": jnp.zeros_like(given["context"]),
        "image": jnp.zeros_like(given["image"]),
        "numbers": given["numbers"],
    }
    scale = guidance.frame_ramp(first, last, given["image"].shape[1])
    return guidance.classifier_free(given, none, scale)
