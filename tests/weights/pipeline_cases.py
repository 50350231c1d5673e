"""Tiny published pipelines: what ours gives for a folder. Diffusers' side of each is in `pipeline_folders`.

A case returns pixels in [0, 1] or vectors, as a list; it is told what diffusers gave, since a later stage begins with that.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fabricate import given

from jaxvid.core.rng import named
from jaxvid.pipelines import (
    decode_vector,
    edit_image,
    enlarge_image,
    enlarge_pixels,
    image_to_video,
    load_image_to_video,
    load_latent_diffusion,
    load_pixel_diffusion,
    load_unclip,
    load_upscaler,
    prior_vector,
    revise_image,
    text_to_image,
    text_to_pixels,
    text_to_video,
    upscale_image,
)
from jaxvid.pipelines.latent import decode

PROMPTS = ["the red circle", "a Ring, moving to the left!"]
NEGATIVE = "a blue square"
KEY = jax.random.key(0)
LEVELS = (20, 500, 980)  # of the table, from which a revision begins
UNCLIP_STEPS = {"prior": 12, "decoder": 12, "enlarger": 5}
UNCLIP_SHAPES = {"prior": (2, 12), "decoder": (2, 1, 8, 8, 3), "enlarger": (2, 1, 20, 20, 3)}


def bound(name):
    """On differences, in pixels from 0 to 1.

    Diffusers multiplies the last estimate of each of Karlo's stages by beta / (1 - alpha^2), which is 1, in float32: 5e-4 less, and
    guidance by 8 of a network of random weights makes its rounding larger.
    """
    return 2e-3 if name == "karlo" else 1e-3


def pixels(images):
    """From [-1, 1] to [0, 1], clipped; without the frames of single images."""
    images = np.asarray(images)
    images = images[:, 0] if images.shape[1] == 1 else images
    return np.clip(images, -1, 1) * 0.5 + 0.5


def photograph(shape):
    """In [-1, 1]."""
    return np.tanh(given("images", shape))


def revised_pair():
    """Renders, and the images that they were before the edit."""
    return photograph((2, 16, 24, 3)), np.tanh(given("originals", (2, 16, 24, 3)))


def noise(name, shape):
    """As a JAX array."""
    return jnp.asarray(given(name, shape))


def image_case(folder, _):
    """Twenty DDIM steps, as all latent ones."""
    found = text_to_image(
        load_latent_diffusion(folder),
        PROMPTS,
        KEY,
        negative=NEGATIVE,
        size=(16, 24),
        steps=20,
        z=noise("start", (2, 1, 8, 12, 4)),
    )
    return [pixels(found)]


def edit_case(folder, _):
    """Three branches: image and text, image, neither."""
    found = edit_image(
        load_latent_diffusion(folder),
        jnp.asarray(photograph((2, 16, 24, 3))),
        PROMPTS,
        KEY,
        steps=20,
        z=noise("start", (2, 1, 8, 12, 4)),
    )
    return [pixels(found)]


def revised_case(folder, _):
    """Renders taken up at three noise levels: latents and pixels of each."""
    model, found = load_latent_diffusion(folder), []

    def kept(autoencoder, z):
        found.append(np.asarray(z[:, 0]))
        return decode(autoencoder, z)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxvid.pipelines.edit.decode", kept)
        for level in LEVELS:
            render, original = (jnp.asarray(x) for x in revised_pair())
            images = revise_image(model, render, original, PROMPTS, KEY, level=level)
            found.append(pixels(images))
    return found


def upscale_case(folder, _):
    """Noise on the small image, of a level that the network is told."""
    found = upscale_image(
        load_upscaler(folder),
        jnp.asarray(photograph((2, 8, 12, 3))),
        PROMPTS,
        KEY,
        level=7,
        steps=20,
        z=noise("start", (2, 1, 8, 12, 4)),
        eps=noise("eps", (2, 8, 12, 3)),
    )
    return [pixels(found)]


def video_case(folder, _):
    """Three frames; with the motion modules that the folder holds."""
    adapter = folder / "adapter"
    model = load_latent_diffusion(folder, motion=adapter if adapter.is_dir() else None)
    z = noise("start", (2, 3, 8, 12, 4))
    return [pixels(text_to_video(model, PROMPTS, KEY, frames=3, size=(16, 24), steps=20, z=z))]


def unclip_case(folder, theirs):
    """All three stages, each with its own noise; the second begins with their vector."""
    model = load_unclip(folder)
    vector = prior_vector(model, PROMPTS, named(KEY, "prior"), steps=UNCLIP_STEPS["prior"])
    images = decode_vector(
        model,
        jnp.asarray(theirs[0], jnp.float32),
        named(KEY, "decoder"),
        PROMPTS,
        steps=UNCLIP_STEPS["decoder"],
    )
    large = enlarge_image(model, images, named(KEY, "enlarger"), steps=UNCLIP_STEPS["enlarger"])
    return [np.asarray(vector), pixels(large)]


def small_case(folder, _):
    """Ancestral steps of a learned variance, dynamic thresholding."""
    z = noise("start", (2, 1, 8, 8, 3))
    model = load_pixel_diffusion(folder)
    return [pixels(text_to_pixels(model, PROMPTS, KEY, steps=20, scale=5.0, z=z))]


def large_case(folder, _):
    """Likewise on a noised image."""
    found = enlarge_pixels(
        load_pixel_diffusion(folder),
        jnp.asarray(photograph((2, 1, 8, 8, 3))),
        PROMPTS,
        KEY,
        steps=20,
        scale=5.0,
        z=noise("start", (2, 1, 16, 16, 3)),
        eps=noise("eps", (2, 1, 16, 16, 3)),
    )
    return [pixels(found)]


def animate_case(folder, _):
    """Noise levels without a table, guidance that grows over the frames, an image encoder of 224 pixels."""
    image = np.uint8(127.5 * (1 + photograph((40, 56, 3))))
    found = image_to_video(
        load_image_to_video(folder),
        jnp.asarray(image, jnp.float32)[None] / 127.5 - 1,
        KEY,
        frames=3,
        fps=9,
        motion=90,
        image_noise=0.1,
        steps=6,
        z=noise("start", (1, 3, 20, 28, 4)),
        eps=noise("eps", (1, 40, 56, 3)),
    )
    return [pixels(found)]


CASES = {
    "stable diffusion": image_case,
    "stable diffusion, v": image_case,
    "stable diffusion, trailing": image_case,
    "stable diffusion, zero terminal": image_case,
    "instruct pix2pix": edit_case,
    "instruct pix2pix, revised": revised_case,
    "upscaler": upscale_case,
    "modelscope": video_case,
    "animatediff": video_case,
    "karlo": unclip_case,
    "deepfloyd 1": small_case,
    "deepfloyd 2": large_case,
    "stable video diffusion": animate_case,
}
