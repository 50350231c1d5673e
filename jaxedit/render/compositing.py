"""Samples along a ray to a pixel: the quadrature of volume rendering (Max 1995; NeRF, eq. 3).

    edges     t_0 <= t_1 <= ... <= t_s, distances along a ray of direction length 1
    density   of each of the s intervals, constant in it
    thickness tau_i = density_i (t_{i+1} - t_i)
    transmittance  T_i = exp(-sum_{j<i} tau_j): what reaches interval i; T_s reaches the background
    weight    w_i = T_i (1 - exp(-tau_i)); sum_i w_i = 1 - T_s, the opacity

A pixel is sum_i w_i c_i + T_s background.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# exp(-80) is below any float that counts; infinities would make the gradient of a sum of them NaN.
OPAQUE = 80.0


class Pixels(NamedTuple):
    """What rays see.

    colour: RGB over the background. opacity: 0 to 1. depth: mean distance of what is seen, sum w t / sum w at the
    middles of intervals, 0 where nothing is seen.
    """

    colour: Float[Array, "*n 3"]
    opacity: Float[Array, "*n"]
    depth: Float[Array, "*n"]


@jax.custom_vjp
def weights_of(thickness: Float[Array, "*n s"]) -> Float[Array, "*n s"]:
    """Weights of intervals of those optical thicknesses (>= 0).

    The written-out gradient saves the weights and remaining light alone:
        d w_j / d tau_i = T_{i+1} for j = i, -w_j for j > i, 0 else.
    """
    return _weights(thickness)[0]


def _weights(thickness: Array) -> tuple[Array, Array]:
    through = jnp.exp(-jnp.cumsum(thickness, axis=-1))  # T_{i+1}
    before = jnp.concatenate([jnp.ones_like(through[..., :1]), through[..., :-1]], axis=-1)
    # T_i (1 - exp(-tau_i)), not T_i - T_{i+1}: thin intervals would cancel.
    return before * -jnp.expm1(-thickness), through


def _forward(thickness: Array) -> tuple[Array, tuple[Array, Array]]:
    weights, through = _weights(thickness)
    return weights, (weights, through)


def _backward(saved: tuple[Array, Array], g: Array) -> tuple[Array]:
    weights, through = saved
    behind = jax.lax.cumsum(g * weights, axis=g.ndim - 1, reverse=True)
    later = jnp.concatenate([behind[..., 1:], jnp.zeros_like(behind[..., :1])], axis=-1)
    # An opaque interval leaves through = 0, and g may be anything finite: no infinity arises.
    return (g * through - later,)


weights_of.defvjp(_forward, _backward)


def thickness_of(
    density: Float[Array, "*n s"], edges: Float[Array, "*n e"], *, last_opaque: bool = False
) -> Float[Array, "*n s"]:
    """Optical thickness of intervals; e = s + 1.

    last_opaque: the last interval counts as endless, so what is there hides the background (NeRF's 1e10).
    """
    thickness = thickness_of_lengths(density, jnp.diff(edges, axis=-1))
    if last_opaque:
        last = jnp.arange(density.shape[-1]) == density.shape[-1] - 1
        thickness = jnp.where(last & (density > 0), OPAQUE, thickness)
    return thickness


def thickness_of_lengths(
    density: Float[Array, "*n"], length: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """Optical thickness of ways of those lengths, at most `OPAQUE`; 0 for no length whatever the density."""
    # An exponential may overflow, and infinity times 0 is no number.
    return jnp.minimum(jnp.minimum(density, 1e30) * length, OPAQUE)


def sum_before(values: Float[Array, "*n s"]) -> Float[Array, "*n s"]:
    """The sum of all earlier values of a row: 0 for the first, and never below 0 by rounding."""
    total = jnp.cumsum(values[..., :-1], axis=-1)
    return jnp.concatenate([jnp.zeros_like(values[..., :1]), total], axis=-1)


def composite(
    weights: Float[Array, "*n s"],
    colour: Float[Array, "*n s 3"],
    middle: Float[Array, "*n s"],
    background: Float[Array, "*#n 3"],
) -> Pixels:
    """Pixels of weighted samples; `middle` are the samples' distances."""
    opacity = jnp.sum(weights, axis=-1)
    seen = jnp.sum(weights[..., None] * colour, axis=-2)
    return Pixels(
        colour=seen + (1.0 - opacity)[..., None] * background,
        opacity=opacity,
        depth=mean_depth(weights, middle),
    )


def mean_depth(weights: Float[Array, "*n s"], middle: Float[Array, "*n s"]) -> Float[Array, "*n"]:
    """Mean distance under the weights, 0 where they vanish."""
    opacity = jnp.sum(weights, axis=-1)
    seen = opacity > 1e-6
    mean = jnp.sum(weights * middle, axis=-1) / jnp.where(seen, opacity, 1.0)
    return jnp.where(seen, mean, 0.0)
