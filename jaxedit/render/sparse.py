"""Rays through mostly empty space: only blocks of samples that touch an occupied cell are looked at.

A ray's s intervals are cut into blocks of b. A block counts if one of its samples lies in an occupied cell; the blocks
that count, of all rays, are packed into slots, the field is asked in the slots, and every block becomes four numbers from
which its ray is composited. With W the weights inside a block and T what reaches it,

    pixel = sum_blocks T (sum W c),   opacity = sum_blocks T (sum W),   T' = T exp(-sum tau)

so the result is that of the dense renderer on `density where occupied, else 0`, whatever the blocks and slots.

Shapes are static: a pass has a fixed number of slots. What does not fit into the first pass goes through further ones, as
many as are needed at run time, rendered again in the gradient; so the number of slots changes speed and memory, never the
result. (A loop of a number of turns that only run time knows has a written-out gradient, which cannot be differentiated
again: second derivatives need the dense renderer.)
"""

import math
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxedit.fields.field import Field
from jaxedit.render.compositing import Pixels, sum_before, thickness_of_lengths, weights_of
from jaxedit.render.occupancy import is_occupied
from jaxedit.scene.cameras import Rays

Values: TypeAlias = tuple[Any, Rays, Array]  # the field, rays and edges that a pass depends on


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
) -> tuple[Pixels, Float[Array, "r"], Float[Array, "r"]]:
    """Pixels, distortion (of distances) and the number of blocks asked, of rays whose intervals have these edges.

    e - 1 is a multiple of `block`.
    """
    count, samples = edges.shape[0], edges.shape[1] - 1
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    seen = is_occupied(occupied, field.frame, rays.at(middle))
    seen = seen & (jnp.diff(edges, axis=-1) > 0)
    per_ray = samples // block
    wanted = jnp.any(seen.reshape(count, per_ray, block), axis=-1)
    # Static: enough passes for every block of every ray.
    passes = math.ceil(count * per_ray / slots)
    nowhere = count * per_ray
    chosen = jnp.nonzero(wanted.reshape(-1), size=passes * slots, fill_value=nowhere)[0]

    values = (field, rays, edges)
    found = [_ask(block, values, seen, chosen[:slots])]
    if passes > 1:
        left = jnp.maximum(jnp.sum(wanted.astype(jnp.int32)) - slots, 0)
        leaves, structure = jax.tree.flatten(values)
        # Integers among them (a packed grid's rows) have no gradient.
        moves = tuple(bool(jnp.issubdtype(leaf.dtype, jnp.inexact)) for leaf in leaves)
        form = Form(block, slots, structure, moves)
        fixed = Fixed(_chosen(leaves, moves, False), seen, chosen[slots:], -(-left // slots))
        found.append(_ask_in_turns(form, _chosen(leaves, moves, True), fixed))

    def spread_out(*parts: Array) -> Array:
        values = jnp.concatenate(parts)
        flat = jnp.zeros((nowhere, *values.shape[1:]), values.dtype)
        flat = flat.at[chosen].set(values, mode="drop")
        return flat.reshape(count, per_ray, *values.shape[1:])

    pixels, distortion = join_blocks(jax.tree.map(spread_out, *found), background)
    return pixels, distortion, jnp.sum(wanted.astype(jnp.float32), axis=-1)


def _ask(block: int, values: Values, seen: Bool[Array, "r s"], which: Int[Array, "n"]) -> Blocks:
    """The blocks of those numbers (ray by ray); numbers past the last block give blocks of nothing."""
    field, rays, edges = values
    per_ray = seen.shape[1] // block
    nowhere = seen.shape[0] * per_ray
    # What fills up the slots reads blocks here and there: adding nothing to one row many times would be slow.
    filled = jnp.where(which < nowhere, which, jnp.arange(which.shape[0]) % nowhere)
    ray, part = jnp.divmod(filled, per_ray)
    column = part[:, None] * block + jnp.arange(block + 1)
    return ask_blocks(
        field,
        jax.tree.map(lambda leaf: leaf[ray], rays),
        edges[ray[:, None], column],
        seen[ray[:, None], column[:, :-1]] & (which < nowhere)[:, None],
    )


class Form(NamedTuple):
    """What is static about the further passes: sizes, and how field, rays and edges are put together from leaves."""

    block: int
    slots: int
    structure: Any
    moves: tuple[bool, ...]  # which leaves have a gradient


class Fixed(NamedTuple):
    """What of the further passes has no gradient: other leaves, occupied samples, chosen blocks, number of passes."""

    leaves: list[Array]
    seen: Bool[Array, "r s"]
    chosen: Int[Array, "n"]
    turns: Int[Array, ""]


def _chosen(leaves: list[Array], moves: tuple[bool, ...], wanted: bool) -> list[Array]:
    return [leaf for leaf, moving in zip(leaves, moves, strict=True) if moving == wanted]


def _one_turn(form: Form, floats: list[Array], fixed: Fixed, turn: Int[Array, ""]) -> Blocks:
    """The blocks of one further pass."""
    sources = {True: iter(floats), False: iter(fixed.leaves)}
    values = jax.tree.unflatten(form.structure, [next(sources[moves]) for moves in form.moves])
    which = jax.lax.dynamic_slice_in_dim(fixed.chosen, turn * form.slots, form.slots)
    return _ask(form.block, values, fixed.seen, which)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ask_in_turns(form: Form, floats: list[Array], fixed: Fixed) -> Blocks:
    """The blocks of all further passes that are needed; zeros for the rest."""
    shapes = jax.eval_shape(partial(_one_turn, form), floats, fixed, fixed.turns)
    count = fixed.chosen.shape[0]
    empty = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape[1:]), leaf.dtype), shapes)

    def put(turn: Array, blocks: Blocks) -> Blocks:
        def write(all_: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(all_, new, turn * form.slots, 0)

        return jax.tree.map(write, blocks, _one_turn(form, floats, fixed, turn))

    return jax.lax.fori_loop(0, fixed.turns, put, empty)


def _forward(form: Form, floats: list[Array], fixed: Fixed) -> tuple[Blocks, Any]:
    return _ask_in_turns(form, floats, fixed), (floats, fixed)


def _backward(form: Form, saved: Any, cotangent: Blocks) -> tuple[list[Array], None]:
    floats, fixed = saved

    def add(turn: Array, total: list[Array]) -> list[Array]:
        part = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, turn * form.slots, form.slots),
            cotangent,
        )
        pull = jax.vjp(lambda floats: _one_turn(form, floats, fixed, turn), floats)[1]
        return jax.tree.map(jnp.add, total, pull(part)[0])

    return jax.lax.fori_loop(0, fixed.turns, add, jax.tree.map(jnp.zeros_like, floats)), None


_ask_in_turns.defvjp(_forward, _backward)


def ask_blocks(
    field: Field, rays: Rays, edges: Float[Array, "s e"], seen: Bool[Array, "s b"]
) -> Blocks:
    """Blocks of samples of one ray each; e = b + 1."""
    middle, length = 0.5 * (edges[:, 1:] + edges[:, :-1]), jnp.diff(edges, axis=-1)
    points = rays.at(middle)
    density, colour = field.query(points, rays.direction[:, None, :])
    thickness = thickness_of_lengths(jnp.where(seen, density, 0.0), length)
    weight = weights_of(thickness)
    # Distances from the block's middle: differences of far distances would cancel.
    offset = middle - jnp.mean(middle, axis=-1, keepdims=True)
    pairs = weight * (offset * sum_before(weight) - sum_before(weight * offset))
    return Blocks(
        thickness=jnp.sum(thickness, axis=-1),
        light=jnp.sum(weight[..., None] * colour, axis=-2),
        weight=jnp.sum(weight, axis=-1),
        moment=jnp.sum(weight * middle, axis=-1),
        spread=jnp.sum(2.0 * pairs + weight**2 * length / 3.0, axis=-1),
    )


def join_blocks(
    blocks: Blocks, background: Float[Array, "*#r 3"]
) -> tuple[Pixels, Float[Array, "r"]]:
    """Composites the blocks [r, n] of rays; returns pixels and distortion."""
    reaching = jnp.exp(-sum_before(blocks.thickness))
    weight, moment = reaching * blocks.weight, reaching * blocks.moment
    opacity = jnp.sum(weight, axis=-1)
    light = jnp.sum(reaching[..., None] * blocks.light, axis=-2)
    seen = opacity > 1e-6
    depth = jnp.where(seen, jnp.sum(moment, axis=-1) / jnp.where(seen, opacity, 1.0), 0.0)
    # All of a later block lies behind all of an earlier one. Around the ray's depth, as prefix sums would cancel.
    moment = moment - weight * jax.lax.stop_gradient(depth)[:, None]
    between = moment * sum_before(weight) - weight * sum_before(moment)
    distortion = jnp.sum(2.0 * between + reaching**2 * blocks.spread, axis=-1)
    colour = light + (1.0 - opacity)[..., None] * background
    return Pixels(colour=colour, opacity=opacity, depth=depth), distortion
