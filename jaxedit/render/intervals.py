"""Where along a ray to sample: uniform, stratified, or where a proposal saw something; and the losses on intervals.

    s-space   [0, 1], in which intervals are spread; `to_distance` maps it to t in [near, far]
    edges     s_0 <= ... <= s_n: n intervals in either space
    weights   of the n intervals, >= 0 with sum <= 1

Spacing (t as a function of s is the inverse): "linear" for bounded scenes, "disparity" linear in 1/t (LLFF-like and
Vox-E's real scenes), "piecewise" linear to distance 1 and then in 1/t (nerfacto), for scenes without bounds.
"""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.render.compositing import sum_before

Spacing: TypeAlias = Literal["linear", "disparity", "piecewise"]


def to_distance(
    s: Float[Array, "*n e"],
    near: Float[Array, "*#n"],
    far: Float[Array, "*#n"],
    spacing: Spacing = "linear",
) -> Float[Array, "*n e"]:
    """Distances of positions in s-space; s = 0 is `near`, s = 1 is `far`."""
    low, high = near[..., None], far[..., None]
    if spacing == "linear":
        return low + s * (high - low)
    low, high = _compress(low, spacing), _compress(high, spacing)
    return _expand(low + s * (high - low), spacing)


def _compress(t: Array, spacing: Spacing) -> Array:
    if spacing == "disparity":
        return -1.0 / t
    return jnp.where(t < 1.0, t / 2.0, 1.0 - 0.5 / jnp.maximum(t, 1.0))


def _expand(y: Array, spacing: Spacing) -> Array:
    if spacing == "disparity":
        return -1.0 / y
    return jnp.where(y < 0.5, 2.0 * y, 0.5 / jnp.maximum(1.0 - y, 1e-9))


def uniform_edges(count: int, shape: tuple[int, ...] = ()) -> Float[Array, "*n e"]:
    """Edges of `count` equal intervals."""
    return jnp.broadcast_to(jnp.linspace(0.0, 1.0, count + 1), (*shape, count + 1))


def stratified_edges(count: int, jitter: Float[Array, "*n"]) -> Float[Array, "*n e"]:
    """Edges of `count` equal intervals, all moved by `jitter`, in [-1/2, 1/2], times an interval.

    The middles, where a field is asked, stay in [0, 1] and are everywhere equally often; the outer edges pass 0 or 1 by
    half an interval at most. One number for all of a ray: one for each sample would cost more to draw than an empty
    sample to render.
    """
    return (jnp.arange(count + 1.0) + jitter[..., None]) / count


def resampled_edges(
    edges: Float[Array, "*n e"],
    weights: Float[Array, "*n s"],
    count: int,
    jitter: Float[Array, "*n"] | None = None,
    *,
    padding: float = 0.01,
) -> Float[Array, "*n f"]:
    """Edges of `count` intervals that follow the density of `weights` (inverse transform sampling).

    padding: a weight spread evenly over [0, 1] and added to the others, whose sum is at most 1, so that a ray that saw
        nothing is sampled evenly. (nerfacto adds 0.01 to each of its weights, in sum far more.)
    jitter: in [-1/2, 1/2], common to a ray's samples (mip-NeRF). No gradient passes.
    """
    edges, weights = jax.lax.stop_gradient((edges, weights))
    padded = weights + padding * jnp.diff(edges, axis=-1)
    # An all-zero ray without padding: evenly.
    padded = jnp.where(
        jnp.sum(padded, axis=-1, keepdims=True) > 0, padded, jnp.diff(edges, axis=-1)
    )
    cumulative = jnp.cumsum(padded, axis=-1)
    cumulative = cumulative / cumulative[..., -1:]
    cumulative = jnp.concatenate([jnp.zeros_like(cumulative[..., :1]), cumulative], axis=-1)
    # Middles of count + 1 samples would lose the ends, so the edges themselves are sampled, evenly spread.
    inner = jnp.arange(1.0, count) / count
    if jitter is not None:
        inner = inner + jitter[..., None] / count
    inner = jnp.broadcast_to(inner, (*edges.shape[:-1], count - 1))
    found = interpolate(inner, cumulative, edges)
    return jnp.concatenate([edges[..., :1], found, edges[..., -1:]], axis=-1)


def interpolate(
    x: Float[Array, "*n m"], xp: Float[Array, "*n e"], fp: Float[Array, "*n e"]
) -> Float[Array, "*n m"]:
    """Piecewise linear interpolation, row by row; `xp` does not decrease. Where `xp` stands still, the last of its values counts."""
    # Comparing all with all is what vectorises on every backend; rows are short.
    index = jnp.sum((x[..., :, None] >= xp[..., None, :]).astype(jnp.int32), axis=-1)
    upper = jnp.clip(index, 1, xp.shape[-1] - 1)
    lower = upper - 1

    def at(values: Array, where: Array) -> Array:
        return jnp.take_along_axis(values, where, axis=-1)

    width = at(xp, upper) - at(xp, lower)
    part = jnp.where(width > 0, (x - at(xp, lower)) / jnp.where(width > 0, width, 1.0), 0.0)
    return at(fp, lower) + jnp.clip(part, 0.0, 1.0) * (at(fp, upper) - at(fp, lower))


def annealed(weights: Float[Array, "*n s"], progress: Float[Array, ""] | float) -> Array:
    """Proposal weights flattened early in training: w^a, a = b x / ((b - 1) x + 1), b = 10 (mip-NeRF 360, eq. 18).

    progress: x, 0 at the start (all weights equal) to 1 (as they are).
    """
    exponent = 10.0 * progress / (9.0 * progress + 1.0)
    # 0^0 = 1 has a NaN gradient, and none is needed: proposals learn from the interlevel loss.
    return jax.lax.stop_gradient(jnp.maximum(weights, 1e-12) ** exponent)


def interlevel_loss(
    edges: Float[Array, "*n e"],
    weights: Float[Array, "*n s"],
    proposal_edges: Float[Array, "*n pe"],
    proposal_weights: Float[Array, "*n p"],
) -> Float[Array, "*n"]:
    """How far a proposal fails to bound the weights of the final samples, a value a ray (mip-NeRF 360, eq. 13).

    The bound of an interval is the sum of proposal weights of all that overlap it; loss = sum max(0, w - bound)^2 / w.
    The gradient is the proposal's alone.
    """
    edges, weights = jax.lax.stop_gradient((edges, weights))
    starts, ends = edges[..., :-1, None], edges[..., 1:, None]
    overlap = (starts < proposal_edges[..., None, 1:]) & (ends > proposal_edges[..., None, :-1])
    bound = jnp.sum(jnp.where(overlap, proposal_weights[..., None, :], 0.0), axis=-1)
    return jnp.sum(jnp.maximum(weights - bound, 0.0) ** 2 / (weights + 1e-7), axis=-1)


def distortion_loss(
    edges: Float[Array, "*n e"], weights: Float[Array, "*n s"]
) -> Float[Array, "*n"]:
    """Distance between all pairs of pieces of weight, a value a ray (mip-NeRF 360, eq. 15), in O(s).

        sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 (s_{i+1} - s_i)
    As middles m ascend, the first sum is 2 sum_i w_i (m_i W_{<i} - (wm)_{<i}) with prefix sums W and (wm) (DVGOv2).
    """
    middle = 0.5 * (edges[..., 1:] + edges[..., :-1])
    # Relative to the ray's mean middle: prefix sums of large distances would cancel.
    middle = middle - jax.lax.stop_gradient(jnp.mean(middle, axis=-1, keepdims=True))
    moments = weights * middle
    between = weights * (middle * sum_before(weights) - sum_before(moments))
    return jnp.sum(2.0 * between + weights**2 * jnp.diff(edges, axis=-1) / 3.0, axis=-1)
