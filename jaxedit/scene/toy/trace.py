"""Toy scenes to pictures: rays against signed distances, all shapes static.

Every part is traced alone and the nearest hit wins. So what a ray sees of a part has the same bits whatever the other
parts are: two scenes that differ in one part have equal pixels wherever that part is not involved.

Along a ray the distance f(t) to a convex solid is convex, so Newton's step -f/f' never passes the first hit, and where
f' >= 0 there is none: a handful of steps instead of the dozens of sphere tracing (Hart 1996), whose step f is taken
only for the torus. At a mirror plane the nearest image changes, so steps stop there.

    colour = albedo * (ambient * (0.85 + 0.15 n_z) + sun * max(0, n . l) * lit)

n the unit normal, l the unit direction to the sun, lit = 0 in a cast shadow. It does not depend on where one looks
from. Colours are display values in [0, 1], depths distances along unit rays.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int32

from jaxedit.scene.cameras import Cameras, Rays, pixel_rays
from jaxedit.scene.toy.sdf import (
    DISTANCES,
    TORUS,
    Distance,
    Solids,
    object_axes,
    own_axes,
    safe_norm,
    solid_distance,
    to_local,
)

TEXTURES = ("plain", "stripes", "checks", "dots")

STEPS = 96
CLOSE = 2e-6  # the distance at which a ray has arrived; float32 resolves about 3e-7 here
NEARLY = 1e-4  # a ray out of steps counts as arrived below this
MARGIN = 1e-3  # of bounding boxes, and of shadow rays from their surface
CELL = 0.45  # edge of a texture's cell in the solid's largest half edge: 4 to 5 cells across it
CHUNK = 1024  # rays traced at a time

March: TypeAlias = tuple[Float[Array, "*n"], Bool[Array, "*n"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Light:
    """direction: unit, world axes, to the sun or moon. sun, ambient, background: RGB in [0, 1]."""

    direction: Float[Array | np.ndarray, "*s 3"]
    sun: Float[Array | np.ndarray, "*s 3"]
    ambient: Float[Array | np.ndarray, "*s 3"]
    background: Float[Array | np.ndarray, "*s 3"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stage:
    """A scene as arrays of fixed shapes. heading: (cos, sin) of the object's turn about z.

    Stages can be stacked: `jax.lax.map` or `jax.vmap` over `render` then renders many. The first is far
    faster on a CPU: it computes only distances of the kinds that a scene has, and passes over chunks of background.
    """

    solids: Solids
    light: Light
    heading: Float[Array | np.ndarray, "*s 2"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hits:
    """What rays meet first. A ray that meets nothing has depth infinity, label -1 and zeros.

    label: the part's position among the P. occluder: the label of the part that shades the point, -1 for none.
    """

    depth: Float[Array, "*n"]
    label: Int32[Array, "*n"]
    normal: Float[Array, "*n 3"]
    albedo: Float[Array, "*n 3"]
    occluder: Int32[Array, "*n"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Picture:
    """A view. colour is straight (not multiplied by alpha), zero where alpha is.

    coverage: the share of each pixel that each part covers; alpha: their sum.
    label: of the part that covers most, -1 for none. depth, normal: means over what the pixel shows of that part;
    infinity and zero where there is none.
    """

    colour: Float[Array, "*n 3"]
    alpha: Float[Array, "*n"]
    depth: Float[Array, "*n"]
    normal: Float[Array, "*n 3"]
    label: Int32[Array, "*n"]
    coverage: Float[Array, "*n p"]

    def over(self, background: Float[Array | np.ndarray, "3"]) -> Float[Array, "*n 3"]:
        """RGB over a background colour."""
        alpha = self.alpha[..., None]
        return self.colour * alpha + (1.0 - alpha) * background


@functools.partial(jax.jit, static_argnames=("supersample", "shadows"))
def render(
    stage: Stage,
    cameras: Cameras,
    view: Int32[Array, ""] | int,
    *,
    supersample: int = 2,
    shadows: bool = False,
) -> Picture:
    """One view, each pixel the mean of supersample^2 rays on a regular grid. Memory does not grow with the image."""
    count, grid = cameras.width * cameras.height, supersample * supersample
    a, b = jnp.meshgrid(jnp.arange(supersample), jnp.arange(supersample), indexing="xy")
    offsets = (jnp.stack([a, b], axis=-1).reshape(grid, 2).astype(jnp.float32) + 0.5) / supersample
    size = min(count, max(1, CHUNK // grid))

    def chunk(start: Int32[Array, ""]) -> Picture:
        # The last chunk repeats the last pixel.
        index = jnp.minimum(start + jnp.arange(size), count - 1)
        corner = jnp.stack([index % cameras.width, index // cameras.width], axis=-1)
        pixel = corner[:, None].astype(jnp.float32) + offsets
        pixel = pixel.reshape(-1, 2)  # one long axis: short ones at the end defeat vector units
        rays = pixel_rays(cameras, jnp.broadcast_to(view, pixel.shape[:-1]), pixel)
        hits = trace_rays(stage, rays, shadows=shadows)
        seen = (hits, shade(hits, stage.light))
        hits, colour = jax.tree.map(lambda x: x.reshape(size, grid, *x.shape[1:]), seen)
        return develop(hits, colour, stage.solids.kind.shape[-1])

    picture = jax.lax.map(chunk, jnp.arange(0, count, size))

    def image(x: Array) -> Array:
        flat = x.reshape(-1, *x.shape[2:])[:count]
        return rearrange(flat, "(h w) ... -> h w ...", w=cameras.width)

    return jax.tree.map(image, picture)


def trace_rays(stage: Stage, rays: Rays, *, shadows: bool = False) -> Hits:
    """The first hits of rays in world axes. Without `shadows` no point has an occluder."""
    solids = jax.tree.map(jnp.asarray, stage.solids)
    heading = jnp.asarray(stage.heading)
    back = heading * jnp.array([1.0, -1.0])
    rays = Rays(_turned(rays.origin, back), _turned(rays.direction, back))
    shape = rays.origin.shape[:-1]
    labels = jnp.arange(solids.kind.shape[-1], dtype=jnp.int32)
    nothing = Hits(
        depth=jnp.full(shape, jnp.inf),
        label=jnp.full(shape, -1, jnp.int32),
        normal=jnp.zeros((*shape, 3)),
        albedo=jnp.zeros((*shape, 3)),
        occluder=jnp.full(shape, -1, jnp.int32),
    )

    def nearer(best: Hits, row: tuple[Solids, Int32[Array, ""]]) -> tuple[Hits, None]:
        solid, label = row
        t, hit = _march(solid, rays)
        closer = hit & (t < best.depth)

        def seen() -> Hits:
            own, signs = to_local(solid, rays.origin + t[..., None] * rays.direction)
            normal = signs * object_axes(solid, _normal(solid, own))
            return Hits(
                depth=jnp.where(closer, t, best.depth),
                label=jnp.where(closer, label, best.label),
                normal=jnp.where(closer[..., None], normal, best.normal),
                albedo=jnp.where(closer[..., None], _albedo(solid, own), best.albedo),
                occluder=best.occluder,
            )

        # Most rays of most chunks miss most parts.
        return jax.lax.cond(jnp.any(closer), seen, lambda: best), None

    hits, _ = jax.lax.scan(nearer, nothing, (solids, labels))
    if shadows:
        sun = _turned(jnp.asarray(stage.light.direction), back)
        hits = replace(hits, occluder=_occluders(solids, labels, rays, hits, sun))
    return replace(hits, normal=_turned(hits.normal, heading))


def shade(hits: Hits, light: Light) -> Float[Array, "*n 3"]:
    """Colours of what rays met: the module's formula."""
    up, facing = hits.normal[..., 2], jnp.sum(hits.normal * light.direction, axis=-1)
    lit = jnp.where(hits.occluder < 0, jnp.maximum(facing, 0.0), 0.0)
    ambient = jnp.asarray(light.ambient) * (0.85 + 0.15 * up[..., None])
    return jnp.clip(hits.albedo * (ambient + light.sun * lit[..., None]), 0.0, 1.0)


def develop(hits: Hits, colour: Float[Array, "n s 3"], parts: int) -> Picture:
    """Pixels of s rays each."""
    hit = hits.label >= 0
    number = jnp.sum(hit, axis=-1).astype(jnp.float32)
    is_part = (hits.label[..., None] == jnp.arange(parts)).astype(jnp.float32)
    coverage = jnp.mean(is_part, axis=-2)
    label = jnp.where(number > 0, jnp.argmax(coverage, axis=-1), -1).astype(jnp.int32)
    shown = hit & (hits.label == label[..., None])
    depth = jnp.sum(jnp.where(shown, hits.depth, 0.0), axis=-1)
    depth = depth / jnp.maximum(jnp.sum(shown, axis=-1).astype(jnp.float32), 1.0)
    normal = jnp.sum(jnp.where(shown[..., None], hits.normal, 0.0), axis=-2)
    length = safe_norm(normal)[..., None]
    return Picture(
        colour=jnp.sum(jnp.where(hit[..., None], colour, 0.0), axis=-2)
        / jnp.maximum(number, 1.0)[..., None],
        alpha=number / hit.shape[-1],
        depth=jnp.where(number > 0, depth, jnp.inf),
        normal=normal / jnp.where(length > 0.0, length, 1.0),
        label=label,
        coverage=coverage,
    )


def part_distances(stage: Stage, points: Float[Array, "*n 3"]) -> Float[Array, "*n p"]:
    """Signed distances from world points to every part; infinite where a part is absent."""
    solids = jax.tree.map(jnp.asarray, stage.solids)
    local = _turned(points, jnp.asarray(stage.heading) * jnp.array([1.0, -1.0]))
    each = jax.lax.map(lambda solid: solid_distance(solid, local), solids)
    return jnp.where(solids.present, jnp.moveaxis(each, 0, -1), jnp.inf)


def _march(solid: Solids, rays: Rays) -> March:
    """Distance along rays in the object's axes to the solid, and whether they meet it."""
    low, high = _box_range(solid, rays)
    start = rays.origin + low[..., None] * rays.direction
    crossings = jnp.where(
        jnp.asarray(solid.mirror),
        # Just behind the plane, where the other image is the nearest.
        -start[..., :2] / _away_from_zero(rays.direction[..., :2]) + 1e-5,
        -1.0,
    )
    branches = [functools.partial(_newton, f, i != TORUS) for i, f in enumerate(DISTANCES)]
    length, hit = jax.lax.switch(
        solid.kind, branches, solid, Rays(start, rays.direction), crossings, high - low
    )
    return low + length, hit


def _newton(
    distance: Distance,
    convex: bool,
    solid: Solids,
    rays: Rays,
    crossings: Float[Array, "*n 2"],
    end: Float[Array, "*n"],
) -> March:
    """The first hit between 0 and `end`, for one kind of solid."""

    def state_at(s: Array) -> tuple[Array, Array]:
        own, signs = to_local(solid, rays.origin + s[..., None] * rays.direction)
        direction = own_axes(solid, signs * rays.direction)
        return jax.jvp(lambda p: distance(p, jnp.asarray(solid.size)), (own,), (direction,))

    def going(state: tuple[Array, ...]) -> Array:
        step, _, _, alive = state
        return (step < STEPS) & jnp.any(alive)

    def advance(state: tuple[Array, ...]) -> tuple[Array, ...]:
        step, s, found, alive = state
        f, slope = state_at(s)
        if convex:
            way = jnp.where(slope < 0.0, f / -jnp.where(slope < 0.0, slope, -1.0), jnp.inf)
        else:
            way = f
        ahead = jnp.where(crossings > s[..., None], crossings, jnp.inf)
        following = jnp.minimum(s + way, jnp.min(ahead, axis=-1))
        # Out of steps, a ray that is almost there has arrived.
        arrived = alive & (f <= jnp.where(step == STEPS - 1, NEARLY, CLOSE))
        alive = alive & ~arrived & (following <= end)
        return step + 1, jnp.where(alive, following, s), found | arrived, alive

    zero = jnp.zeros_like(end)
    state = (jnp.int32(0), zero, zero > 0.0, end >= 0.0)
    _, s, found, _ = jax.lax.while_loop(going, advance, state)
    return s, found


def _box_range(solid: Solids, rays: Rays) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Where rays are inside the box around a solid and its images; an end before the start if nowhere."""
    mirror = jnp.append(jnp.asarray(solid.mirror), False)
    centre = jnp.asarray(solid.centre)
    half = jnp.sum(jnp.abs(solid.rotation) * solid.size, axis=-1) + MARGIN
    half = half + jnp.where(mirror, jnp.abs(centre), 0.0)
    to_centre = jnp.where(mirror, 0.0, centre) - rays.origin
    direction = _away_from_zero(rays.direction)
    a, b = (to_centre - half) / direction, (to_centre + half) / direction
    low = jnp.maximum(jnp.max(jnp.minimum(a, b), axis=-1), 0.0)
    high = jnp.min(jnp.maximum(a, b), axis=-1)
    inside = jnp.asarray(solid.present) & (low <= high)
    return jnp.where(inside, low, 0.0), jnp.where(inside, high, -1.0)


def _away_from_zero(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return jnp.where(jnp.abs(x) < 1e-9, 1e-9, x)


def _normal(solid: Solids, own: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """The gradient of the distance, in the solid's axes."""

    def gradient(f: Distance) -> Callable[[Array, Array], Array]:
        return lambda p, size: jax.grad(lambda p: jnp.sum(f(p, size)))(p)

    return jax.lax.switch(solid.kind, [gradient(f) for f in DISTANCES], own, solid.size)


def _albedo(solid: Solids, own: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """Solid textures, cut by the surface; stripes cross the longest axis, the last one of equals."""
    size = jnp.asarray(solid.size)
    q = own / (CELL * jnp.max(size))
    cell = jnp.floor(q + 0.5)
    longest = 2 - jnp.argmax(size[::-1])
    stripes = jnp.take(cell, longest, axis=-1) % 2.0 == 1.0
    checks = jnp.sum(cell, axis=-1) % 2.0 == 1.0
    # Balls at the points of a body-centred lattice: every plane is near one of its layers.
    to_point = jnp.minimum(safe_norm(q - jnp.round(q)), safe_norm(q + 0.5 - jnp.round(q + 0.5)))
    marks = jnp.stack([jnp.zeros_like(stripes), stripes, checks, to_point < 0.33])
    marked = jnp.take(marks, jnp.asarray(solid.texture), axis=0)
    return jnp.where(marked[..., None], solid.second, solid.colour)


def _occluders(
    solids: Solids,
    labels: Int32[Array, "p"],
    rays: Rays,
    hits: Hits,
    sun: Float[Array, "3"],
) -> Int32[Array, "*n"]:
    """Which part each hit's ray to the sun meets first, -1 for none; all in the object's axes."""
    seen = hits.label >= 0
    depth = jnp.where(seen, hits.depth, 0.0)[..., None]
    point = rays.origin + depth * rays.direction + MARGIN * hits.normal
    to_sun = Rays(point, jnp.broadcast_to(sun, point.shape))

    def nearer(
        best: tuple[Array, Array], row: tuple[Solids, Array]
    ) -> tuple[tuple[Array, Array], None]:
        solid, label = row
        t, hit = _march(solid, to_sun)
        closer = hit & seen & (t < best[0])
        return (jnp.where(closer, t, best[0]), jnp.where(closer, label, best[1])), None

    nothing = (jnp.full(seen.shape, jnp.inf), jnp.full(seen.shape, -1, jnp.int32))
    (_, label), _ = jax.lax.scan(nearer, nothing, (solids, labels))
    return label


def _turned(vectors: Float[Array, "*n 3"], by: Float[Array, "2"]) -> Float[Array, "*n 3"]:
    """Turned about z by the angle of which `by` is (cos, sin)."""
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    return jnp.stack([by[0] * x - by[1] * y, by[1] * x + by[0] * y, z], axis=-1)
