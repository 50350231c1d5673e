"""All pairs of conversions, exact outputs at extreme levels, and EDM and learned ranges against their papers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvid.diffusion import parameterization as par
from jaxvid.diffusion.schedule import EDM
from jaxvid.diffusion.types import Prediction

KINDS = ("epsilon", "x", "v", "score")
PAIRS = list(itertools.product(KINDS, KINDS))


def truth(logsnr, seed=0, shape=(2, 3, 4)):
    """x, eps, z and all four quantities in float64; logsnr is a scalar."""
    rng = np.random.default_rng(seed)
    x, eps = rng.uniform(-1, 1, shape), rng.normal(size=shape)
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))
    z = alpha * x + sigma * eps
    return (
        z,
        {"epsilon": eps, "x": x, "v": alpha * eps - sigma * x, "score": -eps / sigma},
        alpha,
        sigma,
    )


def f32(value):
    return jnp.asarray(value, jnp.float32)


CONVERT = {pair: jax.jit(lambda *a, pair=pair: par.convert(*a, *pair)) for pair in PAIRS}


def condition(source, target, alpha, sigma):
    """How much a relative error of float32 grows: the divisor of the formula, relative to the target's size."""
    unit = {"score": 1 / sigma}.get(target, 1.0)
    to_x = {"x": 1.0, "v": 1.0, "epsilon": 1 / alpha, "score": 1 / alpha}[source]
    to_epsilon = {"x": 1 / sigma, "v": 1.0, "epsilon": 1.0, "score": 1.0}[source]
    to_v = {"x": 1 / sigma, "v": 1.0, "epsilon": 1 / alpha, "score": 1 / alpha}[source]
    return {"x": to_x, "v": to_v, "epsilon": to_epsilon, "score": to_epsilon}[target], unit


@settings(deadline=None, max_examples=60)
@given(st.floats(-20, 20, width=32), st.integers(0, 1000))
def test_every_conversion_and_every_cycle(logsnr, seed):
    z, values, alpha, sigma = truth(logsnr, seed)
    for source, target in PAIRS:
        growth, unit = condition(source, target, alpha, sigma)
        level = jnp.full((2,), logsnr, jnp.float32)
        got = CONVERT[source, target](f32(values[source]), f32(z), level)
        # 5e-7: a few roundings of numbers up to about 4
        error = np.abs(np.asarray(got, np.float64) - values[target]).max()
        assert error <= 2e-6 * growth * unit, (source, target, logsnr)
        back = CONVERT[target, source](got, f32(z), level)
        growth_back, unit_back = condition(target, source, alpha, sigma)
        error = np.abs(np.asarray(back, np.float64) - values[source]).max()
        assert error <= 4e-6 * max(1, growth * growth_back) * unit_back, (source, target, logsnr)


def test_v_is_well_conditioned_both_ways_at_the_extremes():
    for logsnr in (-20.0, 20.0):
        z, values, _, _ = truth(logsnr)
        for target in ("x", "epsilon"):
            got = par.convert(f32(values["v"]), f32(z), jnp.asarray(logsnr), "v", target)
            np.testing.assert_allclose(got, values[target], rtol=0, atol=1e-6)


@pytest.mark.parametrize("logsnr", [-20.0, 0.0, 20.0])
@pytest.mark.parametrize("target", ["epsilon", "x", "v"])
def test_predictions_keep_the_exact_output(logsnr, target):
    z, values, _, _ = truth(logsnr)
    level = jnp.full((2, 3), logsnr)  # per frame
    output = f32(values[target])
    prediction = par.to_prediction(output, f32(z), level, target)
    assert (par.as_quantity(prediction, f32(z), level, target) == output).all()
    if target == "epsilon":
        assert (par.as_epsilon(prediction, f32(z), level) == output).all()
    if target == "v":
        assert (par.as_v(prediction, f32(z), level) == output).all()
        np.testing.assert_allclose(
            par.as_epsilon(prediction, f32(z), level), values["epsilon"], atol=1e-6
        )
    if target in ("epsilon", "v"):
        score = par.as_score(prediction, f32(z), level)
        np.testing.assert_allclose(
            score, values["score"], rtol=2e-5, atol=2e-6 * np.abs(values["score"]).max()
        )
    # without aux the same goes through x
    plain = Prediction(prediction.x)
    if logsnr == 0.0:
        np.testing.assert_allclose(
            par.as_epsilon(plain, f32(z), level), values["epsilon"], atol=2e-6
        )


def test_half_precision_output_gives_float32_prediction():
    z, values, _, _ = truth(1.0)
    output = jnp.asarray(values["v"], jnp.bfloat16)
    prediction = par.to_prediction(output, jnp.asarray(z, jnp.bfloat16), jnp.zeros(2), "v")
    assert prediction.x.dtype == prediction.aux["v"].dtype == jnp.float32


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 0.1])
@pytest.mark.parametrize("sigma", [0.002, 0.3, 1.0, 7.0, 80.0])
def test_edm_preconditioning_is_karras_table_1(sigma_data, sigma):
    rng = np.random.default_rng(3)
    x, noise, output = rng.normal(size=(3, 2, 5)) * [[[sigma_data]], [[sigma]], [[1.0]]]
    z_exploding = x + noise
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / np.sqrt(sigma**2 + sigma_data**2)
    c_in = 1 / np.sqrt(sigma**2 + sigma_data**2)
    z = f32(z_exploding / np.sqrt(1 + sigma**2))
    level = jnp.full((2,), -2 * np.log(sigma), jnp.float32)
    np.testing.assert_allclose(
        par.edm_input(z, level, sigma_data), c_in * z_exploding, rtol=3e-6, atol=1e-6
    )
    prediction = par.edm_prediction(f32(output), z, level, sigma_data)
    expected = c_skip * z_exploding + c_out * output
    np.testing.assert_allclose(prediction.x, expected, rtol=1e-5, atol=2e-6)
    alpha, scaled = 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2)
    v = (alpha * (z_exploding * alpha) - expected) / scaled
    np.testing.assert_allclose(prediction.aux["v"], v, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(
        EDM().network_time(level), np.full(2, np.log(sigma) / 4), rtol=1e-5, atol=1e-7
    )
    if sigma_data == 1.0:
        np.testing.assert_allclose(prediction.aux["v"], -output, atol=1e-6)


def test_learned_range_is_the_fraction_between_the_bounds():
    z, values, _, _ = truth(2.0)
    place = np.linspace(-1, 1, z.size).reshape(z.shape)
    output = f32(np.concatenate([values["epsilon"], place], axis=-1))
    prediction = par.learned_range(output, f32(z), jnp.full((2,), 2.0), "epsilon")
    np.testing.assert_allclose(prediction.log_variance, (place + 1) / 2, atol=1e-6)
    np.testing.assert_allclose(prediction.x, values["x"], atol=1e-5)


def test_an_unknown_pair_is_refused():
    # the annotation refuses it in tests, the function itself elsewhere
    with pytest.raises(Exception, match="velocity"):
        par.convert(jnp.zeros(2), jnp.zeros(2), jnp.zeros(()), "x", "velocity")
