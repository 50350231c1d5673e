"""Whole pipelines against diffusers, from the same noise, with guidance."""

import jax.numpy as jnp
import numpy as np
import pytest
from pipeline_cases import CASES, bound, photograph

from jaxvid.pipelines.images import resize_for_clip
from jaxvid.weights.convert import convert_folder

pytestmark = pytest.mark.parity
NOT_EXPORTED = ("animatediff", "karlo", "instruct pix2pix, revised")


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_equals_diffusers(name, tmp_path):
    pytest.importorskip("diffusers")
    from pipeline_folders import outputs

    expected = outputs(name, tmp_path)
    for found, each in zip(CASES[name](tmp_path, expected), expected, strict=True):
        assert each.std() > 0.05
        assert np.abs(found - each).max() < bound(name)


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_EXPORTED])
def test_an_exported_pipeline_is_what_was_imported(name, tmp_path):
    """Diffusers opens the folder and gives what it gave before.

    AnimateDiff's modules have a folder of their own, and Karlo's pipeline diffusers 0.42.1 does not open as it writes it; the
    revision is of a folder that is there already.
    """
    pytest.importorskip("diffusers")
    from pipeline_folders import asked, outputs, reopened

    expected = outputs(name, tmp_path / "published")
    convert_folder(tmp_path / "published", tmp_path / "ours", "native")
    convert_folder(tmp_path / "ours", tmp_path / "exported", "published")
    for found, each in zip(asked(name, reopened(tmp_path / "exported")), expected, strict=True):
        np.testing.assert_array_equal(found, each)


@pytest.mark.parametrize("size", [(240, 320), (225, 224), (100, 700), (48, 31)])
def test_images_are_resized_for_clip_as_published(size):
    """Smaller, larger, and one side of each. PyTorch's places are float32, which is what the bound allows for."""
    pytest.importorskip("diffusers")
    from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as svd
    from pipeline_folders import channels_first

    images = photograph((2, *size, 3))
    expected = svd._resize_with_antialiasing(channels_first(images), (224, 224))
    found = channels_first(resize_for_clip(jnp.asarray(images)))
    assert np.abs(found - expected).max() < 2e-4
