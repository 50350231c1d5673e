"""What a renderer asks of a field, and how the world fits into one.

    density   1 / world unit, >= 0: the optical thickness of a short way dt is density * dt
    colour    RGB in [0, 1], emitted towards where one looks from
    unit      a field's own coordinates, [0, 1]^3

Contraction (mip-NeRF 360, Barron et al. 2022, eq. 10) of x in units of the box (the box is [-1, 1]^3):

    contract(x) = x where |x| <= 1, else (2 - 1/|x|) x/|x|        all space into |x| < 2

with the Euclidean norm ("l2"), or the largest coordinate as norm ("linf", nerfacto's), whose image fills the cube.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Contraction: TypeAlias = Literal["none", "l2", "linf"]
Corner: TypeAlias = tuple[float, float, float]


@runtime_checkable
class DensityField(Protocol):
    """A module of parameters that knows densities: enough to be a proposal or to keep an occupancy grid.

    Every method is pure; outside what the field covers density is 0.
    """

    frame: "Frame"

    def density(self, points: Float[Array, "*n 3"]) -> Float[Array, "*n"]: ...


@runtime_checkable
class Field(DensityField, Protocol):
    """A field that can be rendered. `density` is `query(...)[0]` at less cost."""

    def query(
        self, points: Float[Array, "*n 3"], directions: Float[Array, "*#n 3"]
    ) -> tuple[Float[Array, "*n"], Float[Array, "*n 3"]]: ...


@dataclass(frozen=True)
class Frame:
    """The part of the world that a field covers: a box, or all space with the box at full resolution.

    lowest, highest: corners in world units. Hashable, as a field's static setting must be.
    """

    lowest: Corner = (-1.0, -1.0, -1.0)
    highest: Corner = (1.0, 1.0, 1.0)
    contraction: Contraction = "none"

    @classmethod
    def of(cls, box: Float[np.ndarray, "2 3"], contraction: Contraction = "none") -> "Frame":
        """The frame of a box [2, 3] (lowest, highest)."""
        (a, b, c), (d, e, f) = box.tolist()
        return cls((a, b, c), (d, e, f), contraction)

    @property
    def size(self) -> Corner:
        """The edges of the box in world units."""
        a, b, c = (high - low for low, high in zip(self.lowest, self.highest, strict=True))
        return a, b, c

    def to_unit(self, points: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
        """World to unit coordinates; without contraction, points outside the box land outside [0, 1]^3."""
        low, size = jnp.array(self.lowest, points.dtype), jnp.array(self.size, points.dtype)
        unit = (points - low) / size
        if self.contraction == "none":
            return unit
        return (contract(2.0 * unit - 1.0, self.contraction) + 2.0) / 4.0

    def to_world(self, unit: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
        """Unit to world coordinates, the inverse of `to_unit` inside (0, 1)^3."""
        low, size = jnp.array(self.lowest, unit.dtype), jnp.array(self.size, unit.dtype)
        if self.contraction != "none":
            unit = (uncontract(4.0 * unit - 2.0, self.contraction) + 1.0) / 2.0
        return low + unit * size


def contract(x: Float[Array, "*n 3"], norm: Contraction) -> Float[Array, "*n 3"]:
    """All space into |x| < 2, unchanged where |x| <= 1."""
    x = jnp.clip(x, -1e18, 1e18)  # squares beyond overflow float32
    length = _norm(x, norm)
    return jnp.where(length <= 1.0, x, (2.0 - 1.0 / length) * x / length)


def uncontract(y: Float[Array, "*n 3"], norm: Contraction) -> Float[Array, "*n 3"]:
    """The inverse of `contract` for |y| < 2; nearer to 2 than 1e-6 it stays at a distance of 1e6."""
    length = _norm(y, norm)
    return jnp.where(length <= 1.0, y, y / length / jnp.maximum(2.0 - length, 1e-6))


def _norm(x: Float[Array, "*n 3"], norm: Contraction) -> Float[Array, "*n 1"]:
    """The norm where it counts, 1 inside: both branches of a `where` must have finite gradients."""
    if norm == "linf":
        return jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1.0)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return jnp.sqrt(jnp.maximum(square, 1.0))


@jax.custom_jvp
def truncated_exp(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """exp(x), whose derivative stops growing at x = 15 (instant-ngp's activation of density)."""
    return jnp.exp(x)


@truncated_exp.defjvp
def _truncated_exp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return truncated_exp(x), dx * jnp.exp(jnp.clip(x, -15.0, 15.0))
