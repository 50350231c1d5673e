"""Short functions over published models: images and clips from text, edits by an instruction, enlargement, clips from an image.

model = load_latent_diffusion("stable-diffusion-v1-5")
images = text_to_image(model, ["a lighthouse at dusk"], jax.random.key(0))
edited = edit_image(load_latent_diffusion("instruct-pix2pix"), images[:, 0], ["make it winter"], jax.random.key(1))
"""

from jaxvid.pipelines.edit import Revision, Told, edit_image, revise_image, tell
from jaxvid.pipelines.image_to_video import ImageToVideo, image_to_video, load_image_to_video
from jaxvid.pipelines.latent import (
    LatentDiffusion,
    load_latent_diffusion,
    text_to_image,
    text_to_video,
)
from jaxvid.pipelines.pixels import (
    PixelDiffusion,
    enlarge_pixels,
    load_pixel_diffusion,
    text_to_pixels,
)
from jaxvid.pipelines.unclip import (
    UnClip,
    decode_vector,
    enlarge_image,
    load_unclip,
    prior_vector,
    unclip,
)
from jaxvid.pipelines.upscale import Upscaler, load_upscaler, upscale_image

__all__ = [
    "ImageToVideo",
    "LatentDiffusion",
    "PixelDiffusion",
    "Revision",
    "Told",
    "UnClip",
    "Upscaler",
    "decode_vector",
    "edit_image",
    "enlarge_image",
    "enlarge_pixels",
    "image_to_video",
    "load_image_to_video",
    "load_latent_diffusion",
    "load_pixel_diffusion",
    "load_unclip",
    "load_upscaler",
    "prior_vector",
    "revise_image",
    "tell",
    "text_to_image",
    "text_to_pixels",
    "text_to_video",
    "unclip",
    "upscale_image",
]
