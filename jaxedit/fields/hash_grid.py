"""Multi-resolution hash grid with small networks (instant-ngp, Mueller et al. 2022).

Level l of L (section 3; the exact constants are those of its public implementation, as facts):

    scale_l = base * growth^l - 1,  resolution_l = ceil(scale_l) + 1,  growth = (finest / base)^(1 / (L - 1))
    position = unit * scale_l + 1/2, trilinear between the grid points around it
    row of a grid point (x, y, z) of a level with T_l rows:
        x + y resolution + z resolution^2   (mod T_l)               where the whole level fits into the table
        x  xor  y * 2654435761  xor  z * 805459861   (mod T_l)      else, in unsigned 32-bit arithmetic

Density = exp(first output of the density network + bias); colour = sigmoid(colour network(harmonics of the direction,
all outputs of the density network)). All levels stand in one table, so that all are looked up in one pass.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxedit.fields.field import Frame, truncated_exp
from jaxedit.fields.rows import CORNERS, weighted_rows
from jaxedit.fields.spherical_harmonics import basis
from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.nn.linear import Initializer, Linear

PRIMES = (1, 2654435761, 805459861)
# Hidden layers feed ReLUs; the published networks use the same (Xavier) range for all layers.
XAVIER: Initializer = jax.nn.initializers.glorot_uniform()


@dataclass(frozen=True)
class HashGridConfig:
    """The defaults are the paper's table 1 with 2^19 rows a level and its networks (section 4, "NeRF").

    table: log2 of the rows a level may have. base, finest: resolutions of the first and the last level.
    density_bias: added before the exponential; -1 begins with a thin fog.
    """

    levels: int = 16
    features: int = 2
    table: int = 19
    base: int = 16
    finest: int = 2048
    width: int = 64
    density_layers: int = 1
    colour_layers: int = 2
    geometry: int = 16
    degree: int = 3
    density_bias: float = -1.0

    def __post_init__(self) -> None:
        if self.levels < 2 or self.finest < self.base:
            raise UserError(
                f"levels {self.levels} from {self.base} to {self.finest}; there must be 2 or more, from coarse to fine"
            )


class Level(NamedTuple):
    """One level: its scale, points along an axis, first row and number of rows in the common table."""

    scale: float
    resolution: int
    first: int
    rows: int

    @property
    def dense(self) -> bool:
        """Whether every grid point has a row of its own."""
        return self.resolution**3 <= self.rows


def levels_of(config: HashGridConfig) -> tuple[Level, ...]:
    """The levels, coarse to fine; dense levels are rounded up to a multiple of 8 rows."""
    growth = (config.finest / config.base) ** (1.0 / (config.levels - 1))
    found, first = [], 0
    for index in range(config.levels):
        # float32, as published: the last level's scale would round differently.
        scale = float(np.float32(config.base) * np.float32(growth) ** np.float32(index) - 1)
        resolution = math.ceil(scale) + 1
        rows = min(-(-(resolution**3) // 8) * 8, 2**config.table)
        found.append(Level(scale, resolution, first, rows))
        first += rows
    return tuple(found)


def level_rows(level: Level, corner: Int[Array, "*n 3"]) -> Int[Array, "*n"]:
    """The rows, in the common table, of grid points of a level."""
    x, y, z = jnp.moveaxis(corner.astype(jnp.uint32), -1, 0)
    if level.dense:
        row = x + y * np.uint32(level.resolution) + z * np.uint32(level.resolution**2)
    else:
        row = x ^ (y * np.uint32(PRIMES[1])) ^ (z * np.uint32(PRIMES[2]))
    return (row % np.uint32(level.rows)).astype(jnp.int32) + level.first


class HashDensity(nnx.Module):
    """The part without colour: `table` [rows of all levels, features] and the density network. Also a proposal."""

    def __init__(self, config: HashGridConfig, frame: Frame, key: Key[Array, ""]):
        self.config, self.frame = config, frame
        last = levels_of(config)[-1]
        shape = (last.first + last.rows, config.features)
        uniform = jax.random.uniform(named(key, "table"), shape, minval=-1e-4, maxval=1e-4)
        self.table = nnx.Param(uniform)
        hidden = [config.width] * config.density_layers
        encoded = config.levels * config.features
        self.network = ReluNetwork([encoded, *hidden, config.geometry], named(key, "network"))

    def density(self, points: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        """Density at world points."""
        return self.geometry(points.reshape(-1, 3))[0].reshape(points.shape[:-1])

    def geometry(
        self, points: Float[Array, "m 3"]
    ) -> tuple[Float[Array, "m"], Float[Array, "m g"]]:
        """Density at world points, and all outputs of the network for colour to build on."""
        unit = self.frame.to_unit(points)
        inside = jnp.all((unit >= 0.0) & (unit <= 1.0), axis=-1)
        geometry = self.network(self.encode(jnp.clip(unit, 0.0, 1.0)))
        density = truncated_exp(geometry[:, 0] + self.config.density_bias)
        return jnp.where(inside, density, 0.0), geometry

    def encode(self, unit: Float[Array, "m 3"]) -> Float[Array, "m c"]:
        """The interpolated features of all levels at unit coordinates, coarse levels first."""
        found = [_look_up(level, unit) for level in levels_of(self.config)]
        # [m, levels, 8]: a point's levels side by side, as its features are to stand.
        row = jnp.stack([rows for rows, _ in found], axis=1).reshape(-1, 8)
        weight = jnp.stack([weights for _, weights in found], axis=1).reshape(-1, 8)
        return weighted_rows(self.table[...], row, weight).reshape(unit.shape[0], -1)


class HashGrid(nnx.Module):
    """Parameters: those of `body`, a HashDensity, and a colour network."""

    def __init__(self, config: HashGridConfig, frame: Frame, key: Key[Array, ""]):
        self.config, self.frame = config, frame
        self.body = HashDensity(config, frame, named(key, "body"))
        hidden = [config.width] * config.colour_layers
        seen = (config.degree + 1) ** 2 + config.geometry
        self.colour = ReluNetwork([seen, *hidden, 3], named(key, "colour"))

    def density(self, points: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        """Density at world points."""
        return self.body.density(points)

    def query(
        self, points: Float[Array, "*n 3"], directions: Float[Array, "*#n 3"]
    ) -> tuple[Float[Array, "*n"], Float[Array, "*n 3"]]:
        """Density and colour at world points, seen in directions of length 1."""
        density, geometry = self.body.geometry(points.reshape(-1, 3))
        directions = jnp.broadcast_to(directions, points.shape).reshape(-1, 3)
        seen = jnp.concatenate([basis(self.config.degree, directions), geometry], axis=-1)
        colour = jax.nn.sigmoid(self.colour(seen))
        return density.reshape(points.shape[:-1]), colour.reshape(points.shape)


def _look_up(
    level: Level, unit: Float[Array, "m 3"]
) -> tuple[Int[Array, "m 8"], Float[Array, "m 8"]]:
    position = unit * level.scale + 0.5
    base = jnp.floor(jax.lax.stop_gradient(position))
    upper = position - base
    sides = jnp.stack([1.0 - upper, upper])
    weight = [sides[i, :, 0] * sides[j, :, 1] * sides[k, :, 2] for i, j, k in CORNERS]
    corner = base.astype(jnp.int32)[:, None, :] + jnp.array(CORNERS, jnp.int32)
    return level_rows(level, corner), jnp.stack(weight, axis=-1)


class ReluNetwork(nnx.Module):
    """Dense layers without biases, a ReLU between each two (the published "fully fused" networks)."""

    def __init__(self, sizes: list[int], key: Key[Array, ""]):
        self.layers = nnx.List(
            [
                Linear(inputs, outputs, named(key, index), bias=False, init=XAVIER)
                for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes))
            ]
        )

    def __call__(self, x: Float[Array, "m c"]) -> Float[Array, "m d"]:
        for index, layer in enumerate(self.layers):
            x = layer(jax.nn.relu(x) if index else x)
        return x
