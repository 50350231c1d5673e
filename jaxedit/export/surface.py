"""The surface of a field as a coloured mesh: marching cubes on its densities.

Which density is the surface is a choice. Without one it is taken from the distribution: every point of the lattice is
given the opacity that a way of its density would have over `REACH` of the box's longest side, and Otsu's threshold
(1979, largest variance between the two classes) parts empty points from full ones. Opacities saturate, so it matters
little how dense the densest matter is.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxedit.export.mesh import Mesh, Surface, large_parts, marching_cubes, mean_normals
from jaxedit.export.sampling import Lattice, at_points, density_at, density_on, normal_at
from jaxedit.fields.field import Field
from jaxedit.render.render import render_edges
from jaxedit.scene.cameras import Rays
from jaxvid.core.errors import UserError

REACH = 0.01
BINS = 256
HALVINGS = 8
# A vertex's colour is what a ray sees from half a cell in front of it to so many cells behind.
DEPTH, SAMPLES = 2.5, 12
LATTICE_BYTES = 16  # for each point of the lattice, at the most that stands at one time


def mesh_of(
    field: Field, resolution: int, level: float | None = None, keep: float | None = None
) -> tuple[Mesh, float]:
    """The mesh, in the world of the field, and the density that is its surface; closed, also where the box cuts matter.

    resolution: points along the box's longest side. level: None chooses, see above.
    keep: drop connected parts with fewer triangles than this share of the largest part's; None keeps all.
    Normals are against the gradient of density. A colour is what is seen along the normal, from outside.
    Raises UserError where nothing, or everything, is denser than `level`.
    """
    lattice = Lattice.of(field.frame, resolution)
    density = density_on(field, lattice)
    level = chosen_level(density, REACH * max(lattice.size)) if level is None else level
    lowest, highest = float(density.min()), float(density.max())
    # Asked of the values too: a level may round to the highest of them.
    if not lowest <= level < highest or not (density > level).any():
        what = "the whole box is full" if level < lowest else "the surface is empty"
        raise UserError(
            f"{what} at level {level:.6g}; densities reach from {lowest:.6g} to {highest:.6g}; choose --level"
        )
    # One more point on every side, with nothing: the surface closes.
    density = np.pad(density, 1)
    surface = marching_cubes(density, level)
    if keep is not None:
        surface = large_parts(surface, keep)
    inside = density[tuple(surface.corner.T)] > level
    surface = refined(surface, inside, field, lattice, level)
    # Where the box cuts, vertices stand on its sides up to the precision of the halving.
    unit, least = (surface.points - 0.5) / lattice.shape, 0.5**HALVINGS / np.array(lattice.shape)
    unit = np.where(unit < least, 0.0, np.where(unit > 1.0 - least, 1.0, unit))
    points = lattice.lowest + unit * lattice.size
    cut = ((unit == 0.0) | (unit == 1.0)).any(axis=-1)
    normals = _normals(field, points, surface, cut)
    seen = partial(_seen, cell=lattice.cell)
    colours = np.clip(at_points(seen, field, points, normals), 0.0, 1.0)
    colours = np.round(255.0 * colours).astype(np.uint8)
    return Mesh(points, normals, colours, surface.triangles), level


def chosen_level(density: Float[np.ndarray, "x y z"], reach: float) -> float:
    """Otsu's threshold between empty and full points, by their opacity over the length `reach`.

    The middle of all that part the points equally well. Raises UserError when all densities are as good as equal.
    """
    count = np.zeros(BINS)
    for part in density:  # slice by slice: no copy of the whole
        opacity = -np.expm1(-part * np.float32(reach))
        count += np.histogram(opacity, BINS, (0.0, 1.0))[0]
    middle = (np.arange(BINS) + 0.5) / BINS
    below, moment = np.cumsum(count)[:-1], np.cumsum(count * middle)
    above = count.sum() - below
    parted = (below > 0) & (above > 0)
    gap = np.where(
        parted,
        moment[:-1] / np.maximum(below, 1) - (moment[-1] - moment[:-1]) / np.maximum(above, 1),
        0.0,
    )
    between = below * above * gap**2
    if not parted.any():
        raise UserError(
            f"all densities lie between {density.min():.6g} and {density.max():.6g}, too alike to choose a level; "
            "choose --level, or fit the scene further"
        )
    best = np.flatnonzero(between >= between.max() * (1.0 - 1e-9)) + 1
    return float(-np.log1p(-best.mean() / BINS) / reach)


def refined(
    surface: Surface, inside: Bool[np.ndarray, "v"], field: Field, lattice: Lattice, level: float
) -> Surface:
    """The surface with its vertices where the field itself passes the level, found by halving their edges.

    Densities rise steeply, so where a straight line between two points of the lattice meets the level says little.
    surface: of the lattice with one more point on every side; outside the box there is nothing.
    inside: whether the lower end of each vertex's edge is; the other end is not, or the other way round.
    """
    start = lattice.world(surface.corner - 1.0)
    step = np.eye(3)[surface.axis] * lattice.size / lattice.shape
    low, high = np.zeros(len(start)), np.ones(len(start))

    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        points = start + middle[:, None] * step
        unit = (points - lattice.lowest) / lattice.size
        in_box = ((unit >= 0.0) & (unit <= 1.0)).all(axis=-1)
        full = in_box & (at_points(density_at, field, points) > level)
        low, high = np.where(full == inside, middle, low), np.where(full == inside, high, middle)
    return surface._replace(fraction=0.5 * (low + high))


def _normals(
    field: Field, points: Float[np.ndarray, "v 3"], surface: Surface, cut: Bool[np.ndarray, "v"]
) -> Float[np.ndarray, "v 3"]:
    """Against the gradient of density; the triangles' where the box cuts, and where the gradient is none or contrary."""
    own = mean_normals(points, surface.triangles)
    slope = at_points(normal_at, field, points).astype(np.float64)
    wrong = cut | (np.sum(own * slope, axis=-1) <= 0.0)
    normals = np.where(wrong[:, None], own, slope)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    # A vertex whose triangles have no area has no direction of its own.
    return np.where(length > 0.0, normals / np.where(length > 0.0, length, 1.0), [0.0, 0.0, 1.0])


@partial(jax.jit, static_argnames="cell")
def _seen(
    field: Field, points: Float[Array, "n 3"], normals: Float[Array, "n 3"], *, cell: float
) -> Float[Array, "n 3"]:
    """What is seen from outside along the normals, were there nothing behind; the colour at the point if that is little."""
    rays = Rays(points + 0.5 * cell * normals, -normals)
    edges = jnp.linspace(0.0, (0.5 + DEPTH) * cell, SAMPLES + 1)
    edges = jnp.broadcast_to(edges, (points.shape[0], SAMPLES + 1))
    pixels, _ = render_edges(field, rays, edges, jnp.zeros(3))
    opacity = pixels.opacity[:, None]
    there = field.query(points, -normals)[1]
    return jnp.where(opacity > 1e-3, pixels.colour / jnp.maximum(opacity, 1e-3), there)
