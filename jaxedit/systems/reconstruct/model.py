"""The arrays that a reconstruction trains: a field and its proposals, made, grown and packed."""

from dataclasses import replace
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxedit.fields.blend import BlendField
from jaxedit.fields.field import Field, Frame
from jaxedit.fields.frequency_mlp import FrequencyMLP
from jaxedit.fields.hash_grid import HashDensity, HashGrid, HashGridConfig
from jaxedit.fields.packed_grid import EMPTY, PackedGrid, pack, unpack
from jaxedit.fields.rows import CORNERS
from jaxedit.fields.voxel_grid import VoxelGrid, VoxelGridConfig, activate, raw_of, upsampled
from jaxedit.render.occupancy import dilated
from jaxedit.systems.reconstruct.config import BlendedConfig, FitConfig
from jaxvid.core.rng import named


class Model(nnx.Module):
    """`field`, and `proposals` that say where to look."""

    def __init__(self, field: Field, proposals: list[HashDensity]):
        self.field = field
        self.proposals = nnx.List(proposals)


def make_model(config: FitConfig, frame: Frame, index: int, key: Key[Array, ""]) -> Model:
    """The model of fit `index`, with fresh values; of a packed grid the form only, without a voxel stored."""
    kind = config.field_of(index)
    if isinstance(config, BlendedConfig) and config.before is not None:
        before = make_model(config.before, frame, config.before_fit, key)
        after = make_model(replace(config, before=None), frame, index, key)
        field = BlendField(before.field, after.field, jnp.ones(()))
        return Model(cast(Field, field), list(after.proposals))
    if isinstance(kind, VoxelGridConfig):
        rows = config.rows_of(index)
        grid = VoxelGrid(kind, frame, named(key, "field"))
        field = grid if rows is None else _empty(grid, rows)
    elif isinstance(kind, HashGridConfig):
        field = HashGrid(kind, frame, named(key, "field"))
    else:
        field = FrequencyMLP(kind, frame, named(key, "field"))
    proposals = [
        HashDensity(proposal, frame, named(key, "proposals", number))
        for number, proposal in enumerate(config.proposals)
    ]
    return Model(cast(Field, field), proposals)


def grown(
    config: FitConfig, index: int, before: VoxelGrid | PackedGrid
) -> tuple[VoxelGrid | PackedGrid, Int[Array, ""]]:
    """The voxel grid of fit `index` from that of the fit before, and how many voxels did not fit into its rows."""
    kind, rows, fit = config.field_of(index), config.rows_of(index), config.fits[index]
    assert isinstance(kind, VoxelGridConfig)
    whole = before if isinstance(before, VoxelGrid) else unpack(before, _thin(before, fit.keep))
    if whole.config.resolution != kind.resolution:
        whole = upsampled(whole, kind.resolution)
    if rows is None:
        return whole, jnp.zeros((), jnp.int32)
    return pack(whole, matter(whole, fit.keep), rows)


def _thin(grid: PackedGrid, thickness: float) -> float:
    """The raw density of a tenth of that optical thickness over a cell's mean edge: little, but with a slope to grow on."""
    return raw_of(0.1 * thickness / mean_edge(grid), grid.config, grid.frame)


def mean_edge(grid: VoxelGrid | PackedGrid) -> float:
    """The mean edge of a grid's cells in world units."""
    edges = [s / n for s, n in zip(grid.frame.size, grid.config.resolution, strict=True)]
    return sum(edges) / 3


def matter(grid: VoxelGrid, thickness: float) -> Bool[Array, "i j k"]:
    """Cells that have, or have a neighbour that has, a corner of that optical thickness over a cell's mean edge."""
    density = activate(grid.density_values[...][..., 0], grid.config, grid.frame)
    x, y, z = (n - 1 for n in grid.config.resolution)
    corners = [density[i : i + x, j : j + y, k : k + z] for i, j, k in CORNERS]
    return dilated(jnp.max(jnp.stack(corners), axis=0) * mean_edge(grid) > thickness)


def stored_cells(field: PackedGrid) -> Bool[Array, "x y z"]:
    """Where a packed grid may hold matter, as a renderer's occupancy: the cube around every stored voxel."""
    return field.row[...] != EMPTY


def _empty(grid: VoxelGrid, rows: int) -> PackedGrid:
    return PackedGrid(
        grid.config,
        grid.frame,
        jnp.full(grid.config.resolution, EMPTY, jnp.int32),
        jnp.zeros((rows, 1)),
        jnp.zeros((rows, grid.config.coefficients)),
    )


def is_trained(path: str) -> bool:
    """Whether the optimizer moves the array of that path: all but a packed grid's table of rows."""
    return not path.endswith("/row")


def background_of(
    config: FitConfig, keys: Key[Array, "r"] | None, count: int
) -> Float[Array, "r 3"]:
    """The colours behind `count` rays; without keys "random" is white."""
    if config.background == "random" and keys is not None:
        return jax.vmap(lambda key: jax.random.uniform(named(key, "background"), (3,)))(keys)
    return jnp.full((count, 3), 0.0 if config.background == "black" else 1.0)
