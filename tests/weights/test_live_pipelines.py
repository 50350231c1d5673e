"""Whole pipelines against diffusers, from the same noise: 20 DDIM steps with guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fabricate import given

from jaxvid.pipelines import edit_image, load_latent_diffusion, text_to_image, text_to_video

pytestmark = pytest.mark.parity
PROMPTS = ["the red circle", "a Ring, moving to the left!"]
KEY = jax.random.key(0)


def closest(found, expected):
    """The largest difference of pixels in [0, 1]."""
    return np.abs(np.asarray(found) * 0.5 + 0.5 - expected)


def start(shape):
    """The same noise in both layouts: ours and `b c h w`."""
    z = given("start", shape)
    return jnp.asarray(z), np.moveaxis(z, -1, -3)


@pytest.mark.parametrize(
    "scheduler",
    [
        {},
        {"prediction_type": "v_prediction"},
        {"timestep_spacing": "trailing", "set_alpha_to_one": True, "steps_offset": 0},
        {"clip_sample": True, "clip_sample_range": 0.8},
    ],
)
def test_text_to_image(tmp_path, scheduler):
    """To 1e-3 in pixels from 0 to 1."""
    import torch
    from pipeline_folders import pipeline

    pipe = pipeline("StableDiffusionPipeline", "stable diffusion 1", tmp_path, **scheduler)
    z, theirs = start((2, 1, 8, 12, 4))
    expected = pipe(
        PROMPTS,
        negative_prompt=["a blue square"] * 2,
        height=16,
        width=24,
        num_inference_steps=20,
        guidance_scale=7.5,
        latents=torch.from_numpy(theirs[:, 0].copy()),
        output_type="np",
    ).images
    model = load_latent_diffusion(tmp_path)
    found = text_to_image(
        model, PROMPTS, KEY, negative="a blue square", size=(16, 24), steps=20, z=z
    )
    found = jnp.clip(found, -1, 1)
    assert closest(found[:, 0], expected).max() < 1e-3
    assert expected.std() > 0.05


def test_instruct_pix2pix(tmp_path):
    """Three branches: image and text, image, neither."""
    import torch
    from pipeline_folders import pipeline

    pipe = pipeline("StableDiffusionInstructPix2PixPipeline", "instruct pix2pix", tmp_path)
    z, theirs = start((2, 1, 8, 12, 4))
    images = np.tanh(given("images", (2, 16, 24, 3)))
    expected = pipe(
        PROMPTS,
        image=torch.from_numpy(np.moveaxis(images, -1, 1).copy()),
        num_inference_steps=20,
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        latents=torch.from_numpy(theirs[:, 0].copy()),
        output_type="np",
    ).images
    model = load_latent_diffusion(tmp_path)
    found = edit_image(model, jnp.asarray(images), PROMPTS, KEY, steps=20, z=z)
    assert closest(jnp.clip(found, -1, 1)[:, 0], expected).max() < 1e-3


def test_text_to_video(tmp_path):
    """ModelScope's: three frames."""
    import torch
    from pipeline_folders import pipeline

    pipe = pipeline("TextToVideoSDPipeline", "modelscope", tmp_path)
    z, theirs = start((2, 3, 8, 12, 4))
    expected = pipe(
        PROMPTS,
        height=16,
        width=24,
        num_frames=3,
        num_inference_steps=20,
        guidance_scale=9.0,
        latents=torch.from_numpy(theirs.transpose(0, 2, 1, 3, 4).copy()),
        output_type="np",
    ).frames
    model = load_latent_diffusion(tmp_path)
    found = text_to_video(model, PROMPTS, KEY, frames=3, size=(16, 24), steps=20, z=z)
    assert closest(jnp.clip(found, -1, 1), expected).max() < 1e-3
