"""The part of a ray that a renderer looks at."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxedit.scene.cameras import Rays


def box_bounds(
    rays: Rays,
    lowest: Float[Array, "3"],
    highest: Float[Array, "3"],
    near: float = 0.0,
    far: float = jnp.inf,
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Where rays enter and leave a box, within [near, far]; a ray that misses it gets an empty interval (t, t).

    The slab method. A ray parallel to a pair of sides is either between them for ever or never; in the plane of one
    it counts as between.
    """
    parallel = jnp.abs(rays.direction) < 1e-20
    direction = jnp.where(parallel, 1.0, rays.direction)
    first, second = (lowest - rays.origin) / direction, (highest - rays.origin) / direction
    between = (rays.origin >= lowest) & (rays.origin <= highest)
    for_ever = jnp.where(between, -jnp.inf, jnp.inf)
    enter = jnp.where(parallel, for_ever, jnp.minimum(first, second))
    leave = jnp.where(parallel, -for_ever, jnp.maximum(first, second))
    enter, leave = jnp.max(enter, axis=-1), jnp.min(leave, axis=-1)
    return _clipped(enter, leave, near, far)


def sphere_bounds(
    rays: Rays,
    centre: Float[Array, "3"],
    radius: float,
    near: float = 0.0,
    far: float = jnp.inf,
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Where rays enter and leave a sphere, within [near, far]; (t, t) where they miss it."""
    offset = rays.origin - centre
    middle = -jnp.sum(offset * rays.direction, axis=-1)
    # The distance of the ray's line from the centre, from the nearest point: |offset|^2 - middle^2 cancels far away.
    nearest = offset + middle[..., None] * rays.direction
    inside = radius**2 - jnp.sum(nearest * nearest, axis=-1)
    hit = inside > 0.0
    half = jnp.where(hit, jnp.sqrt(jnp.where(hit, inside, 1.0)), 0.0)  # a root at 0 has no slope
    return _clipped(middle - half, middle + half, near, far)


def _clipped(
    enter: Float[Array, "*n"], leave: Float[Array, "*n"], near: float, far: float
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    begin = jnp.clip(enter, near, far)
    begin = jnp.where(jnp.isfinite(begin), begin, near)  # a miss of a box at no finite distance
    return begin, jnp.maximum(jnp.clip(leave, near, far), begin)
