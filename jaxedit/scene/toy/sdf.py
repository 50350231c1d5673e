"""Solids by their signed distances.

A solid has its own axes, with the origin in the middle of its bounding box, and `size` = (a, b, c), the half edges of
that box:

    sphere     a = b = c is the radius                 torus      a = b outer radius, c radius of the tube, axis z
    box        half edges                              capsule    a = b radius, c half length with its caps
    cylinder   a = b radius, axis z                    dome       a = b = 2 c radius: half a ball, flat side down
    cone       a = b radius of its base, tip at +z     prism      a wedge: triangle in x and z, tip at +z, ridge along y

Distances are the exact Euclidean ones, negative inside; where they have a gradient its length is 1. All solids but the
torus are convex, so along a line their distance is a convex function, which `trace` relies on.

A mirrored solid stands for itself and its images under x -> -x, y -> -y, or both, in the object's axes. The distance
is exact as long as each image stays on its own side of the mirrors.

The object's axes are the world's, turned about z by its heading. World: [-1, 1]^3, z up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

KINDS = ("sphere", "box", "cylinder", "cone", "torus", "capsule", "dome", "prism")
TORUS = KINDS.index("torus")

Distance: TypeAlias = Callable[[Float[Array, "*n 3"], Float[Array, "3"]], Float[Array, "*n"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Solids:
    """P solids of one object in its axes (absent ones included, so that all objects have the same shapes), or one.

    kind: index in KINDS. rotation: own axes to the object's, one axis a column. mirror: in x, in y.
    colour, second: RGB in [0, 1]. texture: index in TEXTURES of `trace`.
    """

    kind: Int32[Array | np.ndarray, "*p"]
    centre: Float[Array | np.ndarray, "*p 3"]
    rotation: Float[Array | np.ndarray, "*p 3 3"]
    size: Float[Array | np.ndarray, "*p 3"]
    mirror: Bool[Array | np.ndarray, "*p 2"]
    colour: Float[Array | np.ndarray, "*p 3"]
    second: Float[Array | np.ndarray, "*p 3"]
    texture: Int32[Array | np.ndarray, "*p"]
    present: Bool[Array | np.ndarray, "*p"]


def solid_distance(solid: Solids, points: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
    """Signed distance from points in the object's axes to one solid and its mirror images."""
    local, _ = to_local(solid, points)
    branches = [lambda local, size, f=f: f(local, size) for f in DISTANCES]
    return jax.lax.switch(solid.kind, branches, local, jnp.asarray(solid.size))


def to_local(
    solid: Solids, points: Float[Array, "*n 3"]
) -> tuple[Float[Array, "*n 3"], Float[Array, "*n 3"]]:
    """Points of the object in the solid's own axes, and the signs (+-1) by which its mirrors folded them."""
    mirror = jnp.append(jnp.asarray(solid.mirror), False)
    signs = jnp.where(mirror & (points < 0.0), -1.0, 1.0)
    return own_axes(solid, signs * points - solid.centre), signs


def own_axes(solid: Solids, vectors: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """Vectors of the object's axes in the solid's."""
    return jnp.sum(vectors[..., :, None] * solid.rotation, axis=-2)


def object_axes(solid: Solids, vectors: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """Vectors of the solid's axes in the object's."""
    return jnp.sum(vectors[..., None, :] * solid.rotation, axis=-1)


def safe_norm(vectors: Float[Array, "*n k"]) -> Float[Array, "*n"]:
    """The length, whose derivative at 0 is 0 instead of undefined."""
    square = jnp.sum(vectors * vectors, axis=-1)
    positive = square > 1e-30
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _pair(u: Array, v: Array) -> Array:
    return jnp.stack([u, v], axis=-1)


def _corner(q: Float[Array, "*n k"]) -> Float[Array, "*n"]:
    """Distance to the region where all of q, distances to perpendicular faces, are negative.

    Two cases, not a sum of clipped terms: that would have half a gradient where q is 0, where rays end.
    """
    deepest = jnp.max(q, axis=-1)
    return jnp.where(deepest > 0.0, safe_norm(jnp.maximum(q, 0.0)), deepest)


def _sphere(p: Array, size: Array) -> Array:
    return safe_norm(p) - size[0]


def _box(p: Array, size: Array) -> Array:
    return _corner(jnp.abs(p) - size)


def _cylinder(p: Array, size: Array) -> Array:
    return _corner(_pair(safe_norm(p[..., :2]) - size[0], jnp.abs(p[..., 2]) - size[2]))


def _cone(p: Array, size: Array) -> Array:
    return _triangle(safe_norm(p[..., :2]), p[..., 2], size[0], size[2])


def _prism(p: Array, size: Array) -> Array:
    profile = _triangle(jnp.abs(p[..., 0]), p[..., 2], size[0], size[2])
    return _corner(_pair(profile, jnp.abs(p[..., 1]) - size[1]))


def _torus(p: Array, size: Array) -> Array:
    ring = safe_norm(p[..., :2]) - (size[0] - size[2])
    return safe_norm(_pair(ring, p[..., 2])) - size[2]


def _capsule(p: Array, size: Array) -> Array:
    core = size[2] - size[0]
    z = p[..., 2] - jnp.clip(p[..., 2], -core, core)
    return safe_norm(jnp.stack([p[..., 0], p[..., 1], z], axis=-1)) - size[0]


def _dome(p: Array, size: Array) -> Array:
    rho, z, radius = safe_norm(p[..., :2]), p[..., 2] + size[2], size[0]
    below = jnp.where(rho <= radius, -z, safe_norm(_pair(rho - radius, z)))
    return jnp.where(z >= 0.0, jnp.maximum(safe_norm(_pair(rho, z)) - radius, -z), below)


def _triangle(
    u: Float[Array, "*n"], z: Float[Array, "*n"], half: Float[Array, ""], tall: Float[Array, ""]
) -> Float[Array, "*n"]:
    """Distance in the plane to the triangle (-half, -tall), (half, -tall), (0, tall), for u >= 0.

    By which feature is nearest: near a side the distance to its line is used itself, because the root of a squared
    distance of nearly 0 would have a gradient of rounding errors.
    """
    length = jnp.sqrt(half * half + 4.0 * tall * tall)
    du, dz = u - half, z + tall
    along = (2.0 * tall * dz - half * du) / length  # from the corner up the slanted side
    slanted, base = (2.0 * tall * du + half * dz) / length, -dz  # from its line, outwards
    tip, corner = safe_norm(_pair(u, z - tall)), safe_norm(_pair(du, dz))
    outside = jnp.where(along > length, tip, corner)
    outside = jnp.where((slanted > 0.0) & (along >= 0.0) & (along <= length), slanted, outside)
    outside = jnp.where((base > 0.0) & (u <= half), base, outside)
    return jnp.where((slanted <= 0.0) & (base <= 0.0), jnp.maximum(slanted, base), outside)


# In the order of KINDS.
DISTANCES: tuple[Distance, ...] = (
    _sphere,
    _box,
    _cylinder,
    _cone,
    _torus,
    _capsule,
    _dome,
    _prism,
)
