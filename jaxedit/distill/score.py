r"""Score distillation sampling: a denoiser's opinion of a rendered image as a gradient on its latents.

Symbols: z_0 latents of the render, z = alpha z_0 + sigma eps, eps_cfg the denoiser's guided estimate of eps. Poole et al.
(DreamFusion, 2022), Eq. 3, drops the denoiser's Jacobian:

    dL / dz_0 = w (eps_cfg - eps),    w = sigma^2 = 1 - alpha_bar                                           (1)

With InstructPix2Pix's three branches as the denoiser it is the baseline "SDS + InstructPix2Pix" of Instruct-NeRF2NeRF (Haque et
al. 2023, section 5.2; weight as in threestudio).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxvid.diffusion.parameterization import as_epsilon
from jaxvid.diffusion.process import alpha_sigma, q_sample
from jaxvid.diffusion.types import Denoise, Level


def score_gradient(
    denoise: Denoise,
    z: Float[Array, "b *rest"],
    logsnr: Float[Array, ""],
    key: Key[Array, ""],
) -> Float[Array, "b *rest"]:
    """The gradient (1) on the latents; a number that is not finite becomes 0."""
    eps = jax.random.normal(key, z.shape, jnp.float32)
    noised = q_sample(z, eps, logsnr)
    prediction = denoise(noised, Level(jnp.broadcast_to(logsnr, z.shape[:1])))
    _, sigma = alpha_sigma(logsnr)
    gradient = sigma**2 * (as_epsilon(prediction, noised, logsnr) - eps)
    return jnp.where(jnp.isfinite(gradient), gradient, 0.0)


def distilled(z: Float[Array, "b *rest"], gradient: Float[Array, "b *rest"]) -> Float[Array, "b"]:
    """A loss of each example whose gradient in z is `gradient`; its value means nothing."""
    return jnp.sum(z * jax.lax.stop_gradient(gradient), axis=tuple(range(1, z.ndim)))
