"""Embeddings of numbers."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def sinusoidal(x: Float[Array, "*axes"], width: int) -> Float[Array, "*axes d"]:
    """Sine and cosine features with `width / 2` frequencies from 1 to 1/10000 (Vaswani et al. 2017; DDPM order:
    sines first). `width` must be even and at least 4.
    """
    if width < 4 or width % 2:
        raise ValueError(f"sinusoidal features of width {width}: it must be even and at least 4")
    half = width // 2
    frequencies = jnp.exp(-math.log(10_000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angles = x.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


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
