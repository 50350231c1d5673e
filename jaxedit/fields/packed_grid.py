"""A voxel grid that stores only the voxels around matter: as exact as the dense grid there, empty elsewhere.

Most of a captured box is empty. The optimizer would still read and write moments for every voxel, and a gradient of the
grid's size would be filled with zeros at every step; that, not interpolation, is what a dense grid costs on a CPU.
(Sparse voxels as in Plenoxels, Fridovich-Keil et al. 2022.)

A *cell* is the cube between eight neighbouring voxels. A cell is kept if it may hold matter; a voxel is stored if one of
its cells is kept. Density and colour are those of the dense grid in cells all of whose voxels are stored, and 0 elsewhere.
"""

from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxedit.fields.field import Frame
from jaxedit.fields.rows import CORNERS, flat_index
from jaxedit.fields.voxel_grid import VoxelField, VoxelGrid, VoxelGridConfig

EMPTY = -1


class PackedGrid(VoxelField):
    """Stored voxels as rows. Parameters: `density_values` [rows, 1], `colour_values` [rows, 3 k].

    `row` [x, y, z] int32, not trained, is the row of every voxel or -1.
    """

    def __init__(
        self,
        config: VoxelGridConfig,
        frame: Frame,
        row: Int[Array, "x y z"],
        density_values: Float[Array, "rows 1"],
        colour_values: Float[Array, "rows k"],
    ):
        self.config, self.frame = config, frame
        self.row = nnx.Variable(row)
        self.density_values = nnx.Param(density_values)
        self.colour_values = nnx.Param(colour_values)

    def tables(self) -> tuple[Float[Array, "rows 1"], Float[Array, "rows k"]]:
        """The stored voxels."""
        return self.density_values[...], self.colour_values[...]

    def rows_of(self, corner: Int[Array, "m 8 3"]) -> tuple[Int[Array, "m 8"], Bool[Array, "m"]]:
        """The rows of stored voxels, the first row for others; which points have all of theirs stored."""
        index = flat_index(corner, self.config.resolution)
        row = self.row[...].reshape(-1).at[index].get(mode="promise_in_bounds")
        return jnp.maximum(row, 0), jnp.all(row != EMPTY, axis=-1)


def pack(
    grid: VoxelGrid, keep: Bool[Array, "i j k"], rows: int
) -> tuple[PackedGrid, Int[Array, ""]]:
    """The grid's kept cells, one less than voxels along each axis, in at most `rows` voxels; how many did not fit (0: good).

    Static shapes: `rows` is the size of the tables whatever `keep` says. Voxels are stored in the grid's order, so rows
    of neighbours are near each other in memory.
    """
    resolution = grid.config.resolution
    needed = jnp.zeros(resolution, bool)
    for i, j, k in CORNERS:
        x, y, z = keep.shape
        needed = needed.at[i : i + x, j : j + y, k : k + z].max(keep)
    flat = needed.reshape(-1)
    place = jnp.cumsum(flat.astype(jnp.int32)) - 1
    row = jnp.where(flat & (place < rows), place, EMPTY).reshape(resolution)
    source = jnp.nonzero(flat, size=rows, fill_value=0)[0]
    density = grid.density_values[...].reshape(-1, 1)[source]
    colour = grid.colour_values[...].reshape(-1, grid.config.coefficients)[source]
    packed = PackedGrid(grid.config, grid.frame, row, density, colour)
    return packed, jnp.maximum(place[-1] + 1 - rows, 0)


def unpack(packed: PackedGrid, empty_density: float) -> VoxelGrid:
    """The dense grid, with `empty_density` as the raw value and grey as the colour of what was not stored."""
    grid = jax.eval_shape(lambda: VoxelGrid(packed.config, packed.frame, jax.random.key(0)))
    row = packed.row[...]
    stored = (row != EMPTY)[..., None]

    def spread_out(values: Array, empty: float) -> nnx.Param:
        return nnx.Param(jnp.where(stored, values[jnp.maximum(row, 0)], empty))

    dense = cast(VoxelGrid, grid)
    dense.density_values = spread_out(packed.density_values[...], empty_density)
    dense.colour_values = spread_out(packed.colour_values[...], 0.0)
    return dense
