"""Lens models: ideal image-plane coordinates to distorted ones and back.

Symbols: `p = (x, y)` on the image plane at distance 1 in front of the camera, +x right, +y *down* (OpenCV's axes, in which
all these coefficients are published); `r2 = x^2 + y^2`. A lens maps p to the distorted p_d; pixels are then
`focal * p_d + centre`.

    pinhole   p_d = p; no coefficients
    opencv    radial and tangential, coefficients (k1, k2, k3, k4, p1, p2), nerfstudio's order:
              radial = 1 + k1 r2 + k2 r2^2 + k3 r2^3 + k4 r2^4
              x_d = x radial + 2 p1 x y + p2 (r2 + 2 x^2)
              y_d = y radial + 2 p2 x y + p1 (r2 + 2 y^2)
    fisheye   equidistant with a polynomial, coefficients (k1, k2, k3, k4): theta = atan r,
              theta_d = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8), p_d = p theta_d / r

`undistort` inverts by Newton's method with a fixed number of steps, so it can be differentiated and compiled once.
A fisheye sees more than a plane can hold, hence it undistorts to a *direction*, and so do the others.
"""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Lens: TypeAlias = Literal["pinhole", "opencv", "fisheye"]

COEFFICIENTS: dict[Lens, int] = {"pinhole": 0, "opencv": 6, "fisheye": 4}
NEWTON_STEPS = 10


def project(
    lens: Lens, coefficients: Float[Array, "*#n k"], points: Float[Array, "*n 3"]
) -> Float[Array, "*n 2"]:
    """The distorted coordinates of points given in the camera's OpenCV axes (+z in front).

    Perspective lenses are defined for z > 0 only; the caller masks what is behind.
    """
    if lens == "fisheye":
        return _fisheye(coefficients, points)
    p = points[..., :2] / points[..., 2:]
    return p if lens == "pinhole" else _radial_tangential(coefficients, p)


def undistort(
    lens: Lens, coefficients: Float[Array, "*#n k"], p_d: Float[Array, "*n 2"]
) -> Float[Array, "*n 3"]:
    """The direction, in OpenCV axes, that the lens images at `p_d`: z = 1, but of length 1 for a fisheye."""
    if lens == "fisheye":
        return _fisheye_direction(coefficients, p_d)
    p = p_d
    if lens == "opencv":
        for _ in range(NEWTON_STEPS):
            p = p - _newton_step(coefficients, p, p_d)
    return jnp.concatenate([p, jnp.ones_like(p[..., :1])], axis=-1)


def _radial_tangential(k: Float[Array, "*#n 6"], p: Float[Array, "*n 2"]) -> Float[Array, "*n 2"]:
    k1, k2, k3, k4, p1, p2 = jnp.moveaxis(k, -1, 0)
    x, y = p[..., 0], p[..., 1]
    r2 = x * x + y * y
    radial = 1.0 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    return jnp.stack(
        [
            x * radial + 2.0 * p1 * x * y + p2 * (r2 + 2.0 * x * x),
            y * radial + 2.0 * p2 * x * y + p1 * (r2 + 2.0 * y * y),
        ],
        axis=-1,
    )


def _newton_step(
    k: Float[Array, "*#n 6"], p: Float[Array, "*n 2"], p_d: Float[Array, "*n 2"]
) -> Float[Array, "*n 2"]:
    """J^-1 (distort(p) - p_d), with the 2x2 Jacobian from two directional derivatives."""

    def distort(q: Array) -> Array:
        return _radial_tangential(k, q)

    unit_x = jnp.broadcast_to(jnp.array([1.0, 0.0], p.dtype), p.shape)
    value, along_x = jax.jvp(distort, (p,), (unit_x,))
    _, along_y = jax.jvp(distort, (p,), (unit_x[..., ::-1],))
    error = value - p_d
    a, c = along_x[..., 0], along_x[..., 1]
    b, d = along_y[..., 0], along_y[..., 1]
    determinant = a * d - b * c
    # Where the lens folds over, no step is right; standing still leaves a finite answer.
    safe = jnp.where(jnp.abs(determinant) < 1e-6, 1.0, determinant)
    step = jnp.stack(
        [d * error[..., 0] - b * error[..., 1], a * error[..., 1] - c * error[..., 0]], axis=-1
    )
    return jnp.where(jnp.abs(determinant[..., None]) < 1e-6, 0.0, step / safe[..., None])


def _theta_d(k: Float[Array, "*#n 4"], theta: Float[Array, "*n"]) -> Float[Array, "*n"]:
    k1, k2, k3, k4 = jnp.moveaxis(k, -1, 0)
    t2 = theta * theta
    return theta * (1.0 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))


def _fisheye(k: Float[Array, "*#n 4"], points: Float[Array, "*n 3"]) -> Float[Array, "*n 2"]:
    xy, z = points[..., :2], points[..., 2]
    r = _safe_norm(xy)
    return xy * (_theta_d(k, jnp.arctan2(r, z)) / r)[..., None]


def _fisheye_direction(k: Float[Array, "*#n 4"], p_d: Float[Array, "*n 2"]) -> Float[Array, "*n 3"]:
    r_d = _safe_norm(p_d)
    theta = r_d
    for _ in range(NEWTON_STEPS):
        value, slope = jax.jvp(lambda t: _theta_d(k, t), (theta,), (jnp.ones_like(theta),))
        theta = theta - (value - r_d) / jnp.where(jnp.abs(slope) < 1e-6, 1.0, slope)
    xy = p_d * (jnp.sin(theta) / r_d)[..., None]
    return jnp.concatenate([xy, jnp.cos(theta)[..., None]], axis=-1)


def _safe_norm(xy: Float[Array, "*n 2"]) -> Float[Array, "*n"]:
    """The length, but never below 1e-12, so that ratios to it have a value and a gradient at the axis."""
    return jnp.sqrt(jnp.maximum(jnp.sum(xy * xy, axis=-1), 1e-24))
