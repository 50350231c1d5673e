"""From rays to pixels: one function for all fields, samplings and scenes.

    config = RenderConfig(samples=256, near=2.0, far=6.0)
    pixels, losses = render_rays(field, rays, config, background=jnp.ones(3), keys=keys)

Three ways to choose samples, by what is given:
    neither     `samples` intervals, evenly spread in `spacing`, jittered when there are keys
    occupied    the same intervals, but the field is only asked near matter (`jaxedit.render.sparse`)
    proposals   density fields that are asked first, coarse to fine, and say where to look (mip-NeRF 360)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxedit.fields.field import DensityField, Field
from jaxedit.render.bounds import box_bounds, sphere_bounds
from jaxedit.render.compositing import Pixels, composite, thickness_of, weights_of
from jaxedit.render.intervals import (
    Spacing,
    annealed,
    distortion_loss,
    interlevel_loss,
    resampled_edges,
    stratified_edges,
    to_distance,
    uniform_edges,
)
from jaxedit.render.sparse import render_sparse
from jaxedit.scene.cameras import Rays
from jaxvid.core.errors import UserError
from jaxvid.core.rng import named

# Per ray: the loss "distortion", of places in s-space (`jaxedit.render.intervals`); with proposals the loss "interlevel";
# with occupied cells the number of "blocks" asked, which `RenderConfig.slots` should be a little above.
Losses = dict[str, Array]


@dataclass(frozen=True)
class RenderConfig:
    """How rays are sampled.

    samples: intervals of the final pass. proposal_samples: intervals of each proposal, coarse to fine.
    near, far: distances between which there is anything to see, in world units; None: as near and far as the bounds
        go (a spacing of disparity needs a near above 0, and bounds none a far).
    bounds: what narrows them for each ray: the field's box, a sphere around its middle through its corners, or nothing.
    equal_steps: every ray has intervals of the same length, the box's diagonal / samples, from where it enters; else
        each ray spreads its intervals over what it sees of the bounds.
    last_opaque: the last interval hides the background (NeRF's and Vox-E's last distance of 1e10).
    block, slots: for occupied cells: samples in a block, and blocks asked at once, as a mean number a ray.
    """

    samples: int = 256
    proposal_samples: tuple[int, ...] = ()
    spacing: Spacing = "linear"
    near: float | None = None
    far: float | None = None
    bounds: Literal["box", "sphere", "none"] = "box"
    equal_steps: bool = False
    last_opaque: bool = False
    block: int = 8
    slots: float = 2.0

    def __post_init__(self) -> None:
        if self.samples % self.block:
            raise UserError(
                f"samples is {self.samples}; it must be a multiple of block ({self.block})"
            )
        if self.equal_steps and (self.bounds != "box" or self.spacing != "linear"):
            raise UserError("equal_steps needs bounds box and spacing linear; change one of them")


def render_rays(
    field: Field,
    rays: Rays,
    config: RenderConfig,
    *,
    background: Float[Array, "*#r 3"],
    keys: Key[Array, "r"] | None = None,
    occupied: Bool[Array, "x y z"] | None = None,
    proposals: Sequence[DensityField] = (),
    anneal: Float[Array, ""] | float = 1.0,
) -> tuple[Pixels, Losses]:
    """Pixels of rays [r] and the sampling's losses, a value a ray.

    keys: one a ray; jitter the samples, for training: a ray's whether it is rendered alone, in chunks or on another
        device. Without them samples are in fixed places.
    anneal: progress of the proposals' annealing, 0 to 1 (`jaxedit.render.intervals.annealed`).
    """
    near, far = ray_bounds(field, rays, config)
    count = rays.origin.shape[0]
    if proposals:
        return _render_proposals(
            field, rays, config, near, far, background, keys, proposals, anneal
        )
    if keys is None:
        places = uniform_edges(config.samples, (count,))
    else:
        places = stratified_edges(config.samples, draw(keys, "edges"))
        if config.spacing != "linear":
            places = jnp.clip(places, 0.0, 1.0)  # beyond them a distance may not exist
    if config.equal_steps and config.far is not None:
        length = jnp.where(far > near, far - near, 1.0)
        places = jnp.minimum(places, ((config.far - near) / length)[:, None])
    edges = to_distance(places, near, far, config.spacing)
    if occupied is None:
        pixels, weights = render_edges(field, rays, edges, background, config.last_opaque)
        return pixels, {"distortion": distortion_loss(places, weights)}
    if config.spacing != "linear":
        raise UserError(f"spacing is {config.spacing}; occupied cells need linear")
    slots = max(1, min(round(config.slots * count), count * (config.samples // config.block)))
    pixels, distortion, blocks = render_sparse(
        field, rays, edges, occupied, background, block=config.block, slots=slots
    )
    seen = far > near
    distortion = jnp.where(seen, distortion / jnp.where(seen, far - near, 1.0), 0.0)
    return pixels, {"distortion": distortion, "blocks": blocks}


def render_edges(
    field: Field,
    rays: Rays,
    edges: Float[Array, "r e"],
    background: Float[Array, "*#r 3"],
    last_opaque: bool = False,
) -> tuple[Pixels, Float[Array, "r s"]]:
    """Pixels of intervals with these edges, the field asked in the middle of each, and the weights."""
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    density, colour = field.query(rays.at(middle), rays.direction[:, None, :])
    weights = weights_of(thickness_of(density, edges, last_opaque=last_opaque))
    return composite(weights, colour, middle, background), weights


def ray_bounds(
    field: Field, rays: Rays, config: RenderConfig
) -> tuple[Float[Array, "r"], Float[Array, "r"]]:
    """The distances between which each ray is sampled.

    Raises UserError where the configuration needs a near or far and has none.
    """
    if config.bounds == "none" and config.far is None:
        raise UserError("far is None and bounds is none; give a far")
    if config.spacing == "disparity" and not config.near:
        raise UserError(f"near is {config.near}; spacing disparity needs near above 0")
    frame, least = field.frame, config.near or 0.0
    limit = math.inf if config.far is None else config.far
    low, high = jnp.array(frame.lowest), jnp.array(frame.highest)
    if config.bounds == "none":
        shape = rays.origin.shape[:1]
        return jnp.full(shape, least), jnp.full(shape, limit)
    if config.bounds == "sphere":
        radius = 0.5 * math.hypot(*frame.size)
        return sphere_bounds(rays, 0.5 * (low + high), radius, least, limit)
    near, far = box_bounds(rays, low, high, least, limit)
    if config.equal_steps:
        # Behind the box there is nothing to ask; the intervals there cost one look at the occupancy.
        far = jnp.where(far > near, near + math.hypot(*frame.size), near)
    return near, far


def draw(keys: Key[Array, "r"], name: str) -> Float[Array, "r"]:
    """One number in [-1/2, 1/2) for each key."""
    return jax.vmap(lambda key: jax.random.uniform(named(key, name), minval=-0.5, maxval=0.5))(keys)


def _render_proposals(
    field: Field,
    rays: Rays,
    config: RenderConfig,
    near: Float[Array, "r"],
    far: Float[Array, "r"],
    background: Float[Array, "*#r 3"],
    keys: Key[Array, "r"] | None,
    proposals: Sequence[DensityField],
    anneal: Float[Array, ""] | float,
) -> tuple[Pixels, Losses]:
    if len(proposals) != len(config.proposal_samples):
        raise UserError(
            f"there are {len(proposals)} proposals and proposal_samples {config.proposal_samples}; give one count each"
        )
    count = rays.origin.shape[0]
    seen: list[tuple[Array, Array]] = []
    places, weights = uniform_edges(1, (count,)), jnp.ones((count, 1))
    for index, samples in enumerate((*config.proposal_samples, config.samples)):
        jitter = None if keys is None else draw(keys, f"edges {index}")
        places = resampled_edges(places, annealed(weights, anneal), samples, jitter)
        edges = to_distance(places, near, far, config.spacing)
        if index == len(proposals):
            break
        middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
        density = proposals[index].density(rays.at(middle))
        weights = weights_of(thickness_of(density, edges, last_opaque=config.last_opaque))
        seen.append((places, weights))
    pixels, weights = render_edges(field, rays, edges, background, config.last_opaque)
    interlevel = sum(
        (interlevel_loss(places, weights, *proposal) for proposal in seen), jnp.zeros(count)
    )
    return pixels, {"distortion": distortion_loss(places, weights), "interlevel": interlevel}
