"""Score distillation against its closed form: data at one point have an exact denoiser."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.distill.score import distilled, score_gradient
from jaxvid.diffusion.types import Prediction


def test_the_gradient_leads_to_the_only_data_there_are():
    """eps_hat - eps = (alpha / sigma)(z_0 - mu), so the gradient is alpha sigma (z_0 - mu), whatever the noise."""
    rng = np.random.default_rng(0)
    mu, z = (jnp.asarray(rng.normal(size=(2, 1, 3, 4, 5)), jnp.float32) for _ in range(2))
    for logsnr in (-4.0, 0.0, 3.0):
        for seed in (0, 1):
            found = score_gradient(
                lambda z, level: Prediction(mu), z, jnp.float32(logsnr), jax.random.key(seed)
            )
            alpha, sigma = (1 / (1 + np.exp(sign * logsnr)) ** 1 for sign in (-1, 1))
            expected = np.sqrt(alpha * sigma) * (z - mu)
            np.testing.assert_allclose(found, expected, atol=2e-5)


def test_what_is_not_finite_is_no_gradient():
    z = jnp.ones((1, 1, 2, 2, 1))
    bad = (0.0 * z).at[0, 0, 0, 0, 0].set(jnp.nan)
    found = score_gradient(lambda z, level: Prediction(bad), z, jnp.float32(0.0), jax.random.key(0))
    assert np.isfinite(found).all()
    assert found[0, 0, 0, 0, 0] == 0
    assert (found != 0).sum() == 3


def test_the_loss_has_that_gradient_and_no_other():
    rng = np.random.default_rng(1)
    z, gradient = (jnp.asarray(rng.normal(size=(2, 3)), jnp.float32) for _ in range(2))
    found = jax.grad(lambda z: jnp.sum(distilled(z, gradient * jnp.sum(z * 0 + 1.0))))(z)
    np.testing.assert_allclose(found, gradient * 6, rtol=1e-6)
