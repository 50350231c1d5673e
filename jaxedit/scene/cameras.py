"""Cameras: where they stand, what they see, and the rays through their pixels.

pose     camera-to-world, 3x4: columns are the camera's +x (right), +y (up), +z (backwards) axes and its position
         (OpenGL's and Blender's axes; a camera looks along -z)
pixel    continuous coordinates (u, v): (0, 0) is the outer corner of the first pixel, its centre is (0.5, 0.5);
         u grows to the right, v downwards (COLMAP's convention)
focal, centre   in pixels
ray      origin + t * direction with a direction of length 1, so t is a distance in world units
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxedit.scene.lenses import COEFFICIENTS, Lens, project, undistort


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cameras:
    """n cameras of one lens model and one image size. Arrays may be of numpy or jax.

    Example:
        cameras = Cameras(pose, focal, centre, distortion, lens="pinhole", width=800, height=800)
        rays = pixel_rays(cameras, jnp.array([3]), jnp.array([[400.5, 400.5]]))
    """

    pose: Float[Array | np.ndarray, "n 3 4"]
    focal: Float[Array | np.ndarray, "n 2"]
    centre: Float[Array | np.ndarray, "n 2"]
    distortion: Float[Array | np.ndarray, "n k"]
    lens: Lens = field(metadata={"static": True})
    width: int = field(metadata={"static": True})
    height: int = field(metadata={"static": True})

    def __len__(self) -> int:
        return self.pose.shape[0]

    def select(self, index: list[int] | np.ndarray | slice) -> "Cameras":
        """The cameras of those indices."""
        return replace(
            self,
            pose=self.pose[index],
            focal=self.focal[index],
            centre=self.centre[index],
            distortion=self.distortion[index],
        )

    def resized(self, width: int, height: int) -> "Cameras":
        """The same views with images of another size."""
        factor = np.array([width / self.width, height / self.height], np.float32)
        return replace(
            self,
            focal=self.focal * factor,
            centre=self.centre * factor,
            width=width,
            height=height,
        )


class Rays(NamedTuple):
    """Half-lines `origin + t * direction`, directions of length 1."""

    origin: Float[Array, "*n 3"]
    direction: Float[Array, "*n 3"]

    def at(self, t: Float[Array, "*n s"]) -> Float[Array, "*n s 3"]:
        """The points at distances `t`."""
        return self.origin[..., None, :] + t[..., None] * self.direction[..., None, :]


def pinhole_cameras(
    pose: Float[np.ndarray, "n 3 4"], focal: float, width: int, height: int
) -> Cameras:
    """Cameras without distortion whose axis goes through the middle of the image."""
    count = len(pose)
    return Cameras(
        pose=np.asarray(pose, np.float32),
        focal=np.full((count, 2), focal, np.float32),
        centre=np.tile(np.array([width / 2, height / 2], np.float32), (count, 1)),
        distortion=np.zeros((count, COEFFICIENTS["pinhole"]), np.float32),
        lens="pinhole",
        width=width,
        height=height,
    )


def pixel_rays(cameras: Cameras, view: Int[Array, "*n"], pixel: Float[Array, "*n 2"]) -> Rays:
    """The rays through continuous pixel coordinates of the views of those indices."""
    focal, centre = jnp.asarray(cameras.focal)[view], jnp.asarray(cameras.centre)[view]
    coefficients = jnp.asarray(cameras.distortion)[view]
    pose = jnp.asarray(cameras.pose)[view]
    seen = undistort(cameras.lens, coefficients, (pixel - centre) / focal)
    local = seen * jnp.array([1.0, -1.0, -1.0], seen.dtype)  # OpenCV axes to OpenGL axes
    # Written out: a TPU's matrix unit would round the rotation to bfloat16.
    direction = jnp.sum(pose[..., :3] * local[..., None, :], axis=-1)
    direction = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
    return Rays(origin=pose[..., 3], direction=direction)


def image_rays(cameras: Cameras, view: Int[Array, ""] | int) -> Rays:
    """The rays through all pixel centres of one view, arrays [height, width, 3]."""
    u = jnp.arange(cameras.width, dtype=jnp.float32) + 0.5
    v = jnp.arange(cameras.height, dtype=jnp.float32) + 0.5
    pixel = jnp.stack(jnp.meshgrid(u, v, indexing="xy"), axis=-1)
    return pixel_rays(cameras, jnp.broadcast_to(view, pixel.shape[:-1]), pixel)


def project_points(
    cameras: Cameras, view: Int[Array, "*n"], points: Float[Array, "*n 3"]
) -> tuple[Float[Array, "*n 2"], Bool[Array, "*n"]]:
    """Where views see world points: continuous pixel coordinates, and whether the point is in front of the camera.

    Behind a perspective camera the coordinates mean nothing. A fisheye sees behind its image plane, so only the
    camera's own position is refused there.
    """
    pose = jnp.asarray(cameras.pose)[view]
    offset = points - pose[..., 3]
    local = jnp.sum(pose[..., :3] * offset[..., :, None], axis=-2)  # rotation transposed
    local = local * jnp.array([1.0, -1.0, -1.0], local.dtype)
    front = local[..., 2] > 0
    if cameras.lens == "fisheye":
        front = jnp.any(local != 0, axis=-1)
    safe = jnp.where(front[..., None], local, jnp.array([0.0, 0.0, 1.0], local.dtype))
    p_d = project(cameras.lens, jnp.asarray(cameras.distortion)[view], safe)
    return p_d * jnp.asarray(cameras.focal)[view] + jnp.asarray(cameras.centre)[view], front
