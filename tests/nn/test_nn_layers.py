"""Dense layers, norms, embeddings, dropout and segments against numpy."""

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvid.core.paths import flatten
from jaxvid.nn.attention import (
    AttentionPooling,
    MultiHeadAttention,
    SpatialAttention,
    TemporalAttention,
)
from jaxvid.nn.conv import Pseudo3DConv, SpatialConv, TemporalConv
from jaxvid.nn.dropout import dropout
from jaxvid.nn.embedding import logsnr_features, sinusoidal
from jaxvid.nn.linear import MLP, Embedding, Linear, add_bias
from jaxvid.nn.norm import GroupNorm, LayerNorm
from jaxvid.nn.resample import Downsample, Upsample
from jaxvid.nn.segments import temporal_mask, to_frames


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    layer, p = naive.filled(lambda key: Linear(3, 5, key, bias=bias))
    x = naive.normal(2, 4, 3)
    assert set(p) == ({"kernel", "bias"} if bias else {"kernel"})
    np.testing.assert_allclose(layer(jnp.asarray(x)), naive.linear(p, x), atol=1e-6)


def test_mlp_has_its_activation_between_layers_only():
    mlp, p = naive.filled(lambda key: MLP(4, 6, 3, key))
    x = naive.normal(5, 4)
    y = naive.linear(naive.part(p, "layers/0"), x)
    for layer in (1, 2):
        y = naive.linear(naive.part(p, f"layers/{layer}"), naive.silu(y))
    np.testing.assert_allclose(mlp(jnp.asarray(x)), y, atol=1e-6)


def test_embedding_looks_up_rows():
    table, p = naive.filled(lambda key: Embedding(7, 4, key))
    index = np.array([[0, 6, 3], [3, 1, 0]], np.int32)
    np.testing.assert_array_equal(table(jnp.asarray(index)), p["table"][index])


@pytest.mark.parametrize(("channels", "groups"), [(8, 32), (12, 8), (64, 32), (7, 3)])
def test_group_norm_is_per_frame(channels, groups):
    norm, p = naive.filled(lambda key: GroupNorm(channels, groups=groups))
    x = 3 * naive.normal(2, 3, 2, 3, channels) + 1
    y = norm(jnp.asarray(x))
    np.testing.assert_allclose(y, naive.group_norm(p, x, groups), atol=2e-5)
    other = x.copy()
    other[0, 1] = -9 * other[0, 1] ** 2  # one frame changes no other
    changed = np.asarray(norm(jnp.asarray(other)))
    np.testing.assert_array_equal(np.delete(changed[0], 1, 0), np.delete(y[0], 1, 0))
    np.testing.assert_array_equal(changed[1], y[1])


def test_group_norm_keeps_the_variance_beside_a_large_mean():
    norm, p = naive.filled(lambda key: GroupNorm(8, groups=2))
    x = naive.normal(1, 1, 4, 4, 8) + np.float32(3000)
    np.testing.assert_allclose(norm(jnp.asarray(x)), naive.group_norm(p, x, 2), atol=2e-3)
    flat = jnp.full((1, 1, 4, 4, 8), 5.0)  # no variance at all
    np.testing.assert_allclose(norm(flat), np.broadcast_to(p["bias"], flat.shape), atol=1e-6)
    gradient = jax.grad(lambda x: norm(x).sum())(flat)
    assert np.isfinite(gradient).all()


SCALES, SHIFTS = 0.5 * naive.normal(2, 3, 8, seed=4), naive.normal(2, 3, 8, seed=5)


def modulated(p, x, scale, shift):
    """Dhariwal & Nichol 2021: scale and shift of each frame and channel, after the norm's own."""
    y = naive.group_norm(p, x, 2)
    return y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


def test_group_norm_with_a_modulation():
    norm, p = naive.filled(lambda key: GroupNorm(8, groups=2))
    x = naive.normal(2, 3, 4, 5, 8)
    y = norm(jnp.asarray(x), (jnp.asarray(SCALES), jnp.asarray(SHIFTS)))
    np.testing.assert_allclose(y, modulated(p, x, SCALES, SHIFTS), atol=1e-5)


def test_gradients_of_the_group_norm_are_the_differences_of_the_reference():
    """Along random directions in x, in the norm's parameters and in the modulation; central differences in float64."""
    norm, p = naive.filled(lambda key: GroupNorm(8, groups=2))
    x, w = naive.normal(2, 3, 4, 5, 8), naive.normal(2, 3, 4, 5, 8, seed=3)
    at = {**p, "x": x, "scales": SCALES, "shifts": SHIFTS}

    def total(norm, x, scales, shifts):
        return jnp.vdot(norm(x, (scales, shifts)), w)

    def reference(values):
        return np.vdot(
            modulated(values, values["x"], values["scales"], values["shifts"]), w.astype(np.float64)
        )

    found = naive.compiled(jax.grad(total, argnums=(0, 1, 2, 3)))(norm, x, SCALES, SHIFTS)
    gradients = {
        **flatten(found[0]),
        **dict(zip(("x", "scales", "shifts"), found[1:], strict=True)),
    }
    step = 1e-4
    for seed, name in enumerate(at):
        way = naive.normal(*at[name].shape, seed=10 + seed).astype(np.float64)
        ends = [reference({**at, name: at[name] + sign * step * way}) for sign in (1, -1)]
        difference = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(np.vdot(gradients[name], way), difference, rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_of_a_bias_is_the_sum_over_all_places(dtype):
    """In bfloat16 too: a thousand terms are summed in float32, not rounded one by one."""
    g = jnp.asarray(naive.normal(3, 7, 50, 4) + 0.5).astype(dtype)
    bias, x = jnp.zeros(4, dtype), jnp.zeros(g.shape, dtype)
    _, pull = jax.vjp(add_bias, x, bias)
    dx, dbias = pull(g)
    np.testing.assert_array_equal(dx.astype(jnp.float32), g.astype(jnp.float32))
    expected = np.asarray(g, np.float64).sum((0, 1, 2))
    rounding = 1e-5 if dtype == jnp.float32 else 2.0**-8
    np.testing.assert_allclose(dbias.astype(jnp.float32), expected, rtol=rounding)


def test_layer_norm():
    norm, p = naive.filled(lambda key: LayerNorm(6, eps=1e-12))
    x = 2 * naive.normal(3, 4, 6) + 5
    np.testing.assert_allclose(
        norm(jnp.asarray(x)), naive.layer_norm(p, x, 1e-12), rtol=1e-5, atol=1e-5
    )


def test_sinusoidal_features():
    x = np.array([[0.0, 1.0], [-3.5, 1000.0]], np.float32)
    features = sinusoidal(jnp.asarray(x), 8)
    for place in np.ndindex(2, 2):
        for i in range(4):
            angle = float(x[place]) / 10_000 ** (i / 3)
            np.testing.assert_allclose(features[place][i], np.sin(angle), atol=1e-4)
            np.testing.assert_allclose(features[place][4 + i], np.cos(angle), atol=1e-4)


LOGSNRS = np.array([-1e4, -300, -100, -20, -3, -1e-3, 0, 0.7, 5, 20, 100, 300, 1e4], np.float32)


def test_logsnr_features():
    features = np.asarray(logsnr_features(jnp.asarray(LOGSNRS), 16))
    inside = np.abs(LOGSNRS) <= 100
    expected = naive.logsnr_features(LOGSNRS[inside].astype(np.float64), 16)
    np.testing.assert_allclose(features[inside], expected, atol=2e-4)
    # At the ends the time is exactly 1 and 0.
    first, last = naive.logsnr_features(np.array([-300.0, 300.0]), 16)
    np.testing.assert_allclose(features[:2], [first, first], atol=2e-4)
    np.testing.assert_allclose(features[-2:], [last, last], atol=2e-4)


def test_logsnr_features_have_the_right_finite_gradients():
    weights = naive.normal(16)
    slope = jax.vmap(jax.grad(lambda logsnr: jnp.vdot(logsnr_features(logsnr, 16), weights)))
    gradient = np.asarray(slope(jnp.asarray(LOGSNRS)))
    assert np.isfinite(gradient).all()
    inside = np.abs(LOGSNRS) <= 20
    at, step = LOGSNRS[inside].astype(np.float64), 1e-5
    up, down = (naive.logsnr_features(at + sign * step, 16) for sign in (1, -1))
    np.testing.assert_allclose(
        gradient[inside], (up - down) @ weights / (2 * step), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("width", [2, 7])
def test_sinusoidal_refuses_widths_that_it_has_no_frequencies_for(width):
    with pytest.raises(ValueError, match="even"):
        sinusoidal(jnp.zeros(1), width)


# Dropout


def test_dropout_does_not_depend_on_the_rest_of_the_batch():
    keys = jax.random.split(jax.random.key(3), 4)
    x = jnp.asarray(naive.normal(4, 6, 5))
    y = dropout(x, 0.4, keys)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(dropout(x[order], 0.4, keys[order]), y[order])
    np.testing.assert_array_equal(dropout(x[1:2], 0.4, keys[1:2]), y[1:2])
    kept = np.asarray(y) != 0
    np.testing.assert_allclose(np.asarray(y)[kept], (np.asarray(x) / 0.6)[kept], rtol=1e-6)
    assert (kept[0] != kept[1]).any()


def test_dropout_keeps_the_mean():
    n = 40_000
    y = np.asarray(dropout(jnp.ones((1, n)), 0.3, jax.random.split(jax.random.key(0), 1)))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
    deviation = (0.3 / 0.7 / n) ** 0.5
    assert abs(y.mean() - 1) < 5 * deviation


def test_dropout_off_is_the_identity():
    x = jnp.ones((2, 3))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.split(jax.random.key(0), 2)) is x


# Segments

segments = st.lists(st.integers(0, 3), min_size=5, max_size=5)


@settings(max_examples=30, deadline=None)
@given(segments, segments)
def test_temporal_mask_and_gather(first, second):
    segment = np.array([first, second], np.int32)
    mask = np.asarray(temporal_mask(jnp.asarray(segment)))
    for b, i, j in np.ndindex(2, 5, 5):
        assert mask[b, i, j] == (segment[b, i] == segment[b, j])
    for count in (4, 7):  # fewer and more segments than frames
        values = naive.normal(2, count, 3, 2)
        frames = np.asarray(to_frames(jnp.asarray(values), jnp.asarray(segment)))
        for b, i in np.ndindex(2, 5):
            np.testing.assert_array_equal(frames[b, i], values[b, segment[b, i]])
        flat = to_frames(jnp.asarray(values[..., 0, 0]), jnp.asarray(segment))
        np.testing.assert_array_equal(flat, frames[..., 0, 0])


# Precision

VIDEO, TOKENS = (2, 3, 4, 4, 8), (2, 5, 8)
LAYERS = {
    "linear": (lambda key: Linear(8, 4, key), VIDEO),
    "mlp": (lambda key: MLP(8, 4, 2, key), TOKENS),
    "group norm": (lambda key: GroupNorm(8), VIDEO),
    "layer norm": (lambda key: LayerNorm(8), TOKENS),
    "spatial convolution": (lambda key: SpatialConv(8, 4, key), VIDEO),
    "temporal convolution": (lambda key: TemporalConv(8, 4, key), VIDEO),
    "(2+1)D convolution": (lambda key: Pseudo3DConv(8, 4, key), VIDEO),
    "downsample": (lambda key: Downsample(8, 4, key), VIDEO),
    "attention": (lambda key: MultiHeadAttention(8, 4, key), TOKENS),
    "spatial attention": (lambda key: SpatialAttention(8, 4, key), VIDEO),
    "temporal attention": (lambda key: TemporalAttention(8, 4, 2, key), VIDEO),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_result_has_the_dtype_of_the_input(name, dtype):
    make, shape = LAYERS[name]
    layer = jax.eval_shape(make, jax.random.key(0))
    x = jax.ShapeDtypeStruct(shape, dtype)
    assert jax.eval_shape(lambda layer, x: layer(x), layer, x).dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(layer)} == {jnp.dtype("float32")}


def test_the_other_layers_keep_the_dtype_too():
    x = jax.ShapeDtypeStruct((2, 3, 2, 2, 8), jnp.bfloat16)
    up = jax.eval_shape(lambda key: Upsample(8, 4, key), jax.random.key(0))
    assert jax.eval_shape(lambda up, x: up(x, 4, 3), up, x).dtype == jnp.bfloat16
    pool = jax.eval_shape(lambda key: AttentionPooling(8, 4, 2, key), jax.random.key(0))
    words = jax.ShapeDtypeStruct((2, 5, 8), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((2, 5), jnp.bool)
    assert jax.eval_shape(lambda pool, x, m: pool(x, m), pool, words, mask).dtype == jnp.bfloat16
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    assert jax.eval_shape(lambda x, k: dropout(x, 0.5, k), x, keys).dtype == jnp.bfloat16


def test_group_norm_in_bfloat16_is_the_float32_norm_rounded():
    norm, _ = naive.filled(lambda key: GroupNorm(8, groups=2))
    x = jnp.asarray(naive.normal(1, 2, 3, 3, 8) + 40).astype(jnp.bfloat16)
    expected = norm(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(norm(x).astype(jnp.float32), expected.astype(jnp.float32))
