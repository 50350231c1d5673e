"""Whole pipelines against diffusers' stored outputs, and what they refuse; live ones are in `test_live_pipelines`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fabricate import PIPELINE_TRUTH, write_pipeline
from pipeline_cases import CASES, KEY, PROMPTS, bound, photograph

from jaxvid.core.errors import UserError
from jaxvid.diffusion.schedule import EDM, LinearTable, ScaledLinearTable, SquaredCosineTable
from jaxvid.pipelines import (
    edit_image,
    load_latent_diffusion,
    load_unclip,
    text_to_image,
    upscale_image,
)
from jaxvid.pipelines.noise import Bound, PublishedNoise, read_noise
from jaxvid.pipelines.upscale import Upscaler


@pytest.mark.parametrize("name", json.loads(PIPELINE_TRUTH.read_text()))
def test_a_pipeline_equals_diffusers_stored_output(name, tmp_path):
    """As live."""
    folder, expected = write_pipeline(tmp_path, name)
    for found, each in zip(CASES[name](folder, expected), expected, strict=True):
        assert np.abs(found - each).max() < bound(name)


SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
STABLE = ScaledLinearTable(1000, 0.00085, 0.012)


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("DDIMScheduler", {}, PublishedNoise(LinearTable(), bound=Bound(1.0))),
        (
            "PNDMScheduler",
            {**SD, "skip_prk_steps": True},
            PublishedNoise(STABLE, offset=1, final="first"),
        ),
        (
            "EulerAncestralDiscreteScheduler",
            {**SD, "prediction_type": "v_prediction"},
            PublishedNoise(STABLE, target="v", spacing="linspace", offset=1),
        ),
        (
            "UnCLIPScheduler",
            {"prediction_type": "sample", "clip_sample_range": 5.0, "variance_type": "fixed_small"},
            PublishedNoise(SquaredCosineTable(), "x", "linspace", bound=Bound(5.0)),
        ),
        (
            "DDPMScheduler",
            {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5,
             "variance_type": "learned_range", "clip_sample": False, "num_train_timesteps": 50},
            PublishedNoise(LinearTable(50), bound=Bound(1.5, 0.95), learned=True),
        ),
        (
            "DDIMScheduler",
            {"rescale_betas_zero_snr": True, "clip_sample": False},
            PublishedNoise(LinearTable(zero_terminal=True)),
        ),
        (
            "EulerDiscreteScheduler",
            {**SD, "timestep_type": "continuous", "use_karras_sigmas": True, "sigma_max": 700.0,
             "prediction_type": "v_prediction"},
            PublishedNoise(EDM(sigma_max=700.0), "v"),
        ),
    ],
)  # fmt: skip
def test_a_field_left_out_means_what_its_class_says(tmp_path, kind, fields, expected):
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": kind, **fields}))
    assert read_noise(tmp_path) == expected
    assert len(expected.grid(7)) == 8


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}, "FlowMatchEulerDiscreteScheduler cannot be read"),
        ("DDIMScheduler", {"trained_betas": [0.1]}, "trained_betas is"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas is True"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type is 'continuous'"),
        ("DDIMScheduler", {"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        ("DDIMScheduler", {"beta_start": 2.0}, "beta_start is 2.0; a finite number above 0 below 1"),
        ("DDIMScheduler", {"beta_end": "0.1"}, "beta_end is '0.1'; a finite number"),
        ("DDIMScheduler", {"steps_offset": -1}, "steps_offset is -1; a whole number from 0"),
        ("DDIMScheduler", {"clip_sample": 1}, "clip_sample is 1; true or false is wanted"),
        ("DDPMScheduler", {"clip_sample_range": 0.0}, "clip_sample_range is 0.0; a finite number"),
        ("DDIMScheduler", {"prediction_type": "flow"}, "prediction_type is 'flow'"),
    ],
)  # fmt: skip
def test_noise_that_cannot_be_expressed_is_refused(tmp_path, kind, fields, words):
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": kind, **fields}))
    with pytest.raises(UserError, match=words):
        read_noise(tmp_path)


def test_what_does_not_fit_a_pipeline_is_refused(tmp_path):
    """Before anything is sampled, naming the number and the remedy."""
    folder, _ = write_pipeline(tmp_path, "stable diffusion")
    model = load_latent_diffusion(folder)
    images = jnp.asarray(photograph((1, 16, 16, 3)))
    for call, words in [
        (lambda: text_to_image(model, [], KEY), "no prompts"),
        (lambda: text_to_image(model, PROMPTS, KEY, size=(16, 15)), "multiples of 2"),
        (lambda: text_to_image(model, PROMPTS, KEY, size=(0, 16)), "multiples of 2"),
        (lambda: text_to_image(model, PROMPTS, KEY, z=jnp.zeros((2, 1, 3, 3, 4))), "the start has"),
        (lambda: edit_image(model, images, PROMPTS, KEY), "1 images and 2 prompts"),
        (lambda: edit_image(model, images, ["a"], KEY), "give InstructPix2Pix's folder"),
        (
            lambda: upscale_image(Upscaler(model, model.noise), images, ["a"], KEY),
            "give the x4 upscaler's folder",
        ),
        (lambda: load_unclip(folder), "prior does not exist"),
        (lambda: model.noise.at_index(1000), "give 0 to 999"),
    ]:
        with pytest.raises(UserError, match=words):
            call()


def test_a_run_is_the_keys_and_another_guidance_does_not_compile_again(tmp_path):
    folder, _ = write_pipeline(tmp_path, "stable diffusion")
    model = load_latent_diffusion(folder)
    given = {"size": (8, 8), "steps": 3}
    one = text_to_image(model, PROMPTS, KEY, **given)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", lambda *_: pytest.fail("compiled"))
        np.testing.assert_array_equal(one, text_to_image(model, PROMPTS, KEY, **given))
        other = text_to_image(model, PROMPTS, KEY, scale=3.0, negative="blue", **given)
    assert np.abs(other - one).max() > 1e-3
