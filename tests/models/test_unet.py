"""The U-Net against a numpy U-Net, and what must not depend on what."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
from tiny_unet import ALONE, CLIP, FLAT, JOINT, TINY, forward, gradients, inputs, network, segments

from jaxvid.core.paths import flatten
from jaxvid.models.unet import UNet

JOINED, JOINTLY = replace(FLAT, convolution="pseudo3d"), segments(JOINT, JOINT)


def distance(found, expected):
    """Relative distance of two arrays."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_the_network_is_the_papers_figure():
    """Clips longer than the largest relative distance, odd sizes, every frame at its own level of noise."""
    unet, p = network(TINY)
    z, logsnr, condition = inputs(5, 3)
    expected = naive.unet(TINY, p, z, logsnr, condition)
    assert distance(forward(unet, z, logsnr, condition), expected) < 1e-5


def test_the_network_with_temporal_convolutions():
    config = replace(FLAT, convolution="pseudo3d", blocks=1)
    unet, p = network(config)
    z, logsnr, condition = inputs(2, 3)
    segment = segments(CLIP, JOINT)
    expected = naive.unet(config, p, z, logsnr, condition, segment)
    assert distance(forward(unet, z, logsnr, condition, segment), expected) < 1e-5


def test_the_network_with_scales_and_shifts_without_a_condition():
    """And one level of noise for all frames."""
    config = replace(FLAT, modulation="scale_shift", blocks=1)
    unet, p = network(config)
    z, logsnr, _ = inputs(2, 2)
    segment = segments(JOINT, ALONE)
    expected = naive.unet(config, p, z, np.repeat(logsnr[:, :1], 4, 1), segment=segment)
    assert distance(forward(unet, z, logsnr[:, :1], segment=segment), expected) < 1e-5


def test_patches_are_the_unpatched_network_on_folded_pixels():
    config = replace(FLAT, blocks=1, patch=2)
    unet, p = network(config)
    z, logsnr, condition = inputs(4, 6)
    folded = np.zeros((2, 4, 2, 3, 12), np.float32)
    for i, j, row, column in np.ndindex(2, 3, 2, 2):
        place = slice(3 * (2 * row + column), 3 * (2 * row + column) + 3)
        folded[:, :, i, j, place] = z[:, :, 2 * i + row, 2 * j + column]
    expected = naive.unet(config, p, folded, logsnr, condition)
    y = forward(unet, z, logsnr, condition)
    for i, j, row, column in np.ndindex(2, 3, 2, 2):
        place = slice(3 * (2 * row + column), 3 * (2 * row + column) + 3)
        assert distance(y[:, :, 2 * i + row, 2 * j + column], expected[:, :, i, j, place]) < 1e-5


@pytest.mark.parametrize("padding", ["wrap", "zero"])
def test_on_a_torus_a_shift_of_the_input_shifts_the_output(padding):
    """By whole tokens of the coarsest level: 2 pixels of a patch times 2 for the one downsampling."""
    config = replace(JOINED, multipliers=(1, 2), blocks=1, patch=2, scan=False, padding=padding)
    unet, _ = network(config)
    z, logsnr, condition = inputs(8, 16)
    shifted = forward(unet, np.roll(z, (4, 8), (2, 3)), logsnr, condition)
    expected = np.roll(forward(unet, z, logsnr, condition), (4, 8), (2, 3))
    assert (distance(shifted, expected) < 1e-5) == (padding == "wrap")


# Ways to run the same network


@pytest.fixture(scope="module")
def scanned():
    """A scanned (2+1)D network as a function of its inputs and of the weights of its output: y and its gradients."""
    unet, _ = network(JOINED)

    def run(given, segment=JOINTLY, weights=None):
        weights = np.ones_like(given[0]) if weights is None else weights
        return gradients(unet, *given, segment, weights)

    return run


def test_unrolling_and_recomputation_change_nothing(scanned):
    given, weights = inputs(), inputs(seed=9)[0]
    expected_y, expected = scanned(given, weights=weights)
    unet, _ = network(replace(JOINED, scan=False, remat=True))
    y, found = gradients(unet, *given, JOINTLY, weights)
    assert distance(y, expected_y) < 1e-6
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert np.any(leaf != 0), path
        assert distance(found[path], leaf) < 2e-5, path


# An image is a clip of one frame


def without_moved_time(p, config):
    """The values with the temporal layers as they begin: output projections zero, taps the identity."""
    values = dict(p)
    for path, leaf in p.items():
        if "temporal/attention/out/" in path or path.endswith("temporal/bias"):
            values[path] = 0.0 * leaf
        elif path.endswith("temporal/kernel"):
            middle = np.arange(leaf.shape[-3])[:, None, None] == leaf.shape[-3] // 2
            values[path] = np.broadcast_to(middle * np.eye(leaf.shape[-1]), leaf.shape).astype("f4")
    return values


@pytest.mark.parametrize("convolution", ["spatial", "pseudo3d"])
def test_a_fresh_video_network_is_the_image_network_of_every_frame(convolution):
    config = replace(FLAT, convolution=convolution, blocks=1)
    video, p = network(config)
    values = without_moved_time(p, config)
    image, _ = network(replace(config, temporal_attention=False, convolution="spatial"))
    # By path: the image network has no temporal layers.
    shared = {path: leaf for path, leaf in values.items() if "/temporal/" not in path}
    image = naive.with_values(image, shared)
    z, logsnr, condition = inputs(5, 3)
    clips = forward(naive.with_values(video, values), z, logsnr, condition)
    frames = forward(
        image, z.reshape(8, 1, 5, 3, 3), logsnr.reshape(8, 1), condition.reshape(8, 1, -1)
    )
    np.testing.assert_allclose(clips, np.reshape(frames, clips.shape), atol=2e-5)
    # And once they have moved, it is not.
    moved = forward(video, z, logsnr, condition)
    assert distance(moved, clips) > 1e-2


# Joint training


@pytest.fixture(scope="module")
def joint(scanned):
    """Inputs, and the network's output and gradients where two images follow two frames of a clip."""

    def run(given, segment=JOINTLY, weights=None):
        y, found = scanned(given, segment, weights)
        return np.asarray(y), [np.asarray(leaf) for leaf in found[1:]]

    return inputs(), run


def changed(given, which, frame):
    """The inputs with pixels, noise level or condition of one frame changed."""
    values = [array.copy() for array in given]
    values[which][:, frame] = 3 * values[which][:, frame] + 1
    return values


@pytest.mark.parametrize("which", [0, 1, 2], ids=["pixels", "level", "condition"])
def test_an_appended_image_meets_no_other_frame(joint, which):
    given, run = joint
    y, _ = run(given)
    image, _ = run(changed(given, which, 2))
    np.testing.assert_array_equal(np.delete(image, 2, 1), np.delete(y, 2, 1))
    assert distance(image[:, 2], y[:, 2]) > 1e-3
    clip, _ = run(changed(given, which, 1))
    np.testing.assert_array_equal(clip[:, 2:], y[:, 2:])
    assert all(distance(clip[:, frame], y[:, frame]) > 1e-4 for frame in (0, 1))


@pytest.mark.parametrize(("frame", "seen"), [(0, [0, 1]), (1, [0, 1]), (2, [2]), (3, [3])])
def test_gradients_stay_within_the_segment(joint, frame, seen):
    given, run = joint
    weights = np.zeros_like(given[0])
    weights[:, frame] = given[0][:, frame]
    for gradient in run(given, weights=weights)[1]:
        for other in range(4):
            assert np.any(gradient[:, other] != 0) == (other in seen), (frame, other)


def test_appended_images_may_change_places(joint):
    given, run = joint
    order = [0, 1, 3, 2]
    y, _ = run(given)
    turned, _ = run([array[:, order] for array in given])
    np.testing.assert_allclose(turned, y[:, order], atol=1e-5)
    named, _ = run(given, segments([0, 0, 2, 1], [2, 2, 0, 1]))  # what they are called is all one
    np.testing.assert_allclose(named, y, atol=1e-5)


def test_frames_alone_do_not_depend_on_each_other(joint):
    given, run = joint
    y, _ = run(given, segments(ALONE, ALONE))
    for frame in range(4):
        other, _ = run(changed(given, 0, frame), segments(ALONE, ALONE))
        np.testing.assert_array_equal(np.delete(other, frame, 1), np.delete(y, frame, 1))
    clip, _ = run(given, segments(CLIP, CLIP))
    assert all(distance(clip[:, frame], y[:, frame]) > 1e-4 for frame in range(4))


# Dropout


def test_dropout_of_an_example_does_not_depend_on_the_batch():
    unet, p = network(replace(FLAT, dropout=0.5, blocks=1))
    z, logsnr, condition = inputs()
    keys = jax.random.split(jax.random.key(0), 2)
    run = naive.compiled(lambda unet, keys, *given: unet(*given, keys=keys))
    y = run(unet, keys, z, logsnr, condition)
    turned = run(unet, keys[::-1], z[::-1], logsnr[::-1], condition[::-1])
    np.testing.assert_allclose(turned[::-1], y, atol=1e-5)
    same = run(unet, keys, z[[0, 0]], logsnr[[0, 0]], condition[[0, 0]])
    assert distance(same[1], same[0]) > 1e-2  # another key, another mask
    assert distance(naive.unet(unet.config, p, z, logsnr, condition), y) > 1e-2


# Parameters


CORNER = replace(FLAT, channels=4, embedding_width=4, groups=2)


@pytest.fixture(scope="module")
def fresh():
    """The initial values by path of a small network, and of one with more blocks and temporal layers."""
    key = jax.random.key(5)
    less = replace(CORNER, blocks=1, temporal_attention=False)
    return flatten(UNet(less, key)), flatten(UNet(CORNER, key))


def test_output_layers_begin_at_zero_and_no_other(fresh):
    """So every block begins as the identity and the network predicts zero."""
    last = ("conv2", "attention/out", "head")
    for path, leaf in fresh[1].items():
        if path.endswith("kernel"):
            assert np.any(leaf != 0) != path.removesuffix("/kernel").endswith(last), path
        elif path.endswith("scale"):
            np.testing.assert_array_equal(leaf, np.ones_like(leaf))
        elif path.endswith("bias"):
            np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_another_layer_changes_no_other_parameter(fresh):
    small, large = fresh
    assert set(small) < set(large)
    for path, leaf in small.items():
        stacked = path.startswith(("down/", "up/"))
        np.testing.assert_array_equal(large[path][:1] if stacked else large[path], leaf, path)


def test_stacked_layers_differ(fresh):
    for path, leaf in fresh[1].items():
        if path.startswith(("down/", "up/")) and path.endswith("kernel") and np.any(leaf != 0):
            assert np.any(leaf[0] != leaf[1]), path


def test_kernels_begin_with_the_variance_of_their_inputs(fresh):
    """Fan-in scaling counts one layer, not the stack."""
    kernels = [
        (leaf, np.prod(leaf.shape[1:-1]))
        for path, leaf in fresh[1].items()
        if path.startswith("up/") and path.endswith(("conv1/kernel", "skip/kernel", "query/kernel"))
    ]
    assert len(kernels) == 4
    for leaf, fan_in in kernels:
        scaled = np.asarray(leaf) * fan_in**0.5
        assert abs(scaled.std() - 1) < 5 / (2 * scaled.size) ** 0.5


GOLDEN = """
down/0/residual/condition/bias 1 8
down/0/residual/condition/kernel 1 8 8
down/0/residual/conv1/bias 1 8
down/0/residual/conv1/kernel 1 3 3 8 8
down/0/residual/conv2/bias 1 8
down/0/residual/conv2/kernel 1 3 3 8 8
down/0/residual/norm1/bias 1 8
down/0/residual/norm1/scale 1 8
down/0/residual/norm2/bias 1 8
down/0/residual/norm2/scale 1 8
down/1/residual/condition/bias 1 16
down/1/residual/condition/kernel 1 8 16
down/1/residual/conv1/bias 1 16
down/1/residual/conv1/kernel 1 3 3 16 16
down/1/residual/conv2/bias 1 16
down/1/residual/conv2/kernel 1 3 3 16 16
down/1/residual/norm1/bias 1 16
down/1/residual/norm1/scale 1 16
down/1/residual/norm2/bias 1 16
down/1/residual/norm2/scale 1 16
down/1/spatial/attention/key/kernel 1 16 16
down/1/spatial/attention/out/bias 1 16
down/1/spatial/attention/out/kernel 1 16 16
down/1/spatial/attention/query/kernel 1 16 16
down/1/spatial/attention/value/kernel 1 16 16
down/1/spatial/norm/bias 1 16
down/1/spatial/norm/scale 1 16
down/1/temporal/attention/key/kernel 1 16 16
down/1/temporal/attention/out/bias 1 16
down/1/temporal/attention/out/kernel 1 16 16
down/1/temporal/attention/query/kernel 1 16 16
down/1/temporal/attention/value/kernel 1 16 16
down/1/temporal/norm/bias 1 16
down/1/temporal/norm/scale 1 16
down/1/temporal/positions/keys 1 5 8
down/1/temporal/positions/values 1 5 8
grow/0/conv/bias 8
grow/0/conv/kernel 3 3 16 8
head/bias 3
head/kernel 3 3 8 3
middle/residual/condition/bias 16
middle/residual/condition/kernel 8 16
middle/residual/conv1/bias 16
middle/residual/conv1/kernel 3 3 16 16
middle/residual/conv2/bias 16
middle/residual/conv2/kernel 3 3 16 16
middle/residual/norm1/bias 16
middle/residual/norm1/scale 16
middle/residual/norm2/bias 16
middle/residual/norm2/scale 16
middle/spatial/attention/key/kernel 16 16
middle/spatial/attention/out/bias 16
middle/spatial/attention/out/kernel 16 16
middle/spatial/attention/query/kernel 16 16
middle/spatial/attention/value/kernel 16 16
middle/spatial/norm/bias 16
middle/spatial/norm/scale 16
middle/temporal/attention/key/kernel 16 16
middle/temporal/attention/out/bias 16
middle/temporal/attention/out/kernel 16 16
middle/temporal/attention/query/kernel 16 16
middle/temporal/attention/value/kernel 16 16
middle/temporal/norm/bias 16
middle/temporal/norm/scale 16
middle/temporal/positions/keys 5 8
middle/temporal/positions/values 5 8
norm/bias 8
norm/scale 8
shrink/0/conv/bias 16
shrink/0/conv/kernel 3 3 8 16
stem/bias 8
stem/kernel 3 3 3 8
time/layers/0/bias 8
time/layers/0/kernel 8 8
time/layers/1/bias 8
time/layers/1/kernel 8 8
up/0/residual/condition/bias 1 8
up/0/residual/condition/kernel 1 8 8
up/0/residual/conv1/bias 1 8
up/0/residual/conv1/kernel 1 3 3 16 8
up/0/residual/conv2/bias 1 8
up/0/residual/conv2/kernel 1 3 3 8 8
up/0/residual/norm1/bias 1 16
up/0/residual/norm1/scale 1 16
up/0/residual/norm2/bias 1 8
up/0/residual/norm2/scale 1 8
up/0/residual/skip/bias 1 8
up/0/residual/skip/kernel 1 16 8
up/1/residual/condition/bias 1 16
up/1/residual/condition/kernel 1 8 16
up/1/residual/conv1/bias 1 16
up/1/residual/conv1/kernel 1 3 3 32 16
up/1/residual/conv2/bias 1 16
up/1/residual/conv2/kernel 1 3 3 16 16
up/1/residual/norm1/bias 1 32
up/1/residual/norm1/scale 1 32
up/1/residual/norm2/bias 1 16
up/1/residual/norm2/scale 1 16
up/1/residual/skip/bias 1 16
up/1/residual/skip/kernel 1 32 16
up/1/spatial/attention/key/kernel 1 16 16
up/1/spatial/attention/out/bias 1 16
up/1/spatial/attention/out/kernel 1 16 16
up/1/spatial/attention/query/kernel 1 16 16
up/1/spatial/attention/value/kernel 1 16 16
up/1/spatial/norm/bias 1 16
up/1/spatial/norm/scale 1 16
up/1/temporal/attention/key/kernel 1 16 16
up/1/temporal/attention/out/bias 1 16
up/1/temporal/attention/out/kernel 1 16 16
up/1/temporal/attention/query/kernel 1 16 16
up/1/temporal/attention/value/kernel 1 16 16
up/1/temporal/norm/bias 1 16
up/1/temporal/norm/scale 1 16
up/1/temporal/positions/keys 1 5 8
up/1/temporal/positions/values 1 5 8
"""


def test_paths_and_shapes_of_the_parameters():
    """Checkpoints and sharding rules speak in these names."""
    config = replace(TINY, blocks=1)
    unet = jax.eval_shape(lambda key: UNet(config, key), jax.random.key(0))
    lines = [
        " ".join([path, *map(str, leaf.shape)]) for path, leaf in sorted(flatten(unet).items())
    ]
    assert lines == GOLDEN.strip().splitlines()


# Precision


def test_the_computation_has_the_dtype_of_the_input():
    """What a bfloat16 network convolves is bfloat16; its last layer, and what it returns, is float32."""
    config = replace(JOINED, dropout=0.5, modulation="scale_shift", remat=True)
    unet = jax.eval_shape(lambda key: UNet(config, key), jax.random.key(0))
    z, logsnr, condition = inputs()
    keys = jax.random.split(jax.random.key(0), 2)
    segment = jnp.asarray(JOINTLY)

    def run(unet, z, logsnr, condition, keys):
        return unet(z, logsnr, condition, segment=segment, keys=keys)

    half = jnp.asarray(z).astype(jnp.bfloat16)
    assert jax.eval_shape(run, unet, half, logsnr, condition, keys).dtype == jnp.float32
    text = str(jax.make_jaxpr(run)(unet, half, logsnr, condition, keys))
    found = [line for line in text.splitlines() if "conv_general_dilated" in line]
    assert found
    others = [line for line in found if ":bf16[" not in line]
    assert len(others) == 1, others
