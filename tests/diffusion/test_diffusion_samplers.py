"""Samplers against the exact flow of Gaussians, their papers' steps in plain numpy, and the data's moments."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_truth import Gaussian, alpha_sigma, plane

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.diffusion import driver, grid, samplers
from jaxvid.diffusion.schedule import Cosine, LinearTable
from jaxvid.diffusion.types import Level, Prediction

KEY = jax.random.key(0)
PLANE = plane()
ALL = {
    "ancestral": samplers.ancestral(0.3),
    "ancestral upper": samplers.ancestral(1.0),
    "ddim": samplers.ddim(),
    "ddim eta": samplers.ddim(0.7),
    "predictor-corrector": samplers.predictor_corrector(0.0, 0.1),
    "dpm-solver++ 2m": samplers.dpm_solver_2m(),
    "heun": samplers.heun(),
}
every = pytest.mark.parametrize("sampler", ALL.values(), ids=ALL.keys())


def curved(z, level):
    """A denoiser that is nobody's: nonlinear in z, dependent on the level."""
    return Prediction(jnp.tanh(z) * jax.nn.sigmoid(0.3 * level.logsnr)[:, None, None] + 0.1 * z**2)


def curved_numpy(z, logsnr):
    return np.tanh(z) / (1 + np.exp(-0.3 * logsnr)) + 0.1 * z**2


def transition(logsnr_t, logsnr_s, step=0, total=1, key=KEY):
    return samplers.Transition(
        jnp.asarray(logsnr_t, jnp.float32),
        jnp.asarray(logsnr_s, jnp.float32),
        jnp.asarray(step, jnp.int32),
        jnp.asarray(total, jnp.int32),
        key,
    )


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# Deterministic samplers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "order", "steps"),
    [
        (samplers.ddim(), 1, (32, 64, 128, 256)),
        (samplers.dpm_solver_2m(), 2, (32, 64, 128, 256)),
        (samplers.heun(), 2, (64, 128, 256, 512)),
    ],
    ids=["ddim", "dpm-solver++ 2m", "heun"],
)
def test_order_of_convergence_on_the_exact_flow(sampler, order, steps):
    with jax.enable_x64(True):
        z = normal((5, 2, 1))
        exact = PLANE.flow(z, -6.0, 6.0)
        run = driver.program(sampler, lambda _: PLANE.denoise)
        errors = []
        for n in steps:
            # uneven in log-SNR, so that multistep weights are tested too
            u = np.linspace(0, 1, n + 1)
            levels = -6.0 + 12.0 * (u + 0.2 * np.sin(2 * np.pi * u) / (2 * np.pi))
            errors.append(np.abs(np.asarray(run((), jnp.asarray(z), levels, KEY)) - exact).max())
        slopes = -np.diff(np.log(errors)) / np.log(2)
    assert abs(slopes[-1] - order) < 0.1, (errors, slopes)
    assert (np.abs(slopes - order) < 0.35).all(), (errors, slopes)


def numpy_ddim(z, levels, denoise):
    for l_t, l_s in itertools.pairwise(levels):
        (a_t, s_t), (a_s, s_s) = alpha_sigma(l_t), alpha_sigma(l_s)
        x = denoise(z, l_t)
        z = a_s * x + s_s * (z - a_t * x) / s_t
    return z


def numpy_dpm_solver_2m(z, levels, denoise):
    """Lu et al. 2022, Alg. 2, in their own symbols (lambda = half log-SNR, q = data estimates)."""
    lam = np.asarray(levels, float) / 2
    (a, s), q = alpha_sigma(levels), []
    for i in range(1, len(levels)):
        q.append(denoise(z, levels[i - 1]))
        h = lam[i] - lam[i - 1]
        if i == 1 or np.isinf(h):
            d = q[-1]
        else:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * q[-1] - 1 / (2 * r) * q[-2]
        z = s[i] / s[i - 1] * z - a[i] * (np.exp(-h) - 1) * d
    return z


def numpy_heun(z, levels, denoise):
    """Karras et al. 2022, Alg. 1 with s = 1 and sigma(t) = t, on y = z / alpha."""
    noise = np.exp(-0.5 * np.asarray(levels, float))
    y = z / alpha_sigma(levels[0])[0]

    def estimate(y, u):
        return denoise(y / np.sqrt(1 + u**2), -2 * np.log(u))

    for u, v in itertools.pairwise(noise):
        d = (y - estimate(y, u)) / u
        euler = y + (v - u) * d
        y = euler if v == 0 else y + (v - u) * 0.5 * (d + (euler - estimate(euler, v)) / v)
    return y * alpha_sigma(levels[-1])[0]


@pytest.mark.parametrize("last", [np.inf, 5.0])
@pytest.mark.parametrize(
    ("sampler", "naive"),
    [
        (samplers.ddim(), numpy_ddim),
        (samplers.dpm_solver_2m(False), numpy_dpm_solver_2m),
        (samplers.heun(), numpy_heun),
    ],
    ids=["ddim", "dpm-solver++ 2m", "heun"],
)
def test_deterministic_samplers_follow_their_papers(sampler, naive, last):
    levels = np.array([-5.0, -3.2, -2.5, -0.4, 1.0, 2.1, last])
    z = normal((3, 2, 1)).astype(np.float32)
    got = driver.scan(sampler, curved, jnp.asarray(z), jnp.asarray(levels, jnp.float32), KEY)
    np.testing.assert_allclose(
        got, naive(z.astype(float), levels, curved_numpy), rtol=2e-4, atol=2e-5
    )


def test_the_last_of_few_steps_is_first_order_as_in_public_code():
    z = normal((3, 2, 1))
    for count, switches in ((6, True), (20, False)):
        levels = np.linspace(-4.0, 3.0, count + 1)
        got = driver.scan(
            samplers.dpm_solver_2m(),
            curved,
            jnp.asarray(z, jnp.float32),
            jnp.asarray(levels, jnp.float32),
            KEY,
        )
        plain = numpy_dpm_solver_2m(z, levels, curved_numpy)
        lowered = numpy_ddim(
            numpy_dpm_solver_2m(z, levels[:-1], curved_numpy), levels[-2:], curved_numpy
        )
        np.testing.assert_allclose(got, lowered if switches else plain, rtol=1e-4, atol=1e-5)
        assert np.abs(lowered - plain).max() > 1e-4


# Stochastic samplers -----------------------------------------------------------------------------


@jax.jit
def one_step_of_each(z, x, move):
    """The result of one step of: gamma 0, gamma 1, learned variance 0 and 1 (gamma unused), DDIM with eta 1."""
    state = samplers.State(z, x)
    cases = [
        (samplers.ancestral(0.0), None),
        (samplers.ancestral(1.0), None),
        (samplers.ancestral(0.5), jnp.zeros_like(x)),
        (samplers.ancestral(0.5), jnp.ones_like(x)),
        (samplers.ddim(1.0), None),
    ]
    return [
        sampler.step(lambda z, level, place=place: Prediction(x, place), state, move, None).z
        for sampler, place in cases
    ]


@pytest.mark.parametrize("index", [999, 500, 1])
def test_ancestral_limits_are_the_textbook_ddpm_step(index):
    """Ho et al. 2020, Eq. 6 and 7, written with betas; gamma = 1 is their other choice, variance beta."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - betas)
    beta, bar_t, bar_s = betas[index], bar[index], bar[index - 1]
    z, x = normal((2, 4, 2, 1)).astype(np.float32)
    table = LinearTable().logsnr_table
    noise = np.asarray(jax.random.normal(named(KEY, "noise"), z.shape))
    mean = (
        np.sqrt(bar_s) * beta / (1 - bar_t) * x + np.sqrt(1 - beta) * (1 - bar_s) / (1 - bar_t) * z
    )
    lower = mean + np.sqrt((1 - bar_s) / (1 - bar_t) * beta) * noise
    upper = mean + np.sqrt(beta) * noise
    got = one_step_of_each(
        jnp.asarray(z), jnp.asarray(x), transition(table[index], table[index - 1])
    )
    for result, expected in zip(got, (lower, upper, lower, upper, lower), strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("eta", [0.3, 0.8])
def test_stochastic_ddim_is_song_eq_12_and_16(eta):
    """In their alphas (products of 1 - beta, a_t and a_s here)."""
    l_t, l_s = -0.5, 1.5
    a_t, a_s = 1 / (1 + np.exp(-l_t)), 1 / (1 + np.exp(-l_s))
    z, x = normal((2, 4, 2, 1)).astype(np.float32)
    noise = np.asarray(jax.random.normal(named(KEY, "noise"), z.shape))
    deviation = eta * np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)
    eps = (z - np.sqrt(a_t) * x) / np.sqrt(1 - a_t)
    expected = np.sqrt(a_s) * x + np.sqrt(1 - a_s - deviation**2) * eps + deviation * noise
    got = samplers.ddim(eta).step(
        lambda z, level: Prediction(jnp.asarray(x)),
        samplers.State(jnp.asarray(z), jnp.asarray(x)),
        transition(l_t, l_s),
        None,
    )
    np.testing.assert_allclose(got.z, expected, rtol=0, atol=3e-6)


def test_learned_variance_is_per_element():
    x, place = jnp.zeros((1, 2, 1)), jnp.asarray([[[0.0], [1.0]]])
    move = transition(0.0, 1.0)
    got = (
        samplers.ancestral(0.5)
        .step(lambda z, level: Prediction(x, place), samplers.State(x, x), move, None)
        .z
    )
    noise = np.asarray(jax.random.normal(named(KEY, "noise"), x.shape))
    gap = 1 - np.exp(-1.0)
    expected = np.sqrt(gap * np.array([[[1 / (1 + np.e)], [0.5]]])) * noise
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        (samplers.ancestral(0.0), 256),
        (samplers.ancestral(0.3), 256),
        (samplers.ancestral(1.0), 512),
        (samplers.ddim(1.0), 256),
        (samplers.predictor_corrector(0.3, 0.1), 128),
    ],
    ids=["gamma 0", "gamma 0.3", "gamma 1", "ddim eta 1", "predictor-corrector"],
)
def test_stochastic_samplers_reach_the_moments_of_the_data(sampler, steps):
    count = 8000
    z = jax.random.normal(jax.random.key(5), (count, 2, 1))
    levels = grid.uniform(Cosine(), steps)
    got = np.asarray(driver.sample(sampler, PLANE.denoise, z, levels, jax.random.key(6)))
    got = got.reshape(count, 2).astype(np.float64)
    # four standard errors, and 1.5 % for the finite number of steps
    np.testing.assert_allclose(got.mean(0), PLANE.mean, atol=4 * np.sqrt(0.6 / count) + 2e-3)
    error = np.abs(np.cov(got.T) - PLANE.covariance)
    assert (error < 3.5 * np.sqrt(2 / count) * 0.6 + 0.015 * 0.6).all(), error


@pytest.mark.parametrize("logsnr", [-4.0, 0.0, 4.0])
def test_langevin_correction_keeps_the_marginal(logsnr):
    """On N(m, S) it maps S to (I - d v S^-1 / 2)^2 S + d v I, v = sigma^2: off by d^2 v^2 S^-1 / 4 only."""
    delta, count = 0.1, 200
    s = PLANE.noisy_covariance(logsnr)
    alpha, sigma = alpha_sigma(logsnr)
    # exact moments through a set of points with exactly the covariance s, and noise with exactly I
    rng = np.random.default_rng(0)
    white = rng.normal(size=(count, 4))
    white -= white.mean(0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white.T, ddof=0))).T
    z = alpha * PLANE.mean + white[:, :2] @ np.linalg.cholesky(s).T
    noise = white[:, 2:]
    level = jnp.full((count,), logsnr)
    z32 = jnp.asarray(z.reshape(count, 2, 1), jnp.float32)
    prediction = PLANE.denoise(z32, Level(level))
    got = samplers.langevin_step(
        prediction, z32, level, delta, jnp.asarray(noise.reshape(count, 2, 1), jnp.float32)
    )
    got = np.asarray(got, np.float64).reshape(count, 2)
    np.testing.assert_allclose(got.mean(0), alpha * PLANE.mean, atol=1e-5)
    expected = s + delta**2 * sigma**4 / 4 * np.linalg.inv(s)
    np.testing.assert_allclose(np.cov(got.T, ddof=0), expected, rtol=0, atol=1e-5)
    assert np.abs(expected - s).max() < 0.003 * np.abs(s).max()
    # the formula of the paper, plainly
    x = PLANE.expectation(z, logsnr)
    eps = (z - alpha * x) / sigma
    plain = z - 0.5 * delta * sigma * eps + np.sqrt(delta) * sigma * noise
    np.testing.assert_allclose(got, plain, rtol=0, atol=1e-5)


def test_corrections_follow_the_predictor_at_the_new_level():
    levels, corrections = [], 2

    def denoise(z, level):
        jax.debug.callback(
            lambda logsnr: levels.append(float(logsnr[0])), level.logsnr, ordered=True
        )
        return curved(z, level)

    values = jnp.asarray([-2.0, 0.0, 3.0, jnp.inf])
    got = driver.scan(
        samplers.predictor_corrector(0.0, 0.1, corrections),
        denoise,
        jnp.zeros((1, 2, 1)),
        values,
        KEY,
    )
    jax.effects_barrier()
    assert levels == [-2.0, 0.0, 0.0, 0.0, 3.0, 3.0, 3.0]  # none at the clean end
    assert np.isfinite(got).all()


# All ---------------------------------------------------------------------------------------------


@every
def test_extreme_grids_stay_finite_and_end_on_the_estimate(sampler):
    """From -20 to 20 and to the clean end, a repeated level included, in bfloat16 or float32."""
    table = LinearTable()
    run = driver.program(sampler, lambda _: PLANE.denoise)
    for levels in (
        grid.uniform(Cosine(), 7),
        grid.uniform(Cosine(), 7, clean=False),
        np.array([-20.0, np.inf]),
        np.array([-30.0, 30.0]),
        np.array([-20.0, -20.0, 0.0, 0.0, 20.0, 20.0]),
        grid.table(table, 5, "linspace", final="first"),  # visits entry 0 twice
    ):
        for dtype in (jnp.float32, jnp.bfloat16):
            z = jnp.asarray(normal((3, 2, 1)), dtype)
            got = run((), z, levels, KEY)
            assert got.dtype == jnp.float32
            assert np.isfinite(got).all()
            if (
                sampler is not samplers.heun()
            ):  # its second slope overshoots on steps as coarse as these
                assert np.abs(got).max() < 10
    assert np.abs(run((), jnp.asarray(normal((3, 2, 1))), grid.karras(7), KEY)).max() < 3
    z = jnp.asarray(normal((3, 2, 1)), jnp.float32)
    one_step = run((), z, np.array([-1.0, np.inf]), KEY)
    expected = PLANE.expectation(np.asarray(z, float).reshape(3, 2), -1.0).reshape(3, 2, 1)
    np.testing.assert_allclose(one_step, expected, rtol=0, atol=1e-6)


@every
def test_gradients_through_sampling_are_finite(sampler):
    def total(z, shift):
        def denoise(z, level):
            prediction = PLANE.denoise(z, level)
            return prediction._replace(x=prediction.x + shift)

        levels = jnp.asarray([-20.0, -6.0, 0.0, 2.0, jnp.inf])
        return jnp.sum(driver.scan(sampler, denoise, z, levels, KEY))

    z = jnp.asarray(normal((2, 2, 1)), jnp.float32)
    dz, dshift = jax.jit(jax.grad(total, argnums=(0, 1)))(z, jnp.zeros(()))
    assert np.isfinite(dz).all()
    assert np.isfinite(dshift)
    # every element's estimate at the last level shifts by one at least
    assert dshift >= 4 - 1e-4


def test_gradient_of_ddim_is_the_gradient_of_the_exact_flow():
    data = Gaussian([0.2], [[0.4]], (1, 1))
    levels = jnp.linspace(-5.0, 5.0, 301)
    z = jnp.asarray([[[0.7]]])
    slope = jax.grad(lambda z: driver.scan(samplers.ddim(), data.denoise, z, levels, KEY).sum())(z)
    (a_t, s_t), (a_s, s_s) = alpha_sigma(-5.0), alpha_sigma(5.0)
    exact = np.sqrt((0.4 * a_s**2 + s_s**2) / (0.4 * a_t**2 + s_t**2))
    np.testing.assert_allclose(slope[0, 0, 0], exact, rtol=0.01)


def test_constructors_give_one_object_and_refuse_nonsense():
    assert samplers.ddim(0.5) is samplers.ddim(0.5)
    for bad in (
        lambda: samplers.ancestral(1.5),
        lambda: samplers.ddim(-0.1),
        lambda: samplers.predictor_corrector(0.0, 2.0),
        lambda: samplers.predictor_corrector(0.0, 0.1, 0),
    ):
        with pytest.raises(UserError, match="give"):
            bad()
