"""Losses: equal in every space, exact at the extremes, and the closed form of a Gaussian's exact denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.diffusion import loss
from jaxvid.diffusion.parameterization import to_prediction
from jaxvid.diffusion.schedule import Cosine
from jaxvid.diffusion.types import Prediction

KEY = jax.random.key(0)


def constant_level(value):
    class Constant:
        logsnr = staticmethod(lambda t: jnp.full(t.shape, value))
        time = staticmethod(lambda logsnr: jnp.zeros_like(logsnr))
        network_time = staticmethod(lambda logsnr: logsnr)

    return Constant()


def alpha_sigma(logsnr):
    return np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))


def linear_denoise(kind):
    """One function of z and the level, spoken as each of the targets."""

    def denoise(z, level):
        x = jnp.tanh(z)
        alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(s * level.logsnr))[:, None, None] for s in (1, -1))
        output = {"x": x, "epsilon": (z - alpha * x) / sigma, "v": (alpha * z - x) / sigma}[kind]
        return to_prediction(output, z, level.logsnr, kind)

    return denoise


X = jax.random.uniform(jax.random.key(1), (4, 3, 5), minval=-1.0)
EPS = jax.random.normal(jax.random.key(2), X.shape)


@pytest.mark.parametrize("name", list(loss.WEIGHTS))
def test_every_weighting_is_the_same_number_in_every_space(name):
    times = jnp.asarray([0.3, 0.5, 0.6, 0.75])
    values = [
        loss.diffusion_loss(linear_denoise(kind), X, EPS, Cosine(), loss.WEIGHTS[name], times)[0]
        for kind in ("x", "epsilon", "v")
    ]
    assert values[0].shape == (4,)
    np.testing.assert_allclose(values[1], values[0], rtol=2e-4)
    np.testing.assert_allclose(values[2], values[0], rtol=2e-4)


def test_weights_are_the_published_ones():
    logsnr = np.linspace(-6, 6, 49)
    snr = np.exp(logsnr)
    expected = {
        "epsilon": snr,
        "v": 1 + snr,
        "x": np.ones_like(snr),
        "min_snr": np.minimum(snr, 5.0),
        "clipped_snr": np.clip(snr, 1.0, 5.0),
        "edm": (1 / snr + 0.25) / (0.25 / snr),  # (sigma^2 + sigma_data^2) / (sigma sigma_data)^2
    }
    assert expected.keys() == loss.WEIGHTS.keys()
    for name, weight in loss.WEIGHTS.items():
        got = np.exp(weight(jnp.asarray(logsnr, jnp.float32)))
        np.testing.assert_allclose(got, expected[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("logsnr", [-20.0, 20.0])
@pytest.mark.parametrize("kind", ["epsilon", "v", "x"])
def test_plain_losses_are_exact_at_the_extremes(logsnr, kind):
    """At +-20 the way through x would lose e^10 of the precision: the error here is that of one subtraction."""
    output = jax.random.normal(jax.random.key(5), X.shape)
    alpha, sigma = alpha_sigma(logsnr)
    value, detail = loss.diffusion_loss(
        lambda z, level: to_prediction(output, z, level.logsnr, kind),
        X,
        EPS,
        constant_level(logsnr),
        loss.WEIGHTS[kind],
        jnp.zeros(4),
    )
    x = np.asarray(X, np.float64)
    eps = np.asarray(EPS, np.float64)
    target = {"epsilon": eps, "v": alpha * eps - sigma * x, "x": x}[kind]
    expected = np.mean((np.asarray(output, np.float64) - target) ** 2, axis=(1, 2))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert detail.logsnr.tolist() == [logsnr] * 4


def test_per_frame_losses_and_frame_weights():
    times = jnp.full((4,), 0.4)
    denoise = linear_denoise("epsilon")
    plain, detail = loss.diffusion_loss(denoise, X, EPS, Cosine(), loss.epsilon_weight, times)
    assert detail.per_frame.shape == (4, 3)
    np.testing.assert_allclose(plain, np.mean(detail.per_frame, axis=1), rtol=1e-6)
    weights = jnp.asarray([[1.0, 1, 0], [0, 0, 2], [1, 1, 1], [0, 0, 0]])
    value, _ = loss.diffusion_loss(
        denoise, X, EPS, Cosine(), loss.epsilon_weight, times, frame_weights=weights
    )
    frames = np.asarray(detail.per_frame)
    expected = [frames[0, :2].mean(), frames[1, 2], frames[2].mean(), 0.0]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    broken = loss.mean_over_frames(jnp.asarray([[1.0, jnp.nan]]), jnp.asarray([[1.0, 0.0]]))
    assert broken.tolist() == [1.0]


def test_segments_have_their_own_levels():
    segment = jnp.asarray([[0, 0, 1], [0, 0, 1], [0, 2, 1], [0, 0, 0]])
    times = jax.random.uniform(jax.random.key(3), (4, 3))
    seen = []

    def denoise(z, level):
        seen.append((z, level.logsnr))
        return Prediction(z)

    value, detail = loss.diffusion_loss(
        denoise, X, EPS, Cosine(), loss.x_weight, times, segment=segment
    )
    expected = np.asarray(Cosine().logsnr(times))
    eps = np.asarray(EPS)
    for b in range(4):
        for t in range(3):
            level = expected[b, int(segment[b, t])]
            assert detail.logsnr[b, t] == level
            alpha, sigma = alpha_sigma(level)
            noisy = alpha * np.asarray(X[b, t]) + sigma * eps[b, t]
            np.testing.assert_allclose(seen[0][0][b, t], noisy, rtol=1e-5, atol=1e-5)
    assert (seen[0][1] == detail.logsnr).all()
    assert value.shape == (4,)
    with pytest.raises(ValueError, match="segment"):
        loss.diffusion_loss(denoise, X, EPS, Cosine(), loss.x_weight, times)
    with pytest.raises(ValueError, match="segment"):
        loss.diffusion_loss(denoise, X, EPS, Cosine(), loss.x_weight, times[:, 0], segment=segment)


def test_gathering_keeps_trailing_axes():
    values = jnp.arange(24.0).reshape(2, 3, 4)
    segment = jnp.asarray([[2, 0, 0, 1, 2], [1, 1, 0, 2, 2]])
    got = loss.gather_by_segment(values, segment)
    assert (
        got == np.stack([np.asarray(values)[b][np.asarray(segment)[b]] for b in range(2)])
    ).all()


def test_low_discrepancy_times_are_one_per_stratum_and_uniform():
    for shape in [(8,), (6, 4)]:
        times = np.asarray(loss.low_discrepancy_times(jax.random.key(7), shape))
        n = times.size
        assert times.shape == shape
        assert ((times >= 0) & (times < 1)).all()
        assert sorted(np.floor(times.reshape(-1) * n).astype(int)) == list(range(n))
        if len(shape) == 2:
            for column in times.T:
                assert sorted(np.floor(column * shape[0]).astype(int)) == list(range(shape[0]))
    one = jax.vmap(lambda key: loss.low_discrepancy_times(key, (5,))[2])(
        jax.random.split(KEY, 4000)
    )
    np.testing.assert_allclose(np.histogram(one, 10, (0, 1))[0], 400, atol=5 * np.sqrt(400))
    independent = loss.uniform_times(KEY, (4000,))
    np.testing.assert_allclose(np.histogram(independent, 10, (0, 1))[0], 400, atol=5 * np.sqrt(400))


def test_one_example_does_not_see_another():
    times = jnp.asarray([0.2, 0.5, 0.7, 0.9])

    def total(x, index):
        return loss.diffusion_loss(linear_denoise("v"), x, EPS, Cosine(), loss.v_weight, times)[0][
            index
        ]

    gradient = jax.grad(total)(X, 2)
    assert np.abs(gradient[2]).max() > 0
    assert np.abs(np.delete(gradient, 2, axis=0)).max() == 0


@pytest.mark.parametrize("logsnr", [-4.0, 0.0, 3.0])
def test_the_exact_denoiser_of_a_gaussian_has_its_closed_form_loss(logsnr):
    variance, mean = 0.3, 0.7
    alpha, sigma = alpha_sigma(logsnr)
    gain = alpha * variance / (alpha**2 * variance + sigma**2)

    def denoise(z, level):
        return Prediction(mean + gain * (z - alpha * mean))

    x = mean + variance**0.5 * jax.random.normal(jax.random.key(9), (400, 10, 20))
    remaining = variance * sigma**2 / (alpha**2 * variance + sigma**2)  # Var(x | z)
    for weight, factor in ((loss.x_weight, 1.0), (loss.epsilon_weight, np.exp(logsnr))):
        value, _ = loss.diffusion_loss(
            denoise,
            x,
            jax.random.normal(KEY, x.shape),
            constant_level(logsnr),
            weight,
            jnp.zeros(400),
        )
        # relative standard error of a chi-squared mean over 80000 elements: sqrt(2 / 80000) = 0.5 %
        np.testing.assert_allclose(value.mean(), factor * remaining, rtol=0.02)


def test_half_precision_data_trains_in_float32():
    value, detail = loss.diffusion_loss(
        lambda z, level: to_prediction(z.astype(jnp.bfloat16), z, level.logsnr, "v"),
        X.astype(jnp.bfloat16),
        EPS,
        Cosine(),
        loss.v_weight,
        jnp.asarray([0.0, 0.3, 0.9, 1.0]),
    )
    assert value.dtype == detail.logsnr.dtype == jnp.float32
    assert np.isfinite(value).all()
