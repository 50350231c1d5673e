"""Short functions over published models: text to image or video, and an image edited by an instruction.

model = load_latent_diffusion("stable-diffusion-v1-5")
images = text_to_image(model, ["a lighthouse at dusk"], jax.random.key(0))
edited = edit_image(load_latent_diffusion("instruct-pix2pix"), images[:, 0], ["make it winter"], jax.random.key(1))
"""

from jaxvid.pipelines.latent import (
    LatentDiffusion,
    edit_image,
    load_latent_diffusion,
    text_to_image,
    text_to_video,
)

__all__ = [
    "LatentDiffusion",
    "edit_image",
    "load_latent_diffusion",
    "text_to_image",
    "text_to_video",
]
