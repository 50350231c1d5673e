"""Attention against the papers' sums, one query, head and key at a time."""

import functools

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvid.nn import attention
from jaxvid.nn.attention import (
    AttentionPooling,
    MultiHeadAttention,
    RelativePositions,
    SpatialAttention,
    TemporalAttention,
    attend,
)
from jaxvid.nn.segments import temporal_mask

WIDTH, HEAD = 8, 4


@pytest.mark.parametrize("bias", [True, False])
def test_self_attention(bias):
    layer, p = naive.filled(lambda key: MultiHeadAttention(WIDTH, HEAD, key, bias=bias))
    assert ("query/bias" in p) == bias
    x = naive.normal(2, 5, WIDTH)
    np.testing.assert_allclose(naive.call(layer, x), naive.attention(p, x, HEAD), atol=1e-5)


def test_attention_to_a_context_under_a_mask():
    layer, p = naive.filled(lambda key: MultiHeadAttention(WIDTH, HEAD, key, context_channels=3))
    x, context = naive.normal(2, 3, WIDTH), naive.normal(2, 6, 3, seed=2)
    mask = np.random.default_rng(0).random((2, 3, 6)) < 0.5
    mask[:, :, 1] = True
    y = naive.call(layer, x, context, mask=mask)
    np.testing.assert_allclose(y, naive.attention(p, x, HEAD, context, mask), atol=1e-5)
    # What is masked has no influence at all, however large.
    context[:, 0] = 1e4
    mask[:, :, 0] = False
    y = naive.call(layer, x, context, mask=mask)
    np.testing.assert_allclose(y, naive.attention(p, x, HEAD, context, mask), atol=1e-5)


FORMS = {"CPU": attention._by_columns, "other devices": attention._by_rows}
MASKS = ("not", "by key", "by query")


def queries_keys_values(masked):
    """Seven queries, five keys; the mask leaves every query one at least."""
    q, k, v = (jnp.asarray(naive.normal(2, n, 3, HEAD, seed=n)) for n in (7, 5, 5))
    if masked == "not":
        return q, k, v, None
    mask = np.random.default_rng(0).random((2, 1 if masked == "by key" else 7, 5)) < 0.5
    mask[:, :, 1] = True
    return q, k, v, jnp.asarray(mask)


@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("form", FORMS)
def test_each_device_adds_up_the_same(form, masked):
    """Both forms of the sums, whichever this device takes, one query, head and key at a time."""
    q, k, v, mask = queries_keys_values(masked)
    y = naive.compiled(FORMS[form])(q, k, v, mask)
    expected = np.zeros(q.shape)
    for b, i, n in np.ndindex(q.shape[:3]):
        seen = [j for j in range(5) if mask is None or mask[b, min(i, mask.shape[1] - 1), j]]
        weights = np.exp([np.dot(q[b, i, n], k[b, j, n]) / np.sqrt(HEAD) for j in seen])
        expected[b, i, n] = sum(
            w * np.asarray(v[b, j, n], np.float64) for w, j in zip(weights, seen, strict=True)
        ) / sum(weights)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    narrow = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    y = naive.compiled(FORMS[form])(*narrow, mask)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.03)


def test_a_cpu_takes_its_own_form():
    """It exponentiates keys by queries; another device's program queries by keys."""
    q, k, v, _ = queries_keys_values("not")
    lowered = jax.jit(attend).trace(q, k, v)
    exponentials = {
        platform: [line for line in text.splitlines() if "stablehlo.exponential" in line]
        for platform in ("cpu", "tpu", "cuda")
        for text in [lowered.lower(lowering_platforms=(platform,)).as_text()]
    }
    assert [len(lines) for lines in exponentials.values()] == [1, 1, 1]
    assert "2x3x5x7xf32" in exponentials["cpu"][0]
    assert "2x3x7x5xf32" in exponentials["tpu"][0]
    assert "2x3x7x5xf32" in exponentials["cuda"][0]


@pytest.mark.parametrize("rows", [1, 3, 4, 7])
@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("form", FORMS)
def test_many_scores_are_computed_in_parts(form, masked, rows):
    """Numbers and gradients as at once, also where the parts do not divide the queries."""
    q, k, v, mask = queries_keys_values(masked)

    def both(largest):
        def run(q, k, v):
            parts = functools.partial(attention._in_parts, FORMS[form], largest)
            y, back = jax.vjp(lambda *given: parts(*given, mask), q, k, v)
            return y, back(jnp.cos(y))

        return run

    parts = both(rows * 5)
    assert ("scan" in str(jax.make_jaxpr(parts)(q, k, v))) == (rows < 7)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6),
        naive.compiled(parts)(q, k, v),
        naive.compiled(both(1 << 20))(q, k, v),
    )


def test_a_query_that_may_see_nothing_stays_finite():
    layer, _ = naive.filled(lambda key: MultiHeadAttention(WIDTH, HEAD, key))
    x = jnp.asarray(naive.normal(1, 3, WIDTH))
    mask = jnp.zeros((1, 3, 3), bool)

    def total(x):
        return jnp.sum(jnp.square(layer(x, mask=mask)))

    value, gradient = naive.compiled(jax.value_and_grad(total))(x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_large_scores_do_not_overflow():
    layer, _ = naive.filled(lambda key: MultiHeadAttention(WIDTH, HEAD, key))
    x = 1e6 * jnp.asarray(naive.normal(1, 3, WIDTH))
    assert np.isfinite(naive.call(layer, x)).all()
    half = naive.call(layer, (x / 1e4).astype(jnp.bfloat16))
    assert np.isfinite(half.astype(jnp.float32)).all()


def test_head_dimension_must_divide():
    with pytest.raises(ValueError, match="not a multiple"):
        MultiHeadAttention(6, 4, jax.random.key(0))


def test_relative_positions_are_clipped():
    positions, p = naive.filled(lambda key: RelativePositions(3, 2, key))
    keys, values = positions(5)
    for i, j in np.ndindex(5, 5):
        entry = {-4: 0, -3: 0, -2: 0, -1: 1, 0: 2, 1: 3, 2: 4, 3: 4, 4: 4}[j - i]
        np.testing.assert_array_equal(keys[i, j], p["keys"][entry])
        np.testing.assert_array_equal(values[i, j], p["values"][entry])


TEMPORAL, PARAMS = naive.filled(lambda key: TemporalAttention(WIDTH, HEAD, 2, key))
CLIPS = naive.normal(2, 5, 1, 2, WIDTH)


def test_temporal_attention_is_shaws_over_frames():
    """Clips longer than the largest distance among them."""
    expected = naive.temporal_attention(PARAMS, CLIPS, HEAD)
    np.testing.assert_allclose(naive.call(TEMPORAL, CLIPS, None), expected, atol=1e-5)
    # The positions matter: turned round, the clip is another one.
    turned = naive.temporal_attention(PARAMS, CLIPS[:, ::-1], HEAD)[:, ::-1]
    assert np.abs(turned - expected).max() > 1e-2


segments = st.lists(st.integers(0, 2), min_size=5, max_size=5)


@settings(max_examples=15, deadline=None)
@given(segments, segments)
def test_temporal_attention_within_segments(first, second):
    mask = np.asarray(temporal_mask(jnp.asarray([first, second], jnp.int32)))
    expected = naive.temporal_attention(PARAMS, CLIPS, HEAD, mask)
    np.testing.assert_allclose(naive.call(TEMPORAL, CLIPS, mask), expected, atol=1e-5)


def test_a_frame_alone_goes_through_the_value_path():
    """VDM, section 3.1: the identity for the attention matrix, not a block that is left out."""
    mask = np.broadcast_to(np.eye(5, dtype=bool), (2, 5, 5))
    y = naive.call(TEMPORAL, CLIPS, mask)
    one = naive.part(PARAMS, "attention")
    normed = naive.group_norm(naive.part(PARAMS, "norm"), CLIPS)
    values = naive.linear(naive.part(one, "value"), normed)
    values += np.tile(PARAMS["positions/values"][2], WIDTH // HEAD)  # of the distance 0
    np.testing.assert_allclose(y, CLIPS + naive.linear(naive.part(one, "out"), values), atol=1e-5)


def test_a_clip_of_one_frame_is_its_own_only_key():
    """The short way, without queries and keys, gives the general sum."""
    one = CLIPS[:, 2:3]
    expected = naive.temporal_attention(PARAMS, one, HEAD)
    np.testing.assert_allclose(naive.call(TEMPORAL, one, None), expected, atol=1e-5)
    layer, p = naive.filled(lambda key: MultiHeadAttention(WIDTH, HEAD, key, context_channels=3))
    x, context = naive.normal(2, 4, WIDTH), naive.normal(2, 1, 3, seed=2)
    expected = naive.attention(p, x, HEAD, context)
    np.testing.assert_allclose(naive.call(layer, x, context), expected, atol=1e-5)


def test_spatial_attention_is_per_frame():
    layer, p = naive.filled(lambda key: SpatialAttention(WIDTH, HEAD, key))
    x = naive.normal(2, 3, 2, 3, WIDTH)
    expected = naive.spatial_attention(p, x, HEAD)
    np.testing.assert_allclose(naive.call(layer, x), expected, atol=1e-5)


def test_attentions_start_as_the_identity():
    spatial = SpatialAttention(4, 4, jax.random.key(0))
    temporal = TemporalAttention(4, 4, 2, jax.random.key(0))
    x = jnp.asarray(naive.normal(1, 3, 2, 2, 4))
    np.testing.assert_array_equal(spatial(x), x)
    np.testing.assert_array_equal(temporal(x), x)


# Pooling

POOL, POOLS = naive.filled(lambda key: AttentionPooling(5, WIDTH, HEAD, key))


def pooled(x, mask):
    return naive.attention_pooling(POOLS, x, mask, HEAD)


WORDS = naive.normal(3, 4, 5)
masks = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=3, max_size=3)


@settings(max_examples=40, deadline=None)
@given(masks)
def test_pooling(mask):
    mask = np.array(mask)
    y = naive.call(POOL, WORDS, mask)
    np.testing.assert_allclose(y, pooled(WORDS, mask), atol=1e-5)


def test_pooling_takes_more_axes_in_front():
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]], bool)
    y = naive.call(POOL, WORDS[None, :, None], mask[None, :, None])
    np.testing.assert_allclose(y[0, :, 0], pooled(WORDS, mask), atol=1e-5)


def test_pooling_padding_alone_gives_the_bias_and_finite_gradients():
    mask = np.zeros((3, 4), bool)
    y = naive.call(POOL, WORDS, mask)
    np.testing.assert_allclose(y, np.broadcast_to(POOLS["out/bias"], y.shape), atol=1e-6)
    mask[1] = True

    def total(layer, x):
        return jnp.sum(jnp.square(layer(x, jnp.asarray(mask))))

    gradients = naive.compiled(jax.grad(total, argnums=(0, 1)))(POOL, WORDS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert not np.asarray(gradients[1])[[0, 2]].any()
    assert np.asarray(gradients[1])[1].any()
