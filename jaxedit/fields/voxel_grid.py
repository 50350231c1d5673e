"""Voxel grids: interpolated density and spherical-harmonic colour, free at every voxel.

The conventions are Vox-E's (Sella et al. 2023) and those of its base, ReLU fields (Karnewar et al. 2022):

    voxel i of n along an axis stands at unit coordinate (i + 1/2) / n; beyond the outermost the values fade to zero
    density = activation(gain * trilinear(d) + shift)         activated *after* interpolation
    colour  = sigmoid(sum_k trilinear(f)_k Y_k(direction))    one coefficient a harmonic and colour channel
    outside the box density is 0

Density is per world unit, or per diagonal of the box where the configuration says so, for settings that suit any box.
ReLU after interpolation lets a grid have edges sharper than its voxels. Vox-E's paper says ReLU, its shipped default is
softplus; its gain is 100 sqrt(27) / (3 |diagonal|), 33.3 for its 3 x 3 x 3 box (facts of its released code).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxedit.fields.field import Frame
from jaxedit.fields.rows import cell_corners, flat_index, weighted_rows
from jaxedit.fields.spherical_harmonics import basis
from jaxvid.core.errors import UserError
from jaxvid.core.rng import named

Activation: TypeAlias = Literal["softplus", "relu"]
Shape: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class VoxelGridConfig:
    """Shape and conventions of a voxel grid; the defaults are Vox-E's as shipped.

    resolution: voxels along each axis. degree: of the spherical harmonics, 0 to 2.
    gain: of the raw density; None takes Vox-E's for the box. shift: added to it before the activation.
    per: the length that the activation's value is an optical thickness of, one world unit or the box's diagonal.
    initial_density, initial_colour: ranges of the uniform raw values at the start.
    """

    resolution: Shape = (160, 160, 160)
    degree: int = 0
    activation: Activation = "softplus"
    gain: float | None = None
    shift: float = 0.0
    per: Literal["unit", "diagonal"] = "unit"
    initial_density: tuple[float, float] = (-1.0, 1.0)
    initial_colour: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 <= self.degree <= 2:
            raise UserError(f"degree is {self.degree}; a voxel grid takes 0, 1 or 2")
        if min(self.resolution) < 2:
            raise UserError(f"resolution is {self.resolution}; every axis needs 2 voxels or more")

    @property
    def coefficients(self) -> int:
        """Colour values a voxel."""
        return 3 * (self.degree + 1) ** 2


class VoxelField(nnx.Module, ABC):
    """What voxel grids share, however they are stored: interpolation of two tables, then activations.

    A subclass finds the rows of the eight voxels around a point.
    """

    config: VoxelGridConfig
    frame: Frame

    @abstractmethod
    def tables(self) -> tuple[Float[Array, "rows 1"], Float[Array, "rows k"]]:
        """Raw densities and colour coefficients, a row a voxel."""

    @abstractmethod
    def rows_of(
        self, corner: Int[Array, "m 8 3"]
    ) -> tuple[Int[Array, "m 8"], Bool[Array, "m"] | None]:
        """Rows of voxels in the tables, and which points have all of theirs (None: every one has)."""

    def density(self, points: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        """Density at world points."""
        index, weight, inside = self._around(points.reshape(-1, 3))
        return self._density(index, weight, inside).reshape(points.shape[:-1])

    def query(
        self, points: Float[Array, "*n 3"], directions: Float[Array, "*#n 3"]
    ) -> tuple[Float[Array, "*n"], Float[Array, "*n 3"]]:
        """Density and colour at world points, seen in directions of length 1."""
        index, weight, inside = self._around(points.reshape(-1, 3))
        density = self._density(index, weight, inside)
        directions = jnp.broadcast_to(directions, points.shape).reshape(-1, 3)
        colour = shade(weighted_rows(self.tables()[1], index, weight), directions, self.config)
        return density.reshape(points.shape[:-1]), colour.reshape(points.shape)

    def _density(self, index: Array, weight: Array, inside: Array) -> Float[Array, "m"]:
        raw = weighted_rows(self.tables()[0], index, weight)[:, 0]
        return jnp.where(inside, activate(raw, self.config, self.frame), 0.0)

    def _around(
        self, points: Float[Array, "m 3"]
    ) -> tuple[Int[Array, "m 8"], Float[Array, "m 8"], Bool[Array, "m"]]:
        unit, resolution = self.frame.to_unit(points), self.config.resolution
        position = unit * jnp.array(resolution, unit.dtype) - 0.5
        corners, weight = cell_corners(position, resolution)
        index, complete = self.rows_of(corners)
        inside = jnp.all((unit >= 0.0) & (unit <= 1.0), axis=-1)
        return index, weight, inside if complete is None else inside & complete


class VoxelGrid(VoxelField):
    """A dense grid. Parameters: `density_values` [x, y, z, 1] and `colour_values` [x, y, z, 3 k], raw."""

    def __init__(self, config: VoxelGridConfig, frame: Frame, key: Key[Array, ""]):
        self.config, self.frame = config, frame

        def uniform(name: str, channels: int, low: float, high: float) -> Array:
            shape = (*config.resolution, channels)
            if low == high:
                return jnp.full(shape, low, jnp.float32)
            return jax.random.uniform(named(key, name), shape, minval=low, maxval=high)

        self.density_values = nnx.Param(uniform("density", 1, *config.initial_density))
        colour = uniform("colour", config.coefficients, *config.initial_colour)
        self.colour_values = nnx.Param(colour)

    def tables(self) -> tuple[Float[Array, "rows 1"], Float[Array, "rows k"]]:
        """The grid, the last axis fastest."""
        colour = self.colour_values[...].reshape(-1, self.config.coefficients)
        return self.density_values[...].reshape(-1, 1), colour

    def rows_of(self, corner: Int[Array, "m 8 3"]) -> tuple[Int[Array, "m 8"], None]:
        """Every voxel has a row."""
        return flat_index(corner, self.config.resolution), None


def activate(raw: Float[Array, "*n"], config: VoxelGridConfig, frame: Frame) -> Float[Array, "*n"]:
    """Density, per world unit, of an interpolated raw value."""
    scaled = raw * gain(config, frame) + config.shift
    value = jax.nn.softplus(scaled) if config.activation == "softplus" else jax.nn.relu(scaled)
    return value / length(config, frame)


def raw_of(density: float, config: VoxelGridConfig, frame: Frame) -> float:
    """The raw value of a density above 0, per world unit: the inverse of `activate`."""
    value = density * length(config, frame)
    if config.activation == "softplus":
        value += math.log(-math.expm1(-value))
    return (value - config.shift) / gain(config, frame)


def gain(config: VoxelGridConfig, frame: Frame) -> float:
    """The factor on raw densities."""
    if config.gain is not None:
        return config.gain
    return 100.0 * math.sqrt(27.0) / 3.0 * length(config, frame) / math.hypot(*frame.size)


def length(config: VoxelGridConfig, frame: Frame) -> float:
    """The world length that the activation's value is an optical thickness of."""
    return math.hypot(*frame.size) if config.per == "diagonal" else 1.0


def shade(
    coefficients: Float[Array, "m k"], directions: Float[Array, "m 3"], config: VoxelGridConfig
) -> Float[Array, "m 3"]:
    """Colour in a direction; a voxel's values are harmonics of red, then of green, then of blue."""
    harmonics = basis(config.degree, directions)
    terms = coefficients.reshape(-1, 3, harmonics.shape[-1]) * harmonics[:, None, :]
    return jax.nn.sigmoid(jnp.sum(terms, axis=-1))


def upsampled(grid: VoxelGrid, resolution: Shape) -> VoxelGrid:
    """The same field at another resolution, by linear interpolation between voxel centres (constant at the borders)."""
    config = replace(grid.config, resolution=resolution)
    finer = jax.eval_shape(lambda: VoxelGrid(config, grid.frame, jax.random.key(0)))

    def resize(values: Array) -> nnx.Param:
        shape = (*resolution, values.shape[-1])
        return nnx.Param(jax.image.resize(values, shape, "linear", antialias=False))

    finer.density_values = resize(grid.density_values[...])
    finer.colour_values = resize(grid.colour_values[...])
    return finer
