"""The noising process against float64 numpy and against Bayes' rule, to the extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvid.diffusion import process

levels = st.floats(-20.0, 20.0, width=32)


def sigmoid(level):
    return 1.0 / (1.0 + np.exp(-np.asarray(level, np.float64)))


def f32(*values):
    return tuple(jnp.asarray(value, jnp.float32) for value in values)


def bayes(z, x, l_t, l_s):
    """q(z_s | z_t, x) as the product of q(z_t | z_s) and q(z_s | x): precisions add, no formula from the module."""
    a2_t, a2_s, v_t, v_s = sigmoid(l_t), sigmoid(l_s), sigmoid(-l_t), sigmoid(-l_s)
    ratio = np.sqrt(a2_t / a2_s)
    up = v_t - ratio**2 * v_s
    precision = ratio**2 / up + 1.0 / v_s
    mean = (ratio * z / up + np.sqrt(a2_s) * x / v_s) / precision
    return mean, 1.0 / precision, up


def test_alpha_sigma_hold_their_digits_over_thirty_decades():
    logsnr = np.linspace(-30, 30, 1201).astype(np.float32)
    alpha, sigma = process.alpha_sigma(jnp.asarray(logsnr))
    np.testing.assert_allclose(alpha, np.sqrt(sigmoid(logsnr)), rtol=1e-6)
    np.testing.assert_allclose(sigma, np.sqrt(sigmoid(-logsnr.astype(np.float64))), rtol=1e-6)


def test_alpha_sigma_at_infinity_are_exact_with_finite_gradients():
    ends = jnp.asarray([jnp.inf, -jnp.inf])
    alpha, sigma = process.alpha_sigma(ends)
    assert alpha.tolist() == [1.0, 0.0]
    assert sigma.tolist() == [0.0, 1.0]
    for index in (0, 1):
        slope = jax.vmap(jax.grad(lambda level, i=index: process.alpha_sigma(level)[i]))
        assert slope(ends).tolist() == [0.0, 0.0]
        logsnr = np.linspace(-30, 30, 61)
        a, s = np.sqrt(sigmoid(logsnr)), np.sqrt(sigmoid(-logsnr))
        expected = 0.5 * a * s * s if index == 0 else -0.5 * s * a * a
        np.testing.assert_allclose(slope(jnp.asarray(logsnr, jnp.float32)), expected, rtol=3e-6)
        assert np.isfinite(slope(jnp.asarray([-120.0, 120.0]))).all()


@settings(deadline=None, max_examples=200)
@given(levels, levels, st.floats(-2, 2), st.floats(-3, 3))
def test_posterior_is_bayes_rule(a, b, x, z):
    l_t, l_s = sorted((np.float32(a), np.float32(b)))
    gap = float(l_s) - float(l_t)
    if gap < 1e-3:  # closer levels: next test (the float64 reference itself cancels there)
        return
    mean, low, up = bayes(np.float32(z), np.float32(x), float(l_t), float(l_s))
    t, s = f32(l_t, l_s)
    got = jax.jit(process.posterior_mean)(*f32([z], [x]), t, s)
    scale = abs(z) + abs(x)
    np.testing.assert_allclose(got[0], mean, rtol=0, atol=2e-6 * scale + 1e-30)
    np.testing.assert_allclose(process.posterior_variance(t, s), low, rtol=2e-6)
    np.testing.assert_allclose(process.transition_variance(t, s), up, rtol=1e-5)


def test_variances_of_nearly_equal_levels_keep_their_digits():
    t = np.float32(3.0)
    for s in (np.nextafter(t, np.float32(9)), np.float32(3.0001), np.float32(3.01)):
        gap = -np.expm1(float(t) - float(s))
        np.testing.assert_allclose(
            process.posterior_variance(*f32(t, s)), gap * sigmoid(-float(s)), rtol=1e-6
        )
        np.testing.assert_allclose(
            process.transition_variance(*f32(t, s)), gap * sigmoid(-float(t)), rtol=1e-6
        )
    assert process.posterior_variance(*f32(t, t)) == 0
    assert process.interpolated_deviation(*f32(t, t), 0.5) == 0


@settings(deadline=None, max_examples=100)
@given(levels, levels)
def test_gamma_limits_are_the_bounds_and_between_is_geometric(a, b):
    l_t, l_s = sorted((np.float32(a), np.float32(b)))
    if l_s - l_t < 1e-3:
        return
    t, s = f32(l_t, l_s)
    low, up = process.posterior_variance(t, s), process.transition_variance(t, s)
    np.testing.assert_allclose(process.interpolated_deviation(t, s, 0.0) ** 2, low, rtol=1e-5)
    np.testing.assert_allclose(process.interpolated_deviation(t, s, 1.0) ** 2, up, rtol=1e-5)
    between = process.interpolated_deviation(t, s, jnp.asarray([0.3, 0.8])) ** 2
    expected = float(low) ** np.array([0.7, 0.2]) * float(up) ** np.array([0.3, 0.8])
    np.testing.assert_allclose(between, expected, rtol=2e-5)


def test_the_clean_end_is_exact():
    z, x = f32([[0.7, -3.0]], [[0.25, 0.5]])
    clean = jnp.asarray(jnp.inf)
    for l_t in (-20.0, 0.0, 20.0):
        t = jnp.asarray(l_t)
        assert (process.posterior_mean(z, x, t, clean) == x).all()
        assert process.posterior_variance(t, clean) == 0
        for gamma in (0.0, 0.3, 1.0):
            assert process.interpolated_deviation(t, clean, gamma) == 0
    assert (process.q_sample(x, z, clean) == x).all()


def test_levels_line_up_with_leading_axes_even_when_sizes_agree():
    size = 3  # b = t = h = w = c, so that a wrong broadcast would still have a shape
    rng = np.random.default_rng(0)
    x, eps = rng.normal(size=(2, *(size,) * 5)).astype(np.float32)
    for shape in [(), (size,), (size, size)]:
        logsnr = rng.normal(size=shape).astype(np.float32) * 4
        got = process.q_sample(jnp.asarray(x), jnp.asarray(eps), jnp.asarray(logsnr))
        for b in range(size):
            for t in range(size):
                level = logsnr[(b, t)[: len(shape)]]
                expected = np.sqrt(sigmoid(level)) * x[b, t] + np.sqrt(sigmoid(-level)) * eps[b, t]
                np.testing.assert_allclose(got[b, t], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="does not lead"):
        process.q_sample(jnp.asarray(x), jnp.asarray(eps), jnp.zeros((1,)))


def test_half_precision_inputs_are_computed_in_float32():
    rng = np.random.default_rng(1)
    x, eps = (jnp.asarray(a, jnp.bfloat16) for a in rng.normal(size=(2, 2, 3, 4)))
    logsnr = jnp.asarray([-19.7, 19.3])
    got = process.q_sample(x, eps, logsnr)
    assert got.dtype == jnp.float32
    wide = process.q_sample(x.astype(jnp.float32), eps.astype(jnp.float32), logsnr)
    assert (got == wide).all()
    mean = process.posterior_mean(got.astype(jnp.bfloat16), x, logsnr, logsnr + 1.0)
    assert mean.dtype == jnp.float32
