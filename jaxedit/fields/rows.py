"""Interpolation as sums of table rows: what voxel grids and hash grids are made of.

A table is `[rows, channels]`. A point looks up k rows with k weights; for trilinear interpolation k = 8.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The corners of a cell, the last axis fastest.
CORNERS = tuple((i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1))


@jax.custom_vjp
def weighted_rows(
    table: Float[Array, "rows c"], index: Int[Array, "m k"], weight: Float[Array, "m k"]
) -> Float[Array, "m c"]:
    """`sum_k weight[m, k] table[index[m, k]]`. Every index must lie inside the table.

    The sum is written term by term, for a compiler to read rows inside it: a gather of all terms at once would be
    written to memory first. Differentiated as it stands, each term would fill a gradient of the table's size with
    zeros and add into it, k times; the written-out gradient does that once.
    """
    return _sum(table, index, weight)


def _sum(table: Array, index: Array, weight: Array) -> Array:
    total = weight[:, :1] * _rows(table, index[:, 0])
    for k in range(1, index.shape[1]):
        total = total + weight[:, k : k + 1] * _rows(table, index[:, k])
    return total


def _rows(table: Array, index: Array) -> Array:
    return table.at[index].get(mode="promise_in_bounds")


def _forward(table: Array, index: Array, weight: Array) -> tuple[Array, tuple[Array, ...]]:
    return _sum(table, index, weight), (table, index, weight)


def _backward(saved: tuple[Array, ...], g: Array) -> tuple[Array, None, Array]:
    table, index, weight = saved
    updates = (weight[..., None] * g[:, None, :]).reshape(-1, g.shape[-1])
    to_table = jnp.zeros_like(table).at[index.reshape(-1)].add(updates, mode="promise_in_bounds")
    to_weight = [jnp.sum(g * _rows(table, index[:, k]), axis=-1) for k in range(index.shape[1])]
    return to_table, None, jnp.stack(to_weight, axis=-1)


weighted_rows.defvjp(_forward, _backward)


def cell_corners(
    position: Float[Array, "m 3"], resolution: tuple[int, int, int]
) -> tuple[Int[Array, "m 8 3"], Float[Array, "m 8"]]:
    """The eight grid points around a position in voxel units (grid point i stands at i), with trilinear weights.

    A weight is a product of hats max(0, 1 - |position - point|). The corners are moved inside the grid, which leaves
    hats as they are: so beyond the outermost points the values fade to zero within one voxel (zero padding).
    """
    last = jnp.array([n - 2 for n in resolution], jnp.int32)
    base = jnp.clip(jnp.floor(jax.lax.stop_gradient(position)).astype(jnp.int32), 0, last)
    fraction = position - base.astype(position.dtype)
    # From inside the cell these are fraction and 1 - fraction. Not by `maximum`, which halves a slope at a tie: on the
    # planes of grid points every weight has the slope of the cell above, so slopes of the weights sum to zero there too.
    beyond, before = 2.0 - fraction, 1.0 + fraction
    upper = jnp.where(fraction < 0.0, 0.0, jnp.where(fraction <= 1.0, fraction, beyond))
    lower = jnp.where(fraction < 0.0, before, jnp.where(fraction <= 1.0, 1.0 - fraction, 0.0))
    # More than a voxel outside the grid there is nothing.
    upper, lower = jnp.where(upper >= 0.0, upper, 0.0), jnp.where(lower >= 0.0, lower, 0.0)
    sides = jnp.stack([lower, upper])
    weights = [sides[i, :, 0] * sides[j, :, 1] * sides[k, :, 2] for i, j, k in CORNERS]
    return base[:, None, :] + jnp.array(CORNERS, jnp.int32), jnp.stack(weights, axis=-1)


def flat_index(corner: Int[Array, "*n 3"], resolution: tuple[int, int, int]) -> Int[Array, "*n"]:
    """The row of a grid point in a grid flattened with the last axis fastest."""
    _, y, z = resolution
    return (corner[..., 0] * y + corner[..., 1]) * z + corner[..., 2]
