"""Camera paths for videos: around the object, along a spiral, through key frames, or the scene's own cameras."""

from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, Slerp

from jaxedit.scene.cameras import Cameras
from jaxedit.scene.lenses import COEFFICIENTS
from jaxedit.scene.poses import Poses, look_at
from jaxvid.core.errors import UserError

# As many poses as the path has frames.
Path: TypeAlias = Float[np.ndarray, "m 3 4"]
UP = np.array([0.0, 0.0, 1.0])


def focus_of(poses: Poses) -> Float[np.ndarray, "3"]:
    """The point nearest to all cameras' axes (least squares); for parallel axes, one unit ahead of their mean."""
    axis = -poses[:, :, 2]
    # |(I - a a^T)(x - c)|^2 summed over cameras.
    across = np.eye(3) - axis[:, :, None] * axis[:, None, :]
    matrix = across.sum(axis=0)
    if np.linalg.cond(matrix) > 1e6:
        return poses[:, :, 3].mean(axis=0) + axis.mean(axis=0)
    return np.linalg.solve(matrix, (across @ poses[:, :, 3:]).sum(axis=0))[:, 0]


def turntable(
    poses: Poses, frames: int, *, elevation: float | None = None, radius: float | None = None
) -> Path:
    """Once around the cameras' common focus, +z upwards, the frame after the last being the first again.

    elevation: of the camera above the horizon in degrees; radius: its distance from the focus in world units. None
    takes the cameras' medians.
    """
    focus = focus_of(poses)
    offset = poses[:, :, 3] - focus
    distance = np.linalg.norm(offset, axis=-1)
    if radius is None:
        radius = float(np.median(distance))
    if elevation is None:
        height = np.arcsin(np.clip(offset[:, 2] / np.maximum(distance, 1e-9), -1, 1))
        elevation = float(np.degrees(np.median(height)))
    angle = np.linspace(0, 2 * np.pi, frames, endpoint=False)
    tilt = np.radians(elevation)
    ring = np.stack([np.cos(angle) * np.cos(tilt), np.sin(angle) * np.cos(tilt)], axis=-1)
    ring = np.concatenate([ring, np.full((frames, 1), np.sin(tilt))], axis=-1)
    return look_at(focus + radius * ring, focus, UP)


def spiral(poses: Poses, frames: int, *, turns: int = 2, reach: float = 0.9) -> Path:
    """Around the mean camera of a forward-facing capture, as far as the cameras themselves spread (LLFF's path).

    reach: of the cameras' distances along the mean camera's axes, the share (a quantile) that the path covers.
    """
    centre, focus = poses[:, :, 3].mean(axis=0), focus_of(poses)
    up = poses[:, :, 1].mean(axis=0)
    mean = look_at(centre[None], focus, up / np.linalg.norm(up))[0]
    spread = np.quantile(np.abs((poses[:, :, 3] - centre) @ mean[:, :3]), reach, axis=0)
    angle = np.linspace(0, 2 * np.pi * turns, frames, endpoint=False)
    offset = np.stack([np.cos(angle), -np.sin(angle), -np.sin(angle / 2)], axis=-1) * spread
    return look_at(centre + offset @ mean[:, :3].T, focus, mean[:, 1])


def through(keys: Poses, frames: int, *, closed: bool = False) -> Path:
    """A smooth path through key frames: positions by a cubic spline, rotations by spherical interpolation.

    The first and the last frame are the first and last key; a closed path returns to its first key after the last frame.
    Raises UserError for fewer than two keys.
    """
    if len(keys) < 2:
        raise UserError(f"a path needs 2 key frames or more; {len(keys)} given")
    if closed:
        keys = np.concatenate([keys, keys[:1]])
    time = np.arange(len(keys), dtype=np.float64)
    at = np.linspace(0, len(keys) - 1, frames, endpoint=not closed)
    position = CubicSpline(time, keys[:, :, 3], bc_type="periodic" if closed else "not-a-knot")(at)
    rotation = Slerp(time, Rotation.from_matrix(keys[:, :, :3]))(at).as_matrix()
    return np.concatenate([rotation, position[..., None]], axis=-1)


def cameras_along(poses: Poses, like: Cameras) -> Cameras:
    """Pinhole cameras at `poses` with the size and the mean focal length of the cameras `like`, centred."""
    count = len(poses)
    centre = np.array([like.width / 2, like.height / 2], np.float32)
    return Cameras(
        pose=poses.astype(np.float32),
        focal=np.tile(np.asarray(like.focal, np.float32).mean(axis=0), (count, 1)),
        centre=np.tile(centre, (count, 1)),
        distortion=np.zeros((count, COEFFICIENTS["pinhole"]), np.float32),
        lens="pinhole",
        width=like.width,
        height=like.height,
    )
