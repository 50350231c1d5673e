"""Convolution and resampling against loops."""

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvid.core.paths import flatten
from jaxvid.nn.conv import Pseudo3DConv, SpatialConv, TemporalConv, identity_taps
from jaxvid.nn.linear import zeros
from jaxvid.nn.resample import Downsample, Upsample


@pytest.mark.parametrize("padding", ["zero", "wrap"])
@pytest.mark.parametrize(
    ("size", "stride", "height", "width"),
    [(3, 1, 4, 4), (3, 1, 5, 3), (1, 1, 3, 4), (3, 2, 4, 6), (3, 2, 5, 7), (3, 2, 1, 2)],
)
def test_spatial_convolution(size, stride, height, width, padding):
    conv, p = naive.filled(
        lambda key: SpatialConv(3, 4, key, size=size, stride=stride, padding=padding)
    )
    x = naive.normal(2, 3, height, width, 3)
    expected = naive.spatial_conv(p, x, stride, padding)
    assert expected.shape[2:4] == (-(-height // stride), -(-width // stride))
    np.testing.assert_allclose(naive.call(conv, x), expected, atol=1e-5)


@pytest.mark.parametrize("padding", ["zero", "wrap"])
@pytest.mark.parametrize(
    ("size", "stride", "height", "width"), [(3, 1, 4, 5), (2, 1, 3, 4), (1, 1, 2, 2), (3, 2, 5, 4)]
)
def test_gradients_of_the_spatial_convolution_are_its_adjoints(
    size, stride, height, width, padding
):
    """The convolution is linear in x and in the kernel: <y(x'), w> = <dx, x'> for every x', and so for kernels."""
    conv, p = naive.filled(
        lambda key: SpatialConv(2, 3, key, size=size, stride=stride, padding=padding)
    )
    x = naive.normal(2, 2, height, width, 2)
    still = {**p, "bias": 0.0 * p["bias"]}
    w = naive.normal(*naive.spatial_conv(p, x, stride, padding).shape, seed=2)
    total = naive.compiled(jax.grad(lambda conv, x: jnp.vdot(conv(x), w), argnums=(0, 1)))
    dconv, dx = total(conv, x)
    dconv = flatten(dconv)
    for seed in range(3, 8):
        other = naive.normal(*x.shape, seed=seed)
        expected = np.vdot(naive.spatial_conv(still, other, stride, padding), w)
        np.testing.assert_allclose(np.vdot(dx, other), expected, atol=1e-4)
        kernel = naive.normal(*p["kernel"].shape, seed=seed)
        expected = np.vdot(naive.spatial_conv({**still, "kernel": kernel}, x, stride, padding), w)
        np.testing.assert_allclose(np.vdot(dconv["kernel"], kernel), expected, atol=1e-4)
    np.testing.assert_allclose(dconv["bias"], w.sum((0, 1, 2, 3)), atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_temporal_convolution(size, frames):
    conv, p = naive.filled(lambda key: TemporalConv(3, 4, key, size=size))
    x = naive.normal(2, frames, 2, 1, 3)
    np.testing.assert_allclose(naive.call(conv, x), naive.temporal_conv(p, x), atol=1e-5)


segments = st.lists(st.integers(0, 2), min_size=5, max_size=5)
CONV, PARAMS = naive.filled(lambda key: TemporalConv(3, 2, key, size=5))
CLIPS = naive.normal(2, 5, 1, 2, 3)


@settings(max_examples=40, deadline=None)
@given(segments, segments)
def test_temporal_convolution_stays_within_segments(first, second):
    segment = np.array([first, second], np.int32)
    y = naive.call(CONV, CLIPS, segment)
    np.testing.assert_allclose(y, naive.temporal_conv(PARAMS, CLIPS, segment), atol=1e-5)


def test_no_number_crosses_a_border():
    """Not even one that is not finite."""
    segment = np.array([[0, 0, 1, 2, 2], [0, 0, 0, 1, 2]], np.int32)
    x = CLIPS.copy()
    x[0, 2] = np.nan
    y = np.asarray(naive.call(CONV, x, segment))
    assert np.isnan(y[0, 2]).all()
    np.testing.assert_array_equal(
        np.delete(y[0], 2, 0), np.delete(naive.call(CONV, CLIPS, segment)[0], 2, 0)
    )


def test_identity_taps_are_the_identity():
    conv = TemporalConv(3, 3, jax.random.key(0), init=identity_taps)
    x = naive.normal(1, 4, 2, 2, 3)
    segment = jnp.asarray([[0, 0, 1, 2]], jnp.int32)
    np.testing.assert_array_equal(conv(jnp.asarray(x)), x)
    np.testing.assert_array_equal(conv(jnp.asarray(x), segment), x)
    for shape in ((4, 3, 3), (3, 3, 2)):
        with pytest.raises(ValueError, match="identity needs"):
            identity_taps(jax.random.key(0), shape)


def test_pseudo3d_starts_as_the_spatial_convolution():
    """Exactly: at initialisation the temporal half adds zeros and multiplies by one."""
    fresh = flatten(Pseudo3DConv(3, 4, jax.random.key(0), init=zeros))
    both, p = naive.filled(lambda key: Pseudo3DConv(3, 4, key))
    spatial, _ = naive.filled(lambda key: SpatialConv(3, 4, key))
    moved = {path: leaf for path, leaf in fresh.items() if path.startswith("temporal/")}
    assert set(moved) == {"temporal/kernel", "temporal/bias"}
    both = naive.with_values(both, {**p, **moved})
    # By path, as an image model's weights are taken over by a video model.
    spatial = naive.with_values(spatial, {path: p[path] for path in ("kernel", "bias")})
    x = jnp.asarray(naive.normal(2, 3, 5, 4, 3))
    np.testing.assert_array_equal(both(x), spatial(x))
    np.testing.assert_array_equal(both(x[:, :1]), spatial(x[:, :1]))


def test_pseudo3d_is_the_two_in_turn():
    both, p = naive.filled(lambda key: Pseudo3DConv(2, 3, key, size=1, temporal_size=5))
    x = naive.normal(1, 4, 3, 2, 2)
    segment = np.array([[0, 0, 1, 1]], np.int32)
    expected = naive.convolution(p, x, segment)
    np.testing.assert_allclose(naive.call(both, x, segment), expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3), (1, 7)])
def test_resampling_returns_to_every_size(height, width):
    down, p = naive.filled(lambda key: Downsample(3, 4, key))
    x = naive.normal(1, 2, height, width, 3)
    small = naive.call(down, x)
    assert small.shape == (1, 2, -(-height // 2), -(-width // 2), 4)
    np.testing.assert_allclose(
        small, naive.spatial_conv(naive.part(p, "conv"), x, stride=2), atol=1e-5
    )
    up, p = naive.filled(lambda key: Upsample(4, 3, key), seed=1)
    large = np.empty((1, 2, height, width, 4))
    for i, j in np.ndindex(height, width):
        large[:, :, i, j] = small[:, :, i // 2, j // 2]
    np.testing.assert_allclose(
        up(small, height, width), naive.spatial_conv(naive.part(p, "conv"), large), atol=1e-5
    )
