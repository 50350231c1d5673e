"""Guidance tables against plain formulas, and their effect on Gaussians in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_truth import Gaussian

from jaxvid.diffusion import driver, guidance, samplers
from jaxvid.diffusion.types import Level, Prediction

B, T = 3, 3  # equal on purpose: a wrong broadcast would still have a shape
Z = jax.random.normal(jax.random.key(0), (B, T, 2, 2, 1))


def level(logsnr=0.0, step=0, total=10, per_frame=False):
    values = jnp.full((B, T) if per_frame else (B,), logsnr)
    return Level(values, jnp.asarray(step, jnp.int32), jnp.asarray(total, jnp.int32))


def conditional(z, level, conditions):
    """Depends on every condition, the level and z, differently for each example and frame."""
    size = conditions["a"].shape[0]
    assert z.shape[0] == level.logsnr.shape[0] == size
    shift = (conditions["a"] * conditions["b"].sum(-1))[:, None, None, None, None]
    frame = jnp.arange(T, dtype=jnp.float32)[None, :, None, None, None]
    pace = level.logsnr.reshape(level.logsnr.shape + (1,) * (z.ndim - level.logsnr.ndim))
    return Prediction(jnp.tanh(z + shift) + frame * shift + 0.1 * pace, 0.0 * z + shift, {"v": z})


def conditions(seed):
    a, b = np.random.default_rng(seed).normal(size=(2, B, 4)).astype(np.float32)
    return {"a": jnp.asarray(a[:, 0]), "b": jnp.asarray(b)}


C, U, IMAGE = conditions(1), conditions(2), conditions(3)
XC, XU, XI = (np.asarray(conditional(Z, level(), c).x, np.float64) for c in (C, U, IMAGE))


def check(table, expected, at=None, **options):
    for together in (True, False):
        denoise = guidance.guided(conditional, table, together=together, **options)
        got = jax.jit(denoise)(Z, at if at is not None else level())
        np.testing.assert_allclose(got.x, expected, rtol=1e-5, atol=1e-5)
        assert got.aux == {}
        np.testing.assert_allclose(got.log_variance, conditional(Z, level(), C).log_variance)


def test_classifier_free_is_the_papers_formula():
    w = 2.5
    check(guidance.classifier_free(C, U, 1 + w), (1 + w) * XC - w * XU)
    check(guidance.classifier_free(C, U, 1.0), XC)
    check(guidance.classifier_free(C, U, 0.0), XU)


@pytest.mark.parametrize("shape", [(), (B,), (B, T)])
def test_scales_line_up_with_examples_and_frames(shape):
    scale = np.random.default_rng(4).uniform(0, 5, shape).astype(np.float32)
    expected = np.empty(XC.shape)
    for b in range(B):
        for t in range(T):
            s = scale[(b, t)[: len(shape)]]
            expected[b, t] = s * XC[b, t] + (1 - s) * XU[b, t]
    check(guidance.classifier_free(C, U, jnp.asarray(scale)), expected)


def test_levels_may_vary_by_frame():
    logsnr = jax.random.normal(jax.random.key(1), (B, T))
    at = Level(logsnr)
    xc, xu = (np.asarray(conditional(Z, at, c).x) for c in (C, U))
    scale = guidance.in_logsnr_interval(jnp.asarray([2.0, 3.0, 4.0]), -0.5, 0.5)
    expected = np.empty(XC.shape)
    for b in range(B):
        for t in range(T):
            s = (2.0, 3.0, 4.0)[b] if -0.5 <= logsnr[b, t] <= 0.5 else 1.0
            expected[b, t] = s * xc[b, t] + (1 - s) * xu[b, t]
    check(guidance.classifier_free(C, U, scale), expected, at)


def test_instruct_pix2pix_is_the_papers_formula():
    s_image, s_text = 1.5, 7.0
    expected = XU + s_image * (XI - XU) + s_text * (XC - XI)
    check(guidance.instruct_pix2pix(C, IMAGE, U, s_image, s_text), expected)
    ramp = guidance.frame_ramp(1.0, 3.0, T)
    mixed = guidance.instruct_pix2pix(
        C, IMAGE, U, jnp.asarray([1.0, 2.0, 3.0]), ramp
    )  # [b] with [b, t]
    s_image = np.array([1.0, 2, 3])[:, None, None, None, None]
    s_text = np.array([1.0, 2, 3])[None, :, None, None, None]
    check(mixed, XU + s_image * (XI - XU) + s_text * (XC - XI))


def test_frame_ramp_rises_over_frames():
    got = guidance.frame_ramp(1.0, 2.5, 14)(Level(jnp.zeros((2,))))
    np.testing.assert_allclose(got, np.tile(np.linspace(1, 2.5, 14), (2, 1)), rtol=1e-6)
    assert guidance.frame_ramp(1.5, 2.5, 1)(Level(jnp.zeros((2,)))).tolist() == [[1.5], [1.5]]


def test_intervals_and_oscillation_by_step():
    at = [level(step=i, total=8) for i in range(8)]
    osc = guidance.oscillating(16.0, 2.0, 3)
    assert [float(osc(a)) for a in at] == [16, 16, 16, 2, 16, 2, 16, 2]
    assert [float(guidance.oscillating(16.0, 2.0, 0)(a)) for a in at[:3]] == [2, 16, 2]
    part = guidance.in_step_interval(7.0, 0.25, 0.75)
    assert [float(part(a)) for a in at] == [1, 1, 7, 7, 7, 7, 1, 1]
    both = guidance.in_step_interval(osc, 0.0, 0.5)
    assert [float(both(a)) for a in at] == [16, 16, 16, 2, 1, 1, 1, 1]
    inside = guidance.in_logsnr_interval(7.0, -1.0, 2.0)
    got = [float(inside(level(v))[0]) for v in (-1.5, -1.0, 0.0, 2.0, 2.5)]
    assert got == [1, 7, 7, 7, 1]
    with pytest.raises(ValueError, match="sampling step"):
        osc(Level(jnp.zeros((1,))))


def test_oscillation_reaches_the_sampler():
    seen = []

    def spy(z, level):
        scale = guidance.oscillating(16.0, 2.0, 2)(level)
        jax.debug.callback(lambda s: seen.append(float(s)), scale, ordered=True)
        return Prediction(z)

    driver.sample(samplers.ddim(), spy, Z, np.linspace(-3.0, 3.0, 7), jax.random.key(0))
    jax.effects_barrier()
    assert seen == [16, 16, 2, 16, 2, 16]


def test_rescale_moves_the_deviation_toward_the_conditional():
    scale, phi = 6.0, 0.7
    plain = scale * XC + (1 - scale) * XU
    expected = np.empty_like(plain)
    for b in range(B):
        factor = XC[b].std() / plain[b].std()
        expected[b] = phi * plain[b] * factor + (1 - phi) * plain[b]
    check(guidance.classifier_free(C, U, scale), expected, rescale=phi)
    check(guidance.classifier_free(C, U, scale), plain, rescale=0.0)
    flat = guidance.guided(
        lambda z, level, c: Prediction(0.0 * z), guidance.classifier_free(C, U, 2.0), rescale=1.0
    )
    assert (flat(Z, level()).x == 0).all()


def test_half_precision_estimates_are_added_in_float32():
    def half(z, level, c):
        return Prediction(conditional(z, level, c).x.astype(jnp.bfloat16))

    for together in (True, False):
        got = guidance.guided(half, guidance.classifier_free(C, U, 7.5), together=together)(
            Z, level()
        ).x
        assert got.dtype == jnp.float32
        xc, xu = (np.asarray(half(Z, level(), c).x, np.float32) for c in (C, U))
        np.testing.assert_allclose(got, 7.5 * xc - 6.5 * xu, rtol=1e-5, atol=1e-5)


def test_a_condition_without_batch_axis_is_refused_together():
    table = guidance.classifier_free({"a": jnp.zeros(())}, {"a": jnp.ones(())}, 2)
    with pytest.raises(ValueError, match="batch axis"):
        guidance.guided(conditional, table)(Z, level())


@pytest.mark.parametrize("ceiling", [np.inf, 1.5])
def test_dynamic_threshold_is_imagens(ceiling):
    x = np.asarray(3 * XC, np.float32)
    x[2] *= 0.01  # inside [-1, 1]: untouched
    for fraction in (0.5, 0.9, 0.995):
        expected = np.empty_like(x)
        for b in range(B):
            r = min(max(np.quantile(np.abs(x[b]), fraction), 1.0), ceiling)
            expected[b] = np.clip(x[b], -r, r) / r
        denoise = guidance.dynamic_threshold(
            lambda z, level: Prediction(jnp.asarray(x), z, {"v": z}), fraction, ceiling=ceiling
        )
        got = denoise(Z, level())
        np.testing.assert_allclose(got.x, expected, rtol=1e-5, atol=1e-6)
        assert got.aux == {}
        assert got.log_variance is Z
        assert np.abs(got.x).max() <= 1.0
    assert (got.x[2] == x[2]).all()
    clipped = guidance.static_threshold(lambda z, level: Prediction(jnp.asarray(x)), -0.5, 0.25)
    np.testing.assert_allclose(clipped(Z, level()).x, np.clip(x, -0.5, 0.25))


def test_guided_gaussians_of_one_covariance_are_a_gaussian():
    """Guidance between N(m1, C) and N(m0, C) is the exact denoiser of N(m0 + s (m1 - m0), C)."""
    covariance = [[0.5, 0.2], [0.2, 0.3]]
    m1, m0, s = np.array([0.5, -0.2]), np.array([-0.1, 0.4]), 3.0
    shape = (2, 1)

    def denoise(z, level, mean):
        data = Gaussian([0.0, 0.0], covariance, shape)
        alpha = jnp.sqrt(jax.nn.sigmoid(level.logsnr))[:, None, None]
        return Prediction(data.denoise(z - alpha * mean[..., None], level).x + mean[..., None])

    means = [jnp.tile(jnp.asarray(m, jnp.float32), (4, 1)) for m in (m1, m0)]
    z = jax.random.normal(jax.random.key(3), (4, *shape))
    got = driver.sample(
        samplers.dpm_solver_2m(),
        guidance.guided(denoise, guidance.classifier_free(*means, s)),
        z,
        np.linspace(-6, 6, 129),
        jax.random.key(0),
    )
    exact = Gaussian(m0 + s * (m1 - m0), covariance, shape).flow(np.asarray(z), -6.0, 6.0)
    np.testing.assert_allclose(got, exact, atol=2e-3)


def test_guided_score_of_gaussians_of_two_covariances():
    """The score of guidance is s score_1 + (1 - s) score_0; precisions and their means add with those weights."""
    one = Gaussian([0.5, -0.2], [[0.5, 0.2], [0.2, 0.3]], (2, 1))
    two = Gaussian([-0.1, 0.4], [[0.9, 0.0], [0.0, 0.7]], (2, 1))
    s, logsnr = 2.0, 0.7
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))
    z = np.random.default_rng(0).normal(size=(5, 2))
    score = sum(
        w * -(z - alpha * g.mean) @ np.linalg.inv(g.noisy_covariance(logsnr))
        for w, g in ((s, one), (1 - s, two))
    )

    def denoise(z, level, which):
        first, second = one.denoise(z, level).x, two.denoise(z, level).x
        return Prediction(jnp.where(which[:, None, None] == 1, first, second))

    table = guidance.classifier_free(jnp.ones((5,)), jnp.zeros((5,)), s)
    got = guidance.guided(denoise, table)(
        jnp.asarray(z[..., None], jnp.float32), Level(jnp.full((5,), logsnr))
    )
    expected = (z + sigma**2 * score) / alpha  # Tweedie
    np.testing.assert_allclose(got.x[..., 0], expected, rtol=1e-5, atol=1e-5)


def test_one_at_a_time_takes_the_memory_of_one():
    """Three independent calls may be run side by side; a loop may not."""
    size = 256

    def wide(z, level, conditions):
        hidden = jnp.sin(z[:, None] * conditions[:, :, None])
        mixed = jnp.sort(hidden, axis=1)
        return Prediction(jnp.mean(mixed, axis=1))

    def program(z, conditions, together):
        table = guidance.instruct_pix2pix(*conditions, 1.5, 7.5)
        denoise = guidance.guided(wide, table, together=together)
        return denoise(z, Level(jnp.zeros(1))).x

    z, conditions = jnp.ones((1, size)), tuple(jnp.ones((1, size)) * i for i in range(3))
    sizes = []
    for together in (True, False):
        compiled = jax.jit(partial(program, together=together)).lower(z, conditions).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 0.5 * sizes[0]
