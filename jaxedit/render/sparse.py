"""Rays through mostly empty space: only blocks of samples that touch an occupied cell are looked at.

A ray's s intervals are cut into blocks of b. A block counts if one of its samples lies in an occupied cell; the blocks
that count, of all rays, are packed into slots, the field is asked in the slots, and every block becomes four numbers from
which its ray is composited. With W the weights inside a block and T what reaches it,

    pixel = sum_blocks T (sum W c),   opacity = sum_blocks T (sum W),   T' = T exp(-sum tau)

so the result is that of the dense renderer on `density where occupied, else 0`, whatever the blocks and slots.

Shapes are static: a pass has a fixed number of slots. What does not fit into the first pass goes through further ones,
each skipped at run time when nothing is left for it and rematerialised in the gradient; so the number of slots changes
speed and memory, never the result.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxedit.fields.field import Field
from jaxedit.render.compositing import Pixels, weights_of
from jaxedit.render.occupancy import is_occupied
from jaxedit.scene.cameras import Rays


class Blocks(NamedTuple):
    """What blocks of samples amount to; the leading axes are slots, or rays and their blocks.

    thickness: optical thickness. light: RGB sent towards the camera. weight: opacity. moment: sum of weight times
    distance. spread: distortion within the block (see `jaxedit.render.intervals.distortion_loss`).
    """

    thickness: Float[Array, "*n"]
    light: Float[Array, "*n 3"]
    weight: Float[Array, "*n"]
    moment: Float[Array, "*n"]
    spread: Float[Array, "*n"]


def render_sparse(
    field: Field,
    rays: Rays,
    edges: Float[Array, "r e"],
    occupied: Bool[Array, "x y z"],
    background: Float[Array, "*#r 3"],
    *,
    block: int,
    slots: int,
) -> tuple[Pixels, Float[Array, "r"]]:
    """Pixels and distortion (by distance) of rays whose intervals have these edges; e - 1 is a multiple of `block`."""
    count, samples = edges.shape[0], edges.shape[1] - 1
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    seen = is_occupied(occupied, field.frame, rays.at(middle))
    seen = seen & (jnp.diff(edges, axis=-1) > 0)
    per_ray = samples // block
    wanted = jnp.any(seen.reshape(count * per_ray, block), axis=-1)
    # Static: enough passes for every block of every ray.
    passes = math.ceil(count * per_ray / slots)
    chosen = jnp.nonzero(wanted, size=passes * slots, fill_value=count * per_ray)[0]

    def ask(which: Int[Array, "s"]) -> Blocks:
        ray, part = jnp.divmod(jnp.minimum(which, count * per_ray - 1), per_ray)
        column = part[:, None] * block + jnp.arange(block + 1)
        return ask_blocks(
            field,
            jax.tree.map(lambda leaf: leaf[ray], rays),
            edges[ray[:, None], column],
            seen[ray[:, None], column[:, :-1]] & (which < count * per_ray)[:, None],
        )

    first = ask(chosen[:slots])
    found = [first]
    if passes > 1:
        total = jnp.sum(wanted.astype(jnp.int32))
        empty = jax.tree.map(jnp.zeros_like, first)

        @jax.checkpoint
        def further(_: None, turn: Int[Array, ""]) -> tuple[None, Blocks]:
            which = jax.lax.dynamic_slice(chosen, (turn * slots,), (slots,))
            return None, jax.lax.cond(turn * slots < total, ask, lambda _: empty, which)

        _, rest = jax.lax.scan(further, None, jnp.arange(1, passes))
        found.append(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rest))

    def spread_out(*parts: Array) -> Array:
        values = jnp.concatenate(parts)
        flat = jnp.zeros((count * per_ray, *values.shape[1:]), values.dtype)
        flat = flat.at[chosen].set(values, mode="drop", unique_indices=False)
        return flat.reshape(count, per_ray, *values.shape[1:])

    return join_blocks(jax.tree.map(spread_out, *found), background)


def ask_blocks(
    field: Field, rays: Rays, edges: Float[Array, "s e"], seen: Bool[Array, "s b"]
) -> Blocks:
    """Blocks of samples of one ray each; e = b + 1."""
    middle, length = 0.5 * (edges[:, 1:] + edges[:, :-1]), jnp.diff(edges, axis=-1)
    points = rays.at(middle)
    density, colour = field.query(points, rays.direction[:, None, :])
    thickness = jnp.minimum(jnp.where(seen, density, 0.0) * length, 80.0)
    weight = weights_of(thickness)
    below = jnp.cumsum(weight, axis=-1) - weight
    # Distances from the block's middle: differences of far distances would cancel.
    offset = middle - jnp.mean(middle, axis=-1, keepdims=True)
    moment_below = jnp.cumsum(weight * offset, axis=-1) - weight * offset
    pairs = 2.0 * jnp.sum(weight * (offset * below - moment_below), axis=-1)
    return Blocks(
        thickness=jnp.sum(thickness, axis=-1),
        light=jnp.sum(weight[..., None] * colour, axis=-2),
        weight=jnp.sum(weight, axis=-1),
        moment=jnp.sum(weight * middle, axis=-1),
        spread=pairs + jnp.sum(weight**2 * length, axis=-1) / 3.0,
    )


def join_blocks(
    blocks: Blocks, background: Float[Array, "*#r 3"]
) -> tuple[Pixels, Float[Array, "r"]]:
    """Composites the blocks [r, n] of rays; returns pixels and distortion."""
    before = jnp.cumsum(blocks.thickness, axis=-1) - blocks.thickness
    reaching = jnp.exp(-before)
    weight, moment = reaching * blocks.weight, reaching * blocks.moment
    opacity = jnp.sum(weight, axis=-1)
    light = jnp.sum(reaching[..., None] * blocks.light, axis=-2)
    seen = opacity > 1e-6
    depth = jnp.where(seen, jnp.sum(moment, axis=-1) / jnp.where(seen, opacity, 1.0), 0.0)
    # All of a later block lies behind all of an earlier one. Around the ray's depth, as prefix sums would cancel.
    moment = moment - weight * jax.lax.stop_gradient(depth)[:, None]
    weight_below = jnp.cumsum(weight, axis=-1) - weight
    moment_below = jnp.cumsum(moment, axis=-1) - moment
    between = 2.0 * jnp.sum(moment * weight_below - weight * moment_below, axis=-1)
    distortion = between + jnp.sum(reaching**2 * blocks.spread, axis=-1)
    colour = light + (1.0 - opacity)[..., None] * background
    return Pixels(colour=colour, opacity=opacity, depth=depth), distortion
