"""Where a field may hold matter: a coarse grid, kept up to date while the field trains (instant-ngp, appendix C).

    level      [g, g, g] float32: a decaying maximum of the densities seen in each cell of the field's unit cube
    occupied   [g, g, g] bool: what a renderer needs to look at

Everything has static shapes, and an update is a pure function, so a grid lives in `state["extra"]`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxedit.fields.field import DensityField, Frame
from jaxvid.core.errors import UserError


@dataclass(frozen=True)
class OccupancyConfig:
    """How an occupancy grid is kept; the defaults are nerfacc's where it has the same ones.

    resolution: cells along an axis. decay: of a cell's level at each of its updates.
    thickness: a cell counts once a ray's step through it would have this optical thickness, or the mean over cells of
        it, whichever is less (0.01). every: steps between updates. parts: an update looks at one cell in `parts`.
    """

    resolution: int = 64
    decay: float = 0.95
    thickness: float = 0.01
    every: int = 16
    parts: int = 4

    def __post_init__(self) -> None:
        if min(self.resolution, self.parts, self.every) < 1 or self.resolution**3 % self.parts:
            raise UserError(
                f"occupancy parts is {self.parts} and every {self.every}; both must be 1 or more, and parts divide "
                f"the {self.resolution}^3 cells"
            )


UNKNOWN = -1.0  # the level of a cell that has not been looked at; it counts as occupied


def full_level(config: OccupancyConfig) -> Float[Array, "g g g"]:
    """The level before anything is known: every cell counts as occupied until it has been looked at."""
    return jnp.full((config.resolution,) * 3, UNKNOWN)


def updated_level(
    level: Float[Array, "g g g"],
    field: DensityField,
    config: OccupancyConfig,
    key: Key[Array, ""],
    turn: Int[Array, ""] | int,
) -> Float[Array, "g g g"]:
    """The level after looking at one point, drawn evenly, in every `parts`-th cell; `turn` counts the updates."""
    count, size = config.resolution**3 // config.parts, config.resolution
    # A cell's turn comes in an order that mixes space: neighbours are not all looked at in one update.
    cells = jnp.arange(count) * config.parts + jnp.asarray(turn) % config.parts
    corner = jnp.stack(jnp.unravel_index(cells, (size, size, size)), axis=-1)
    unit = (corner.astype(jnp.float32) + jax.random.uniform(key, (count, 3))) / size
    density = jax.lax.stop_gradient(field.density(field.frame.to_world(unit)))
    flat = level.reshape(-1)
    return flat.at[cells].set(jnp.maximum(flat[cells] * config.decay, density)).reshape(level.shape)


def occupied_cells(
    level: Float[Array, "g g g"], config: OccupancyConfig, step: float
) -> Bool[Array, "g g g"]:
    """Cells through which a ray's step of world length `step` may have an optical thickness that counts."""
    known = level != UNKNOWN
    mean = jnp.sum(jnp.where(known, level, 0.0)) / jnp.maximum(
        jnp.sum(known.astype(level.dtype)), 1.0
    )
    # A little less than the mean, or cells of one density would all count as below it by rounding.
    return ~known | (level > jnp.minimum(config.thickness / step, 0.999 * mean))


def is_occupied(
    occupied: Bool[Array, "x y z"], frame: Frame, points: Float[Array, "*n 3"]
) -> Bool[Array, "*n"]:
    """Whether world points lie in occupied cells; never outside the frame."""
    unit = frame.to_unit(points)
    size = jnp.array(occupied.shape, unit.dtype)
    cell = jnp.clip(jnp.floor(unit * size), 0.0, size - 1.0).astype(jnp.int32)
    inside = jnp.all((unit >= 0.0) & (unit <= 1.0), axis=-1)
    _, y, z = occupied.shape
    flat = (cell[..., 0] * y + cell[..., 1]) * z + cell[..., 2]
    return inside & occupied.reshape(-1).at[flat].get(mode="promise_in_bounds")


def dilated(occupied: Bool[Array, "x y z"]) -> Bool[Array, "x y z"]:
    """Occupied cells and their 26 neighbours."""
    window = (3, 3, 3)
    return jax.lax.reduce_window(occupied, False, jax.lax.bitwise_or, window, (1, 1, 1), "SAME")
