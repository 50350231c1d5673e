"""Two fields as one, between them: an edit taken back in part.

With densities d_0, d_1, colours c_0, c_1 and a strength s:  d = (1 - s) d_0 + s d_1,  c = ((1 - s) d_0 c_0 + s d_1 c_1) / d.
It asks both wherever it is asked, so the two may be of any kinds.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxedit.fields.field import Field


class BlendField(nnx.Module):
    """See the module. strength: 0 is `before`, 1 is `after`."""

    def __init__(self, before: Field, after: Field, strength: Float[Array, ""]):
        self.before, self.after = before, after
        self.strength = nnx.Param(strength)
        self.frame = after.frame

    def density(self, points: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
        """The density alone."""
        s = self.strength[...]
        return (1.0 - s) * self.before.density(points) + s * self.after.density(points)

    def query(
        self, points: Float[Array, "*n 3"], directions: Float[Array, "*#n 3"]
    ) -> tuple[Float[Array, "*n"], Float[Array, "*n 3"]]:
        """Density and colour; where there is no matter the colour is that of `after`."""
        s = self.strength[...]
        d0, c0 = self.before.query(points, directions)
        d1, c1 = self.after.query(points, directions)
        d0, d1 = (1.0 - s) * d0, s * d1
        total = d0 + d1
        share = jnp.where(total > 0, d1 / jnp.where(total > 0, total, 1.0), 1.0)[..., None]
        return total, (1.0 - share) * c0 + share * c1
