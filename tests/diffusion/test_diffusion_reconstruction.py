"""Reconstruction guidance and replacement on Gaussians, where the exact conditional is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_truth import alpha_sigma, frames

from jaxvid.diffusion import driver, grid, reconstruction, samplers
from jaxvid.diffusion.schedule import Cosine
from jaxvid.diffusion.types import Level, Prediction

DATA = frames(4, correlation=0.8)
KNOWN = np.array([True, True, False, False])
B = 3
X = np.random.default_rng(0).multivariate_normal(DATA.mean, DATA.covariance, B)
MASK = jnp.asarray(np.tile(KNOWN, (B, 1)))


def video(values):
    return jnp.asarray(np.asarray(values).reshape(len(values), 4, 1, 1, 1), jnp.float32)


def noisy(x, logsnr, seed=1):
    alpha, sigma = alpha_sigma(logsnr)
    return alpha * x + sigma * np.random.default_rng(seed).normal(size=x.shape)


@pytest.mark.parametrize("logsnr", [-20.0, -3.0, 0.0, 4.0, 20.0])
def test_equals_the_closed_form_of_a_linear_denoiser(logsnr):
    """x_hat = K z + k: the gradient of |x^a - P x_hat|^2 (a sum) is -2 K^T P (x^a - P x_hat), on the free frames only."""
    z, weight = noisy(X, logsnr), 1.7
    gain, alpha = DATA.gain(logsnr), alpha_sigma(logsnr)[0]
    estimate = DATA.expectation(z, logsnr)
    residual = (X - estimate) * KNOWN
    expected = estimate + weight * alpha * (residual @ gain) * ~KNOWN
    denoise = reconstruction.reconstruction(
        DATA.denoise, reconstruction.known_parts(video(X), MASK, weight), free=~MASK
    )
    at = Level(jnp.full((B,), logsnr))
    got = denoise(video(z), at).x
    np.testing.assert_allclose(np.asarray(got).reshape(B, 4), expected, rtol=1e-5, atol=1e-5)
    # everywhere when nothing is said to be fixed; per-example weights and per-frame levels line up
    weights = np.array([0.5, 1.0, 9.0])
    everywhere = reconstruction.reconstruction(
        DATA.denoise, reconstruction.known_parts(video(X), MASK, jnp.asarray(weights, jnp.float32))
    )
    expected = estimate + weights[:, None] * alpha * (residual @ gain)
    got = everywhere(video(z), at).x
    np.testing.assert_allclose(np.asarray(got).reshape(B, 4), expected, rtol=1e-5, atol=1e-5)


def test_levels_per_frame_scale_the_gradient_per_frame():
    logsnr = jnp.tile(jnp.asarray([3.0, 2.0, 0.0, -1.0]), (B, 1))

    def denoise(z, level):
        return Prediction(0.5 * z + 0.25 * jnp.roll(z, 1, axis=1))

    z = video(X) * 0.7
    got = reconstruction.reconstruction(
        denoise, reconstruction.known_parts(video(X), MASK, 2.0), free=~MASK
    )(z, Level(logsnr)).x
    matrix = 0.5 * np.eye(4) + 0.25 * np.eye(4)[[3, 0, 1, 2]]
    flat = np.asarray(z, float).reshape(B, 4)
    estimate = flat @ matrix.T
    alpha = alpha_sigma(np.asarray(logsnr))[0]
    expected = estimate + 2.0 * alpha * (((X - estimate) * KNOWN) @ matrix) * ~KNOWN
    np.testing.assert_allclose(np.asarray(got).reshape(B, 4), expected, rtol=1e-5, atol=1e-5)


def exact_conditional(z, logsnr, value):
    """E[x | z, x^a] in float64: z and x^a are linear in x with Gaussian noise, zero for x^a."""
    alpha, sigma = alpha_sigma(logsnr)
    pick = np.eye(4)[KNOWN]
    observe = np.vstack([alpha * np.eye(4), pick])
    noise = np.diag([sigma**2] * 4 + [0.0] * len(pick))
    joint = observe @ DATA.covariance @ observe.T + noise
    data = np.hstack([z, value]) - DATA.mean @ observe.T
    return DATA.mean + data @ np.linalg.solve(joint, observe @ DATA.covariance)


def test_unit_weight_approaches_the_exact_conditional_mean_as_noise_vanishes():
    """The share of the exact correction that is missed falls with sigma^2."""
    with jax.enable_x64(True):
        missed = []
        for logsnr in (2.0, 4.0, 6.0, 8.0, 10.0):
            z = noisy(X, logsnr)
            exact = exact_conditional(z, logsnr, X[:, KNOWN])[:, ~KNOWN]
            plain = DATA.expectation(z, logsnr)[:, ~KNOWN]
            observed = reconstruction.known_parts(jnp.asarray(X.reshape(B, 4, 1, 1, 1)), MASK, 1.0)
            denoise = reconstruction.reconstruction(DATA.denoise, observed, free=~MASK)
            got = denoise(jnp.asarray(z.reshape(B, 4, 1, 1, 1)), Level(jnp.full((B,), logsnr))).x
            guided = np.asarray(got).reshape(B, 4)[:, ~KNOWN]
            missed.append(np.linalg.norm(guided - exact) / np.linalg.norm(plain - exact))
    assert missed[-1] < 1e-2
    slope = np.diff(np.log(missed)) / 2.0  # per unit of log-SNR; sigma^2 ~ e^-logsnr
    np.testing.assert_allclose(slope[-1], -1.0, atol=0.1)
    assert (np.diff(missed) < 0).all()


def test_replacement_is_a_sample_of_q_and_exact_at_the_clean_end():
    hook = reconstruction.replacement(video(X), MASK)
    z, key = jnp.full((B, 4, 1, 1, 1), 7.0), jax.random.key(3)
    for logsnr in (-20.0, 1.0, 20.0):
        got = np.asarray(hook(z, Level(jnp.full((B,), logsnr)), key)).reshape(B, 4)
        alpha, sigma = alpha_sigma(logsnr)
        eps = np.asarray(jax.random.normal(key, z.shape)).reshape(B, 4)
        np.testing.assert_allclose(
            got[:, KNOWN], (alpha * X + sigma * eps)[:, KNOWN], rtol=1e-5, atol=1e-6
        )
        assert (got[:, ~KNOWN] == 7.0).all()
    clean = np.asarray(hook(z, Level(jnp.full((B,), jnp.inf)), key)).reshape(B, 4)
    assert (clean[:, KNOWN] == X.astype(np.float32)[:, KNOWN]).all()


@pytest.mark.parametrize(
    "sampler",
    [samplers.ancestral(0.3), samplers.ddim(), samplers.predictor_corrector(0.0, 0.1)],
    ids=["ancestral", "ddim", "predictor-corrector"],
)
def test_reconstruction_brings_the_continuation_to_the_conditional_mean(sampler):
    """Video Diffusion Models, Section 3.1: replacement alone misses it, guidance helps, and weights above 1 help more."""
    count = 800
    known = video(np.repeat(X, count, axis=0))
    mask = jnp.asarray(np.tile(KNOWN, (len(known), 1)))

    def make_denoise(weight):
        observed = reconstruction.known_parts(known, mask, weight)
        return reconstruction.reconstruction(DATA.denoise, observed, free=~mask)

    run = driver.program(sampler, make_denoise, lambda _: reconstruction.replacement(known, mask))
    z = jax.random.normal(jax.random.key(10), known.shape)
    exact = np.stack([DATA.conditional(KNOWN, x[KNOWN])[0] for x in X])
    error = {}
    for weight in (0.0, 1.0, 2.0):
        got = np.asarray(run(weight, z, grid.uniform(Cosine(), 32), jax.random.key(3)))
        np.testing.assert_array_equal(got[:, KNOWN], np.asarray(known)[:, KNOWN])
        means = got.astype(np.float64).reshape(B, count, 4)[..., ~KNOWN].mean(1)
        error[weight] = np.sqrt(np.mean(np.square(means - exact)))
    # the standard error of a mean is about 0.3 / sqrt(800) = 0.01
    assert error[0.0] > 0.08, error
    assert error[1.0] < 0.85 * error[0.0], error
    assert error[2.0] < 0.65 * error[0.0], error


# Super-resolution --------------------------------------------------------------------------------


def linear_image_denoise(z, level):
    """Mixes neighbours in space and time, so that its Jacobian is not symmetric in any trivial way."""
    return Prediction(
        0.6 * z
        + 0.3 * jnp.roll(z, 1, axis=2)
        - 0.2 * jnp.roll(z, 2, axis=3)
        + 0.1 * jnp.roll(z, 1, axis=1)
    )


@pytest.mark.parametrize("downsample", [None, reconstruction.area], ids=["bilinear", "area"])
def test_super_resolution_equals_the_dense_linear_algebra(downsample):
    shape, small, logsnr, weight = (1, 2, 8, 8, 1), (1, 2, 4, 4, 1), 0.5, 3.0
    z, frame = jax.random.normal(jax.random.key(0), (2, *shape))
    low = jax.random.normal(jax.random.key(1), small)
    known = jnp.asarray([[True, False]])
    resize = downsample or reconstruction.bilinear
    size = int(np.prod(shape))

    @jax.jit
    def compute(z, low, frame):
        at = Level(jnp.full((1,), logsnr))
        space = reconstruction.low_resolution(low, weight, downsample)
        time = reconstruction.known_parts(frame, known, 2.0)
        one = reconstruction.reconstruction(linear_image_denoise, space)
        both = reconstruction.reconstruction(linear_image_denoise, space, time, free=~known)
        # rows of the identity through each linear map: transposed matrices
        identity = jnp.eye(size).reshape(size, *shape[1:])
        denoise_t = linear_image_denoise(identity, at).x.reshape(size, size)
        resize_t = resize(identity, (size, *small[1:])).reshape(size, -1)
        return one(z, at).x, both(z, at).x, denoise_t, resize_t

    got, got_both, denoise_t, resize_t = map(np.asarray, compute(z, low, frame))
    np.testing.assert_allclose(resize_t.sum(1).mean(), 0.25, atol=1e-5)  # a mean over 4 pixels each
    estimate = np.asarray(z).reshape(-1) @ denoise_t
    residual = np.asarray(low).reshape(-1) - estimate @ resize_t
    alpha = alpha_sigma(logsnr)[0]
    space_term = weight * alpha * denoise_t @ (resize_t @ residual)
    np.testing.assert_allclose(got.reshape(-1), estimate + space_term, rtol=1e-4, atol=1e-4)
    # together with a known first frame: the gradients add, and move the other frame only
    picked = np.repeat([1.0, 0.0], size // 2)
    time_term = 2.0 * alpha * denoise_t @ (picked * (np.asarray(frame).reshape(-1) - estimate))
    total = estimate + (1 - picked) * (space_term + time_term)
    np.testing.assert_allclose(got_both.reshape(-1), total, rtol=1e-4, atol=1e-4)


def test_downsamplers_refuse_what_they_cannot_do():
    x = jnp.zeros((1, 4, 8, 8, 3))
    with pytest.raises(ValueError, match="frames"):
        reconstruction.bilinear(x, (1, 2, 4, 4, 3))
    with pytest.raises(ValueError, match="whole"):
        reconstruction.area(x, (1, 4, 3, 4, 3))
    got = reconstruction.area(jnp.arange(16.0).reshape(1, 1, 4, 4, 1), (1, 1, 2, 2, 1))
    assert got.reshape(-1).tolist() == [2.5, 4.5, 10.5, 12.5]
