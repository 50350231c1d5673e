"""The surface of a fitted scene as points: where the training cameras' rays end."""

import math
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from jaxedit.export.sampling import at_points, density_at
from jaxedit.render.compositing import Pixels
from jaxedit.scene.cameras import Cameras, Rays, image_rays
from jaxedit.systems.reconstruct.stored import Fitted
from jaxedit.systems.reconstruct.training import step_length
from jaxvid.core.errors import UserError
from jaxvid.core.progress import Progress

OPAQUE = 0.5  # the least opacity of a ray that ends in a point
PILOT_RAYS = 1 << 14  # rays that tell how many of all end in a point
SPARE = 1.3  # rays rendered for each that is needed by that share
LEAST_THICKNESS = 0.01  # of matter at a point, over one interval of a ray


class Cloud(NamedTuple):
    """Points with normals of length 1, sRGB colours, and the opacity of the ray that found each."""

    points: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]
    colours: UInt8[np.ndarray, "n 3"]
    opacity: Float[np.ndarray, "n"]


def cloud_of(fitted: Fitted, count: int, seed: int) -> Cloud:
    """At most `count` points, in the scene's world, drawn from what all training views see.

    A point stands at the mean depth of a ray that is more than half opaque. Where a ray passes an edge and ends on
    something behind, the mean lies between them, in nothing: such points are left out. Colours are without the
    background. Raises UserError when no ray ends.
    """
    training = fitted.record.cameras["train"]
    pilot = _smaller(training, PILOT_RAYS)
    opacity = [_render(fitted, pilot, view).opacity for view in range(len(pilot))]
    share = max(float(np.mean(np.stack(opacity) > OPAQUE)), 1e-3)
    cameras, found = _smaller(training, math.ceil(SPARE * count / share)), []
    with Progress("views", len(cameras)) as progress:
        for view in range(len(cameras)):
            found.append(_view(fitted, cameras, view))
            progress.advance()
            if (view + 1) % 10 == 0 or view + 1 == len(cameras):
                progress.report({})
    cloud = Cloud(*(np.concatenate(values) for values in zip(*found, strict=True)))
    if len(cloud.points):
        model, frame = fitted.model, fitted.frame
        density = at_points(density_at, model.field, cloud.points)
        kept = density * step_length(fitted.system, frame) > LEAST_THICKNESS
        cloud = Cloud(*(values[kept] for values in cloud))
    if not len(cloud.points):
        raise UserError(
            f"no ray of the training views ends in matter, more than {OPAQUE:.0%} opaque; fit the scene further"
        )
    if len(cloud.points) > count:
        chosen = np.random.default_rng(seed).choice(len(cloud.points), count, replace=False)
        chosen.sort()
        cloud = Cloud(*(values[chosen] for values in cloud))
    return cloud


def _smaller(cameras: Cameras, pixels: int) -> Cameras:
    """The cameras with at most about so many pixels in all, and no more than they have."""
    scale = math.sqrt(pixels / (len(cameras) * cameras.width * cameras.height))
    if scale >= 1.0:
        return cameras
    width, height = (max(1, round(side * scale)) for side in (cameras.width, cameras.height))
    return cameras.resized(width, height)


def _view(fitted: Fitted, cameras: Cameras, view: int) -> Cloud:
    """The points that one view sees."""
    colour, opacity, depth = _render(fitted, cameras, view)
    shade = _render(fitted, cameras, view, normals=True).colour
    rays = jax.tree.map(lambda a: np.asarray(a, np.float64), _image_rays(cameras.select([view])))
    seen = opacity > OPAQUE
    through = opacity[seen, None]
    behind = 0.0 if fitted.system.background == "black" else 1.0
    colour = np.clip((colour[seen] - (1.0 - through) * behind) / through, 0.0, 1.0)
    direction = rays.direction[seen]
    # Over grey a render of normals is grey plus half their weighted sum.
    normal = 2.0 * shade[seen] - 1.0
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    normal = np.where(length > 1e-6, normal / np.maximum(length, 1e-6), -direction)
    return Cloud(
        points=rays.origin[seen] + depth[seen, None] * direction,
        normals=normal,
        colours=np.round(255.0 * colour).astype(np.uint8),
        opacity=np.asarray(through[:, 0]),
    )


def _render(fitted: Fitted, cameras: Cameras, view: int, *, normals: bool = False) -> Pixels:
    pixels = fitted.system.render_image(
        fitted.frame, fitted.state, cameras, view, fit=fitted.fit, normals=normals
    )
    return jax.tree.map(lambda values: np.asarray(values, np.float64), pixels)


@jax.jit
def _image_rays(cameras: Cameras) -> Rays:
    return image_rays(cameras, 0)
