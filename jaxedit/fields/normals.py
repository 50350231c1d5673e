"""A field whose colour is its surface normal: whatever renders colours renders normals."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxedit.fields.field import Field


class NormalField(nnx.Module):
    """The density of `field`; as colour (n + 1) / 2 of the normal n = -grad density / |grad density|."""

    def __init__(self, field: Field):
        self.field, self.frame = field, field.frame

    def density(self, points: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        """Density at world points."""
        return self.field.density(points)

    def query(
        self, points: Float[Array, "*n 3"], directions: Float[Array, "*#n 3"]
    ) -> tuple[Float[Array, "*n"], Float[Array, "*n 3"]]:
        """Density and normal as a colour; grey where the density is flat."""
        density, pull = jax.vjp(self.field.density, points)
        (slope,) = pull(jnp.ones_like(density))
        length = jnp.sqrt(jnp.sum(slope * slope, axis=-1, keepdims=True))
        normal = jnp.where(length > 1e-6, -slope / jnp.maximum(length, 1e-6), 0.0)
        return density, 0.5 * (normal + 1.0)
