"""Embeddings of numbers."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Num


def sinusoidal(
    x: Num[Array, "*axes"], width: int, *, offset: float = 1.0, cosines_first: bool = False
) -> Float[Array, "*axes d"]:
    """Sine and cosine features with `width / 2` frequencies from 1 towards 1/10000 (Vaswani et al. 2017).

    The exponents are i / (width / 2 - offset): with 1 (DDPM) the last frequency is 1/10000, with 0 (latent diffusion) the one
    after it would be. Sines come first unless `cosines_first`. `width` must be even and at least 4.
    """
    if width < 4 or width % 2:
        raise ValueError(f"sinusoidal features of width {width}: it must be even and at least 4")
    half = width // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / (half - offset)
    angles = x.astype(jnp.float32)[..., None] * jnp.exp(-math.log(10_000.0) * exponents)
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if cosines_first else parts, -1)


def logsnr_features(logsnr: Float[Array, "*axes"], width: int) -> Float[Array, "*axes d"]:
    """Sinusoidal features of a log-SNR.

    log-SNR is first mapped to the angle `u = (2 / pi) arctan(exp(-logsnr / 2))` in (0, 1), the time of the untruncated
    cosine schedule, and scaled by 1000 as in DDPM: equal steps of noise on that schedule become equal steps of the feature.
    """
    logsnr = logsnr.astype(jnp.float32)
    clean = logsnr > 0
    # By symmetry, so that exp never overflows and the gradient stays finite at any level.
    angle = jnp.arctan(jnp.exp(-0.5 * jnp.where(clean, logsnr, -logsnr)))
    u = (2.0 / math.pi) * jnp.where(clean, angle, 0.5 * math.pi - angle)
    return sinusoidal(1000.0 * u, width)
