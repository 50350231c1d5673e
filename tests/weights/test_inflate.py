"""An inflated model gives the image model's frames, and trains without touching them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fabricate import given, weight

from jaxvid.core.paths import flatten, split, unflatten
from jaxvid.models.blocks import BlockConfig
from jaxvid.models.conditional_unet import (
    ConditionalUNetConfig,
    Level,
    MotionConfig,
    abstract_unet,
)
from jaxvid.weights.inflate import inflate, spatial_path, temporal_paths

KINDS = ["vdm", "pseudo3d", "mixed", "modelscope", MotionConfig(heads=2)]
FRAMES = 16


@pytest.fixture(scope="module")
def image():
    """One level of Stable Diffusion 1's kind: 1x1 convolutions around transformers, which the mixed blocks store as dense layers."""
    config = ConditionalUNetConfig(
        levels=(Level(8, blocks=1, attention="transformer", head_dim=4),),
        context=12,
        block=BlockConfig(groups=4),
    )
    values = {
        path: jnp.asarray(weight(path, leaf.shape))
        for path, leaf in flatten(abstract_unet(config)).items()
    }
    return unflatten(abstract_unet(config), values)


@pytest.fixture(scope="module", params=KINDS, ids=str)
def video(request, image):
    return inflate(image, request.param, jax.random.key(0))


@jax.jit
def ask(unet, z, time, context, still=None):
    """The network's output."""
    return unet(z, time, context, still=still)


def inputs():
    """Sixteen frames, times of two clips, and a context."""
    z = jnp.asarray(given("frames", (2, FRAMES, 4, 4, 4)))
    return z, jnp.asarray([3, 700]), jnp.asarray(given("words", (2, 5, 12)))


def test_frames_are_the_image_models(image, video):
    """To 1e-6 relative, for 16 frames, each of which the image model sees alone."""
    z, time, context = inputs()
    alone = z.reshape(-1, 1, *z.shape[2:])
    wanted = ask(image, alone, jnp.repeat(time, FRAMES), jnp.repeat(context, FRAMES, axis=0))
    wanted = wanted.reshape(z.shape)
    found = ask(video, z, time, context)
    assert np.linalg.norm(found - wanted) < 1e-6 * np.linalg.norm(wanted)


def test_training_the_temporal_layers_moves_frames_and_no_spatial_parameter(image, video):
    """One step: spatial parameters are the same bits, and the frames of a clip then depend on each other."""
    z, time, context = inputs()
    new = temporal_paths(video)
    trained, kept = split(flatten(video), lambda path: path in new)
    before = flatten(image)
    assert {spatial_path(path) for path in kept} == set(before)

    def join(trained):
        return unflatten(abstract_unet(video.config), {**kept, **trained})

    def loss(trained):
        return jnp.mean((join(trained)(z, time, context) - jnp.roll(z, 1, axis=1)) ** 2)

    slopes = jax.jit(jax.grad(loss))(trained)
    moved = join({path: leaf - 0.5 * slopes[path] for path, leaf in trained.items()})
    for path, leaf in flatten(moved).items():
        if path not in new:
            old = before[spatial_path(path)]
            np.testing.assert_array_equal(leaf.reshape(old.shape), old)
    other = z.at[:, 3].add(1.0)
    difference = np.abs(ask(moved, other, time, context) - ask(moved, z, time, context))
    difference = difference.max((0, 2, 3, 4))
    assert difference[3] > 1e-3
    assert difference[2] > 1e-6
    same = np.abs(ask(video, other, time, context) - ask(video, z, time, context))
    assert same.max((0, 2, 3, 4))[2] < 1e-5 * difference[3]


def test_an_inflated_model_is_not_inflated_again(video):
    with pytest.raises(ValueError, match="temporal layers already"):
        inflate(video, "pseudo3d", jax.random.key(0))


def test_a_mixed_model_is_the_image_model_where_frames_are_still(image):
    """Also when its temporal layers have been trained."""
    z, time, context = inputs()
    video = inflate(image, "mixed", jax.random.key(0))
    rng, new = np.random.default_rng(0), temporal_paths(video)
    noisy = {
        path: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32)
        if path in new
        else leaf
        for path, leaf in flatten(video).items()
    }
    trained = unflatten(abstract_unet(video.config), noisy)
    still = ask(trained, z, time, context, jnp.ones((2, FRAMES), bool))
    wanted = ask(image, z, time, context)
    assert np.linalg.norm(still - wanted) < 1e-6 * np.linalg.norm(wanted)
    moving = ask(trained, z, time, context, jnp.zeros((2, FRAMES), bool))
    assert np.linalg.norm(moving - wanted) > 1e-2 * np.linalg.norm(wanted)
    assert replace(video.config, temporal="none") == image.config
