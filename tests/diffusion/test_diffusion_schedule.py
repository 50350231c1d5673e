"""Schedules against their published formulas in float64, and round trips over the whole range in float32."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvid.diffusion import process
from jaxvid.diffusion.schedule import (
    EDM,
    Cosine,
    LinearTable,
    ScaledLinearTable,
    Schedule,
    Sigmoid,
    SquaredCosineTable,
)

SCHEDULES = {
    "cosine": Cosine(),
    "cosine shifted": Cosine(-15.0, 15.0, shift=0.25),
    "cosine lopsided": Cosine(-8.0, 14.0),
    "sigmoid": Sigmoid(),
    "sigmoid lopsided": Sigmoid(0.0, 3.0, 0.7),
    "linear": LinearTable(),
    "scaled linear": ScaledLinearTable(),
    "squared cosine": SquaredCosineTable(),
    "edm": EDM(),
}
ROUND_TRIPS = {name: jax.jit(lambda t, s=s: s.time(s.logsnr(t))) for name, s in SCHEDULES.items()}
TABLES = [LinearTable(), ScaledLinearTable(), SquaredCosineTable()]
# all of [0, 1], the ends in decades
TIMES = np.unique(
    np.concatenate([np.linspace(0, 1, 401), np.logspace(-9, -2, 60), 1 - np.logspace(-7, -2, 60)])
).astype(np.float32)
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


@every
def test_round_trip_and_gradients_over_the_whole_range(schedule):
    assert isinstance(schedule, Schedule)
    assert hash(schedule) == hash(dataclasses.replace(schedule))

    @jax.jit
    def there_and_back(t):
        logsnr, slope = jax.vmap(jax.value_and_grad(schedule.logsnr))(t)
        back, inverse_slope = jax.vmap(jax.value_and_grad(schedule.time))(logsnr)
        return logsnr, slope, back, inverse_slope, schedule.logsnr(back)

    logsnr, slope, back, inverse_slope, again = map(np.asarray, there_and_back(jnp.asarray(TIMES)))
    assert (np.diff(logsnr) <= 0).all()
    assert (np.diff(logsnr[::40]) < 0).all()
    np.testing.assert_allclose(back, TIMES, rtol=0, atol=5e-7)
    assert np.isfinite(slope).all()
    assert np.isfinite(inverse_slope).all()
    # the inverse lands on a float32 time; the log-SNR can be no better than that spacing allows
    allowed = 2e-5 + 4 * np.abs(slope) * np.spacing(np.maximum(back, np.float32(0.5)))
    assert (np.abs(again - logsnr) <= allowed).all()
    if "Table" not in type(schedule).__name__:  # tables have two slopes at an entry
        np.testing.assert_allclose((slope * inverse_slope)[40:-70], 1.0, rtol=1e-3)
    with jax.enable_x64(True):
        wide = np.asarray(jax.jit(schedule.logsnr)(jnp.asarray(TIMES.astype(np.float64))))
    tolerance = 5e-4 if isinstance(schedule, SquaredCosineTable) else 5e-6  # steep last entry
    np.testing.assert_allclose(logsnr, wide, rtol=0, atol=tolerance)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(list(SCHEDULES)), st.floats(0, 1, width=32))
def test_round_trip_property(name, t):
    back = ROUND_TRIPS[name](jnp.asarray(t, jnp.float32))
    assert abs(float(back) - t) <= 5e-7
    assert 0.0 <= float(back) <= 1.0


@every
def test_levels_beyond_the_range_give_the_ends(schedule):
    outside = jnp.asarray([np.inf, 40.0, -40.0, -np.inf], jnp.float32)
    np.testing.assert_allclose(jax.jit(schedule.time)(outside), [0, 0, 1, 1], atol=1e-6)


def test_cosine_is_the_published_formula():
    t = np.linspace(0, 1, 501)
    for low, high, shift in ((-20.0, 20.0, 1.0), (-15.0, 15.0, 0.5)):
        b = np.arctan(np.exp(-0.5 * high))
        a = np.arctan(np.exp(-0.5 * low)) - b
        naive = -2 * np.log(np.tan(a * t + b)) + 2 * np.log(shift)
        got = Cosine(low, high, shift).logsnr(jnp.asarray(t, jnp.float32))
        np.testing.assert_allclose(got, naive, rtol=0, atol=1e-4)
    assert Cosine().logsnr(jnp.asarray([0.0, 1.0])).tolist() == pytest.approx(
        [20.0, -20.0], abs=1e-5
    )
    # alpha is a cosine of t, up to the truncation
    alpha, _ = process.alpha_sigma(Cosine(-60.0, 60.0).logsnr(jnp.asarray(t, jnp.float32)))
    np.testing.assert_allclose(alpha, np.cos(np.pi / 2 * t), atol=1e-6)


def test_sigmoid_is_the_published_formula():
    t = np.linspace(0, 1, 501)[1:-1]

    def s(u):
        return 1 / (1 + np.exp(-u))

    for start, end, tau in ((-3.0, 3.0, 1.0), (0.0, 3.0, 0.7), (-3.0, 3.0, 0.9)):
        g = (s(end / tau) - s((t * (end - start) + start) / tau)) / (s(end / tau) - s(start / tau))
        got = Sigmoid(start, end, tau).logsnr(jnp.asarray(t, jnp.float32))
        np.testing.assert_allclose(got, np.log(g / (1 - g)), rtol=0, atol=2e-4)
    np.testing.assert_allclose(Sigmoid().logsnr(jnp.asarray([0.0, 1.0])), [20, -20], atol=1e-5)


@pytest.mark.parametrize("schedule", TABLES, ids=lambda s: type(s).__name__)
def test_tables_and_their_indices_are_exact(schedule):
    kind = type(schedule).__name__
    n = 1000
    if kind == "LinearTable":
        betas = [1e-4 + (0.02 - 1e-4) * i / (n - 1) for i in range(n)]
    elif kind == "ScaledLinearTable":
        low, high = math.sqrt(0.00085), math.sqrt(0.012)
        betas = [(low + (high - low) * i / (n - 1)) ** 2 for i in range(n)]
    else:

        def bar(u):
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [min(1 - bar((i + 1) / n) / bar(i / n), 0.999) for i in range(n)]
    alpha2, running = [], 1.0
    for beta in betas:
        running *= 1 - beta
        alpha2.append(running)
    alpha2 = np.array(alpha2)
    np.testing.assert_allclose(schedule.logsnr_table, np.log(alpha2 / (1 - alpha2)), atol=1e-5)
    alpha, sigma = process.alpha_sigma(jnp.asarray(schedule.logsnr_table))
    np.testing.assert_allclose(alpha**2, alpha2, rtol=2e-5)
    np.testing.assert_allclose(sigma**2, 1 - alpha2, rtol=2e-5)
    index = np.arange(n)
    assert (np.asarray(schedule.network_time(jnp.asarray(schedule.logsnr_table))) == index).all()
    assert (
        np.asarray(schedule.at_index(jnp.asarray(index, jnp.float32))) == schedule.logsnr_table
    ).all()
    between = schedule.network_time(schedule.at_index(jnp.asarray([0.5, 500.25, 998.75])))
    np.testing.assert_allclose(between, [0.5, 500.25, 998.75], atol=1e-3)


def test_on_table_visits_every_entry_alike():
    schedule = LinearTable(entries=10)
    t = schedule.on_table(jnp.linspace(0, 1, 1000, endpoint=False))
    index, counts = np.unique(
        np.asarray(schedule.network_time(schedule.logsnr(t))), return_counts=True
    )
    assert index.tolist() == list(range(10))
    assert (np.abs(counts - 100) <= 1).all()


def test_edm_noise_is_log_normal_and_variance_preserving_at_the_same_snr():
    schedule = EDM()
    t = (np.arange(20000) + 0.5) / 20000
    log_sigma = -0.5 * np.asarray(schedule.logsnr(jnp.asarray(t, jnp.float32)), np.float64)
    assert abs(log_sigma.mean() + 1.2) < 2e-3
    assert abs(log_sigma.std() - 1.2) < 2e-3
    assert abs(np.median(log_sigma) + 1.2) < 2e-3
    ends = np.exp(-0.5 * np.asarray(schedule.logsnr(jnp.asarray([0.0, 1.0]))))
    np.testing.assert_allclose(ends, [0.002, 80.0], rtol=1e-5)
    sigma = np.exp(log_sigma)
    logsnr = jnp.asarray(-2 * log_sigma, jnp.float32)
    np.testing.assert_allclose(
        schedule.network_time(logsnr), np.log(sigma) / 4, rtol=1e-5, atol=1e-6
    )
    alpha, scaled_sigma = process.alpha_sigma(logsnr)
    np.testing.assert_allclose(alpha, 1 / np.sqrt(1 + sigma**2), rtol=1e-5)
    np.testing.assert_allclose(scaled_sigma, sigma / np.sqrt(1 + sigma**2), rtol=1e-5)


@pytest.mark.parametrize("schedule", [Cosine(), Sigmoid()], ids=["cosine", "sigmoid"])
def test_network_time_is_logsnr(schedule):
    logsnr = jnp.asarray([[-3.0, 7.0]])
    assert (schedule.network_time(logsnr) == logsnr).all()


@pytest.mark.parametrize("kind", [LinearTable, ScaledLinearTable, SquaredCosineTable])
def test_zero_terminal_snr_is_lins(kind):
    """Lin et al. 2024, Algorithm 1, one entry at a time: the first level stays, the last has no signal."""
    table, plain = kind(50, zero_terminal=True), kind(50)
    alphas, product = [], 1.0
    for beta in plain.betas():
        product *= 1 - beta
        alphas.append(product**0.5)
    first, last = alphas[0], alphas[-1]
    expected = [(alpha - last) * first / (first - last) for alpha in alphas[:-1]]
    logsnr = np.array([np.log(alpha**2 / (1 - alpha**2)) for alpha in expected])
    np.testing.assert_allclose(table.logsnr_table[:-1], logsnr, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(table.logsnr_table[0], plain.logsnr_table[0], rtol=1e-5)
    alpha, _ = process.alpha_sigma(jnp.asarray(table.logsnr_table[-1:]))
    assert 0 < alpha[0] < 1e-8
    index = table.network_time(jnp.asarray(table.logsnr_table))
    np.testing.assert_allclose(index, np.arange(50), atol=1e-3)
