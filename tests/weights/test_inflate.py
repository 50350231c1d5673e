"""An inflated model gives the image model's frames, and trains without touching them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fabricate import given, write_folder
from test_public_networks import TRUTH

from jaxvid.core.paths import flatten, split, unflatten
from jaxvid.models.conditional_unet import MotionConfig, abstract_unet
from jaxvid.weights.inflate import inflate, temporal_paths
from jaxvid.weights.unets import load_unet

KINDS = ["pseudo3d", "mixed", "modelscope", MotionConfig(heads=4)]
IMAGES = ["stable diffusion 1", "stable diffusion 2"]
FRAMES = 16


@pytest.fixture(scope="module", params=IMAGES)
def image(request, tmp_path_factory):
    truth = TRUTH[request.param]
    return load_unet(
        write_folder(tmp_path_factory.mktemp("unet"), truth["config"], truth["shapes"])
    )


def inputs():
    """Sixteen frames, times of two clips, and a context."""
    z = jnp.asarray(given("frames", (2, FRAMES, 6, 8, 4)))
    return z, jnp.asarray([3, 700]), jnp.asarray(given("words", (2, 5, 12)))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_frames_are_the_image_models(image, kind):
    """To 1e-6 relative, for 16 frames, each of which the image model sees alone."""
    z, time, context = inputs()
    ask = jax.jit(lambda unet, z, time, context: unet(z, time, context))
    video = inflate(image, kind, jax.random.key(0))
    found = ask(video, z, time, context)
    alone = z.reshape(-1, 1, *z.shape[2:])
    wanted = ask(image, alone, jnp.repeat(time, FRAMES), jnp.repeat(context, FRAMES, axis=0))
    wanted = wanted.reshape(found.shape)
    assert np.linalg.norm(found - wanted) < 1e-6 * np.linalg.norm(wanted)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_training_the_temporal_layers_moves_frames_and_no_spatial_parameter(image, kind):
    """One step: spatial parameters are the same bits, and the frames of a clip then depend on each other."""
    z, time, context = inputs()
    video = inflate(image, kind, jax.random.key(1))
    new = temporal_paths(video)
    trained, kept = split(flatten(video), lambda path: path in new)
    assert set(kept) == {path for path in flatten(video) if path not in new}
    assert len(kept) == len(flatten(image))

    def join(trained):
        return unflatten(abstract_unet(video.config), {**kept, **trained})

    def loss(trained):
        return jnp.mean((join(trained)(z, time, context) - jnp.roll(z, 1, axis=1)) ** 2)

    slopes = jax.jit(jax.grad(loss))(trained)
    moved = join({path: leaf - 0.5 * slopes[path] for path, leaf in trained.items()})
    after = flatten(moved)
    for path, leaf in kept.items():
        np.testing.assert_array_equal(after[path], leaf)
    ask = jax.jit(lambda unet, z: unet(z, time, context))
    other = z.at[:, 3].add(1.0)
    difference = np.abs(ask(moved, other) - ask(moved, z)).max((0, 2, 3, 4))
    assert difference[3] > 1e-3
    assert difference[2] > 1e-7
    # The image model's own parameters are where they were, by the paths that they had.
    for path, leaf in flatten(image).items():
        new_path = path.replace("resnets/", "resnets/") if kind != "mixed" else None
        if new_path is not None:
            np.testing.assert_array_equal(after[new_path].reshape(leaf.shape), leaf)


def test_an_inflated_model_is_not_inflated_again(image):
    video = inflate(image, "modelscope", jax.random.key(0))
    with pytest.raises(ValueError, match="temporal layers already: modelscope"):
        inflate(video, "pseudo3d", jax.random.key(0))


def test_a_mixed_model_is_the_image_model_where_frames_are_still(image):
    """Also when its temporal layers have been trained."""
    z, time, context = inputs()
    video = inflate(image, "mixed", jax.random.key(0))
    rng = np.random.default_rng(0)
    noisy = {
        path: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32)
        if path in temporal_paths(video)
        else leaf
        for path, leaf in flatten(video).items()
    }
    trained = unflatten(abstract_unet(video.config), noisy)
    ask = jax.jit(lambda unet, still: unet(z, time, context, still=still))
    still = ask(trained, jnp.ones((2, FRAMES), bool))
    wanted = ask(image, None)
    assert np.linalg.norm(still - wanted) < 1e-6 * np.linalg.norm(wanted)
    moving = ask(trained, jnp.zeros((2, FRAMES), bool))
    assert np.linalg.norm(moving - wanted) > 1e-2 * np.linalg.norm(wanted)
    assert replace(video.config, temporal="none") == image.config
