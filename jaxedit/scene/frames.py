"""What every format's reader hands over: posed frames with checked poses, lenses and paths.

Poses are camera-to-world with OpenGL axes; pixel coordinates start at the outer corner of the first pixel
(`jaxedit.scene.cameras`). Readers look at no pixel: images are read by `jaxedit.scene.load`.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxedit.scene.images import IMAGE_SUFFIXES, image_info
from jaxedit.scene.lenses import Lens
from jaxedit.scene.poses import Similarity
from jaxedit.scene.records import LARGEST, brief
from jaxedit.scene.scene import Split
from jaxvid.core.errors import UserError

SPLITS: tuple[Split, ...] = ("train", "val", "test")

ROTATION_TOLERANCE = 1e-3  # of the entries of R^T R - 1: a ray is off by about as many radians

# COLMAP's names, which nerfstudio uses too: the lens, and which of its coefficients the model has.
CAMERA_MODELS: dict[str, tuple[Lens, tuple[str, ...]]] = {
    "SIMPLE_PINHOLE": ("pinhole", ()),
    "PINHOLE": ("pinhole", ()),
    "SIMPLE_RADIAL": ("opencv", ("k1",)),
    "RADIAL": ("opencv", ("k1", "k2")),
    "OPENCV": ("opencv", ("k1", "k2", "k3", "k4", "p1", "p2")),
    "OPENCV_FISHEYE": ("fisheye", ("k1", "k2", "k3", "k4")),
}
COEFFICIENT_NAMES: dict[Lens, tuple[str, ...]] = {
    "pinhole": (),
    "opencv": ("k1", "k2", "k3", "k4", "p1", "p2"),
    "fisheye": ("k1", "k2", "k3", "k4"),
}


@dataclass(frozen=True)
class Intrinsics:
    """A lens and the image that it fills: `focal` and `centre` in pixels of a `width` x `height` image."""

    focal: tuple[float, float]
    centre: tuple[float, float]
    width: int
    height: int
    lens: Lens = "pinhole"
    distortion: tuple[float, ...] = ()


@dataclass(frozen=True)
class Frame:
    """One view as a file lists it; whether its image exists is another matter.

    name, mask: paths relative to the scene's folder. splits: those that list the frame; none where files have no splits.
    """

    name: str
    pose: Float[np.ndarray, "3 4"]
    intrinsics: Intrinsics
    splits: tuple[Split, ...] = ()
    mask: str | None = None


@dataclass(frozen=True)
class Capture:
    """What a reader returns; lengths are in the file's world.

    source: the file that lists the frames, for messages.
    outside: the cameras look from outside into `box`, which must then hold none of them.
    upright: whether the world's axes mean nothing, so that the default is to turn it upright.
    points, distances: reconstructed points, and how far from its camera each sight of one is.
    any_size: images may be smaller than `Intrinsics` says, which then scale (folders such as images_4).
    applied: from the capture's original world to the file's, where the file records it.
    """

    format: str
    source: str
    frames: list[Frame]
    box: Float[np.ndarray, "2 3"] | None = None
    near: float | None = None
    far: float | None = None
    outside: bool = False
    upright: bool = True
    points: Float[np.ndarray, "p 3"] | None = None
    distances: Float[np.ndarray, "d"] | None = None
    any_size: bool = False
    applied: Similarity = field(default_factory=Similarity.identity)


def relative_path(root: Path, name: Any, where: str) -> str:
    """A path that a file gives, normalised and relative to `root`.

    It may lead to the folder beside the scene's (COLMAP and nerfstudio projects keep images there), no further: absolute
    paths and those that leave the parent folder are refused, and so are names with control characters.
    """
    if not isinstance(name, str) or not name or not name.isprintable():
        raise UserError(f"{where}: the path is {brief(name)}; give a relative path")
    plain = name.replace("\\", "/")  # written on Windows
    if plain.startswith("/") or PureWindowsPath(plain).drive:
        raise UserError(f"{where}: {brief(name)} is an absolute path; give one relative to {root}")
    normal = os.path.normpath(plain)
    if normal in (".", "..") or normal.startswith("../../"):
        raise UserError(
            f"{where}: {brief(name)} leads out of {root.parent}; put the images into the scene's folder"
        )
    return normal


def image_path(root: Path, name: Any, where: str) -> str:
    """`relative_path` of an image; names without a suffix mean PNG files."""
    path = relative_path(root, name, where)
    if path.lower().endswith(IMAGE_SUFFIXES) or os.path.isfile(root / path):
        return path
    return path + ".png"


def frame_names(root: Path, records: list[dict[str, Any]], path: Path) -> list[str]:
    """The image paths of one file's frames, each once."""
    names = [
        image_path(root, record.get("file_path"), f"{path}: frame {i}")
        for i, record in enumerate(records)
    ]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"{path}: {brief(twice)} is listed twice; take one out")
    return names


def merged(frames: list[Frame], source: str) -> list[Frame]:
    """One frame for each image, with the splits of all files that list it; they must agree on its camera."""
    known: dict[str, Frame] = {}
    for frame in frames:
        first = known.setdefault(frame.name, frame)
        if not np.array_equal(first.pose, frame.pose) or first.intrinsics != frame.intrinsics:
            raise UserError(
                f"{source}: {frame.name} has another camera in another file; keep one of the two"
            )
        splits = tuple(dict.fromkeys(first.splits + frame.splits))
        if "train" in splits and len(splits) > 1:
            raise UserError(
                f"{source}: {frame.name} is listed for training and as held out; keep one of the two"
            )
        known[frame.name] = replace(first, splits=splits)
    return list(known.values())


def first_size(root: Path, names: list[str], source: str) -> tuple[int, int]:
    """Width and height of the first image that exists, for formats whose files do not give them."""
    for name in names:
        if os.path.isfile(root / name):
            info = image_info(root / name)
            return info.width, info.height
    raise no_images(source, names)


def no_images(source: str, names: list[str]) -> UserError:
    """The error of a scene whose images are all absent."""
    return UserError(
        f"{source}: none of its {len(names)} images exists (the first is {brief(names[0])}); "
        "put them where the file says"
    )


def checked_pose(pose: Float[np.ndarray, "_ 4"], where: str) -> Float[np.ndarray, "3 4"]:
    """The first three rows of a 3x4 or 4x4 pose, its rotation replaced by the nearest exact one.

    Raises `UserError` if it is singular, mirrored, off by more than `ROTATION_TOLERANCE`, or has another last row than
    (0, 0, 0, 1).
    """
    if not np.isfinite(pose).all() or np.abs(pose).max() > LARGEST:
        raise UserError(f"{where}: the pose has values that are not finite; export it again")
    if len(pose) == 4 and np.abs(pose[3] - [0.0, 0.0, 0.0, 1.0]).max() > 1e-6:
        raise UserError(
            f"{where}: the pose's last row is {brief(pose[3].tolist())}; it must be 0, 0, 0, 1"
        )
    rotation = pose[:3, :3]
    left, stretch, right = np.linalg.svd(rotation)
    if stretch[2] < 1e-6 * max(stretch[0], 1e-6):
        raise UserError(f"{where}: the pose is singular; export it again")
    off = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if off > ROTATION_TOLERANCE:
        raise UserError(
            f"{where}: the pose's rotation is not orthonormal (off by {off:.2g}, at most {ROTATION_TOLERANCE:g}); "
            "divide out its scale or export it again"
        )
    if np.linalg.det(rotation) < 0:
        raise UserError(
            f"{where}: the pose is mirrored (determinant -1); negate one of its axes, as its program means them"
        )
    return np.concatenate([left @ right, pose[:3, 3:]], axis=1)


def lens_of(
    model: Any, coefficients: dict[str, float], where: str
) -> tuple[Lens, tuple[float, ...]]:
    """The lens of a camera model's name and its coefficients in this library's order; absent ones are 0.

    Raises `UserError` for another model, or a coefficient other than 0 that the model does not have.
    """
    if not isinstance(model, str) or model not in CAMERA_MODELS:
        raise UserError(
            f"{where}: camera model {brief(model)}, only {', '.join(CAMERA_MODELS)} are read; "
            "undistort the images first (colmap image_undistorter)"
        )
    lens, known = CAMERA_MODELS[model]
    for key, value in coefficients.items():
        if value != 0.0 and key not in known:
            raise UserError(
                f"{where}: {key} is {value:g}, which a {model} camera does not have; name the right camera model"
            )
        if abs(value) > 100.0:
            raise UserError(
                f"{where}: {key} is {value:g}; a lens has less than 100, calibrate again"
            )
    distortion = tuple(coefficients.get(key, 0.0) for key in COEFFICIENT_NAMES[lens])
    return ("pinhole", ()) if lens == "opencv" and not any(distortion) else (lens, distortion)


def checked_intrinsics(intrinsics: Intrinsics, where: str) -> Intrinsics:
    """`intrinsics` if they can be a camera's.

    A focal length between 1/100 and 10,000 image widths (a view of 179 to 0.006 degrees), a centre at most one image
    beside the image, and distortion that the lens can undo over more than half of the way to the farthest corner.
    """
    i = intrinsics
    if not (1 <= i.width <= 100_000 and 1 <= i.height <= 100_000):
        raise UserError(f"{where}: an image of {i.width}x{i.height} pixels; correct w and h")
    for axis, focal in zip("xy", i.focal, strict=True):
        if not i.width / 100 <= focal <= i.width * 10_000:
            raise UserError(
                f"{where}: the focal length along {axis} is {focal:g} pixels for an image {i.width} wide; "
                "correct it (in pixels, positive)"
            )
    for axis, centre, size in zip("xy", i.centre, (i.width, i.height), strict=True):
        if not -size <= centre <= 2 * size:
            raise UserError(
                f"{where}: c{axis} is {centre:g} for an image of {i.width}x{i.height}; correct it (in pixels)"
            )
    if lens_reach(i) < 0.5 * _corner_radius(i):
        raise UserError(
            f"{where}: the distortion {', '.join(f'{c:g}' for c in i.distortion)} folds over before the image's edge; "
            "calibrate again or undistort the images"
        )
    return i


def lens_reach(intrinsics: Intrinsics) -> float:
    """The largest distorted radius (on the image plane at distance 1) up to which the lens is one to one.

    Polynomials turn back somewhere; pixels beyond have no ray. Tangential terms, which are small, are left out.
    """
    if intrinsics.lens == "pinhole":
        return np.inf
    k1, k2, k3, k4 = intrinsics.distortion[:4]
    angle = np.linspace(0.0, np.pi if intrinsics.lens == "fisheye" else 1.55, 512)
    r = angle if intrinsics.lens == "fisheye" else np.tan(angle)
    r2 = r * r
    distorted = r * (1.0 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4))))
    turns = np.flatnonzero(np.diff(distorted) <= 0)
    return float(distorted[turns[0]] if len(turns) else distorted[-1])


def distorted_radius(intrinsics: Intrinsics, pixel: Float[np.ndarray, "*n 2"]) -> np.ndarray:
    """Distance of pixels from the optical axis, on the image plane at distance 1."""
    offset = (pixel - np.array(intrinsics.centre)) / np.array(intrinsics.focal)
    return np.linalg.norm(offset, axis=-1)


def _corner_radius(i: Intrinsics) -> float:
    corners = np.array([[u, v] for u in (0.0, i.width) for v in (0.0, i.height)])
    return float(distorted_radius(i, corners).max())
