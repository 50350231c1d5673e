r"""Conditioning an unconditional denoiser on parts of the clean data: reconstruction guidance and replacement.

Symbols: x^a = A(x) observed, z noisy, x_hat(z) the denoiser's E[x | z].

The exact conditional estimate differs from x_hat by the score of the observation,

    E[x | z, x^a] = x_hat(z) + (sigma^2 / alpha) grad_z log q(x^a | z)                            (1)

and with the approximation q(x^a | z) = N(A(x_hat(z)), (sigma^2 / alpha^2) I) (Video Diffusion Models, Eq. 7),

    x_tilde(z) = x_hat(z) - (w alpha / 2) grad_z || x^a - A(x_hat(z)) ||^2                        (2)

the norm a sum over elements and the gradient taken through the denoiser (Eq. 8 there has a downsampler for A).
w = 1 is (1) under the approximation; larger weights work better in the paper.

Extension in time: A picks the known frames, the gradient moves the unknown frames only (`free`), and the known ones
are overwritten between steps with samples of q(z | x^a) (`replacement`, the paper's baseline when used alone).
Super-resolution in space: A is a differentiable downsampler and the gradient moves everything. Both at once: two
observations.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxvid.diffusion.process import alpha_sigma, at_least_float32, expand, q_sample
from jaxvid.diffusion.types import Denoise, Hook, Level, Number, Prediction


class Observation(NamedTuple):
    """What is known of the clean data: `operator(x)` should equal `value`; `weight` is w of (2), [] or [b]."""

    value: Array
    operator: Callable[[Array], Array]
    weight: Number


def reconstruction(
    denoise: Denoise, *observations: Observation, free: Bool[Array, "..."] | None = None
) -> Denoise:
    """Returns the denoiser (2).

    Args:
      denoise: any denoiser that can be differentiated with respect to z.
      observations: what is known; their terms add up.
      free: True where the estimate may move, [b], [b, t] or the shape of z; everywhere if None.

    The result costs a forward and a backward pass. It has no exact output in `aux`.
    """

    def denoiser(z: Array, level: Level) -> Prediction:
        def discrepancy(z: Array) -> tuple[Array, Prediction]:
            prediction = denoise(z, level)
            total = jnp.zeros((), prediction.x.dtype)
            for value, operator, weight in observations:
                residual = at_least_float32(value) - operator(prediction.x)
                weight = expand(at_least_float32(jnp.asarray(weight)), residual)
                total += jnp.sum(weight * jnp.square(residual))
            return total, prediction

        gradient, prediction = jax.grad(discrepancy, has_aux=True)(at_least_float32(z))
        alpha, _ = alpha_sigma(expand(level.logsnr, z))
        step = 0.5 * alpha * gradient
        if free is not None:
            step = jnp.where(expand(free, step), step, 0.0)
        return Prediction(prediction.x - step, prediction.log_variance)

    return denoiser


def known_parts(
    x: Float[Array, "*shape"], known: Bool[Array, "..."], weight: Number
) -> Observation:
    """The observation that `x` is right where `known` ([b], [b, t] or its shape) is True."""

    def operator(estimate: Array) -> Array:
        return jnp.where(expand(known, estimate), estimate, 0.0)

    return Observation(operator(at_least_float32(x)), operator, weight)


def low_resolution(
    value: Float[Array, "b t h w c"],
    weight: Number,
    downsample: Callable[[Array, tuple[int, ...]], Array] | None = None,
) -> Observation:
    """The observation that x downsampled to the shape of `value` is `value`.

    `downsample(x, shape)` is differentiable; bilinear with antialiasing if None, `area` is the other usual one.
    """
    resize = bilinear if downsample is None else downsample
    return Observation(value, lambda x: resize(x, value.shape), weight)


def bilinear(x: Float[Array, "b t H W c"], shape: tuple[int, ...]) -> Float[Array, "b t h w c"]:
    """Returns `x` resized to `shape`, bilinear with antialiasing; frames must be equally many."""
    if x.shape[:2] != tuple(shape[:2]):
        raise ValueError(f"resizing in space only: {x.shape} to {shape} changes examples or frames")
    return jax.image.resize(x, shape, "linear", antialias=True)


def area(x: Float[Array, "b t H W c"], shape: tuple[int, ...]) -> Float[Array, "b t h w c"]:
    """Returns the mean of `x` over the blocks that map to each element of `shape`; factors must be whole."""
    b, t, height, width, c = x.shape
    _, _, h, w, _ = shape
    if height % h or width % w or (b, t, c) != (shape[0], shape[1], shape[4]):
        raise ValueError(f"area downsampling of {x.shape} to {shape}: factors must be whole")
    return x.reshape(b, t, h, height // h, w, width // w, c).mean(axis=(3, 5))


def replacement(x: Float[Array, "*shape"], known: Bool[Array, "..."]) -> Hook:
    """The sampler hook that overwrites the known parts of z with a sample of q(z | x); at the clean end, with x.

    `known` is [b], [b, t] or the shape of x.
    """

    def hook(z: Array, level: Level, key: Array) -> Array:
        eps = jax.random.normal(key, z.shape, z.dtype)
        return jnp.where(expand(known, z), q_sample(x, eps, level.logsnr).astype(z.dtype), z)

    return hook
