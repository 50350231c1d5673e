"""Real spherical harmonics up to degree 3, in the order and with the signs of PlenOctrees (Yu et al. 2021).

The basis is orthonormal over the sphere. Order: degree by degree, from order -l to l; odd orders carry the
Condon-Shortley sign, hence -y, z, -x at degree 1.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvid.core.errors import UserError

C0 = 0.28209479177387814  # 1 / (2 sqrt pi): the constant harmonic


def basis(degree: int, direction: Float[Array, "*n 3"]) -> Float[Array, "*n k"]:
    """The (degree + 1)^2 harmonics in directions of length 1. Raises UserError for a degree outside 0 to 3."""
    if not 0 <= degree <= 3:
        raise UserError(f"spherical harmonics of degree {degree} are not offered; choose 0 to 3")
    x, y, z = jnp.moveaxis(direction, -1, 0)
    terms = [jnp.full_like(x, C0)]
    if degree > 0:
        c = 0.4886025119029199
        terms += [-c * y, c * z, -c * x]
    xx, yy, zz = x * x, y * y, z * z
    if degree > 1:
        a, b, c = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
        terms += [a * x * y, -a * y * z, b * (2.0 * zz - xx - yy), -a * x * z, c * (xx - yy)]
    if degree > 2:
        terms += [
            -0.5900435899266435 * y * (3.0 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4.0 * zz - xx - yy),
            0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy),
            -0.4570457994644658 * x * (4.0 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3.0 * yy),
        ]
    return jnp.stack(terms, axis=-1)
