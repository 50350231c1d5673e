"""Camera axes of the file formats, and similarity transforms of whole scenes.

Inside, poses are camera-to-world with OpenGL axes (`jaxedit.scene.cameras`). Others:

    OpenCV, COLMAP   right, down, forwards      (COLMAP stores world-to-camera)
    LLFF             down, right, backwards

All of numpy, in float64: this is work of the loaders.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from jaxedit.scene.cameras import Cameras

Poses = Float[np.ndarray, "n 3 4"]


def from_opencv(poses: Poses) -> Poses:
    """OpenGL poses of OpenCV ones, and the other way round: y and z change sign."""
    return poses * np.array([1.0, -1.0, -1.0, 1.0])


def from_llff(poses: Poses) -> Poses:
    """OpenGL poses of LLFF ones: columns (down, right, backwards, position) to (right, up, backwards, position)."""
    down, right, backwards, position = np.moveaxis(poses, -1, 0)
    return np.stack([right, -down, backwards, position], axis=-1)


def to_llff(poses: Poses) -> Poses:
    """LLFF poses of OpenGL ones."""
    right, up, backwards, position = np.moveaxis(poses, -1, 0)
    return np.stack([-up, right, backwards, position], axis=-1)


def inverted(poses: Poses) -> Poses:
    """World-to-camera of camera-to-world, and the other way round; the rotations must be orthonormal."""
    rotation = np.swapaxes(poses[..., :3], -1, -2)
    return np.concatenate([rotation, -rotation @ poses[..., 3:]], axis=-1)


def rotation_of_quaternion(q: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 3 3"]:
    """Rotation matrices of quaternions (w, x, y, z), which need not have length 1."""
    w, x, y, z = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def quaternion_of_rotation(rotation: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "n 4"]:
    """Quaternions (w, x, y, z) with w >= 0, as eigenvectors (Bar-Itzhack 2000), without cases."""
    m = rotation
    k = np.zeros((len(m), 4, 4))
    k[:, 0, 0] = m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2]
    k[:, 1, 1] = m[:, 0, 0] - m[:, 1, 1] - m[:, 2, 2]
    k[:, 2, 2] = m[:, 1, 1] - m[:, 0, 0] - m[:, 2, 2]
    k[:, 3, 3] = m[:, 2, 2] - m[:, 0, 0] - m[:, 1, 1]
    k[:, 0, 1] = k[:, 1, 0] = m[:, 2, 1] - m[:, 1, 2]
    k[:, 0, 2] = k[:, 2, 0] = m[:, 0, 2] - m[:, 2, 0]
    k[:, 0, 3] = k[:, 3, 0] = m[:, 1, 0] - m[:, 0, 1]
    k[:, 1, 2] = k[:, 2, 1] = m[:, 0, 1] + m[:, 1, 0]
    k[:, 1, 3] = k[:, 3, 1] = m[:, 0, 2] + m[:, 2, 0]
    k[:, 2, 3] = k[:, 3, 2] = m[:, 1, 2] + m[:, 2, 1]
    q = np.linalg.eigh(k)[1][:, :, -1]
    return np.where(q[:, :1] < 0, -q, q)


@dataclass(frozen=True)
class Similarity:
    """`x -> scale * rotation @ x + translation`: from the file's world to the scene's; recorded with a run.

    Example:
        to_file = scene.transform.inverse()
        points_in_the_files_world = to_file.points(points)
    """

    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]

    @classmethod
    def identity(cls) -> "Similarity":
        """The transform that changes nothing."""
        return cls(1.0, np.eye(3), np.zeros(3))

    def is_identity(self) -> bool:
        """Whether it changes nothing, to rounding."""
        moved = np.concatenate([self.scale * self.rotation, self.translation[:, None]], axis=1)
        return bool(np.abs(moved - np.eye(3, 4)).max() < 1e-9)

    def points(self, x: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """Transformed points."""
        return self.scale * x @ self.rotation.T + self.translation

    def poses(self, poses: Poses) -> Poses:
        """Transformed cameras: they turn and move, but keep unit axes."""
        rotation = self.rotation @ poses[..., :3]
        return np.concatenate([rotation, self.points(poses[..., 3])[..., None]], axis=-1)

    def cameras(self, cameras: Cameras) -> Cameras:
        """The cameras in the transformed world."""
        moved = self.poses(np.asarray(cameras.pose, np.float64))
        return replace(cameras, pose=moved.astype(np.float32))

    def inverse(self) -> "Similarity":
        """The transform back."""
        rotation = self.rotation.T
        return Similarity(1.0 / self.scale, rotation, -(rotation @ self.translation) / self.scale)

    def after(self, first: "Similarity") -> "Similarity":
        """The composition: first `first`, then this one."""
        return Similarity(
            self.scale * first.scale,
            self.rotation @ first.rotation,
            self.points(first.translation),
        )


def upright(poses: Poses, *, radius: float = 1.0) -> Similarity:
    """Turns the cameras' mean up axis to +z, moves their mean position to 0 and the farthest to `radius`.

    The normalisation of nerfstudio's parser ("up", "poses", auto scale), in one recorded transform.
    """
    up = poses[:, :, 1].mean(axis=0)
    length = np.linalg.norm(up)
    rotation = np.eye(3) if length < 1e-6 else turn(up / length, np.array([0.0, 0.0, 1.0]))
    positions = poses[:, :, 3] @ rotation.T
    centre = positions.mean(axis=0)
    farthest = np.linalg.norm(positions - centre, axis=-1).max()
    # Cameras in one place leave the scale open.
    scale = radius / farthest if farthest > 1e-9 else 1.0
    return Similarity(float(scale), rotation, -scale * centre)


def turn(start: Float[np.ndarray, "3"], end: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The smallest rotation that takes one unit vector to another (Rodrigues)."""
    axis, cosine = np.cross(start, end), float(start @ end)
    if cosine < -1.0 + 1e-12:  # opposite: half a turn around any perpendicular
        perpendicular = np.cross(start, np.eye(3)[np.argmin(np.abs(start))])
        perpendicular /= np.linalg.norm(perpendicular)
        return 2.0 * np.outer(perpendicular, perpendicular) - np.eye(3)
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + cross + cross @ cross / (1.0 + cosine)


def look_at(
    position: Float[np.ndarray, "n 3"],
    target: Float[np.ndarray, "3"],
    up: Float[np.ndarray, "3"],
) -> Poses:
    """Poses of cameras at `position` that look at `target`, with `up` upwards in their images.

    A camera that looks along `up` takes another one that is not along its view.
    """
    backwards = position - target
    backwards = backwards / np.linalg.norm(backwards, axis=-1, keepdims=True)
    right = np.cross(np.broadcast_to(up, position.shape), backwards)
    degenerate = np.linalg.norm(right, axis=-1, keepdims=True) < 1e-6
    spare = np.eye(3)[np.argmin(np.abs(up))]
    right = np.where(degenerate, np.cross(np.broadcast_to(spare, right.shape), backwards), right)
    right = right / np.linalg.norm(right, axis=-1, keepdims=True)
    return np.stack([right, np.cross(backwards, right), backwards, position], axis=-1)
