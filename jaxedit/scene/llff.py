"""Forward-facing captures with `poses_bounds.npy` (LLFF, Mildenhall et al. 2019).

  poses_bounds.npy     [n, 17]: a 3x5 matrix by rows, then the near and far depth of what the view sees
  images/              n images whose sorted names belong to the rows; or images_4/, images_8/, ... with smaller ones

The matrix is [rotation 3x3 | position | (height, width, focal)] with the rotation's columns (down, right, backwards).
Depths are along the axis; a ray through a corner goes farther, so `far` is the largest depth over the cosine there.
"""

import math
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxedit.scene.frames import (
    Capture,
    Frame,
    Intrinsics,
    checked_intrinsics,
    checked_pose,
    relative_path,
)
from jaxedit.scene.images import IMAGE_SUFFIXES
from jaxedit.scene.poses import from_llff
from jaxedit.scene.records import LARGEST
from jaxvid.core.errors import UserError

_FILE = "poses_bounds.npy"
_FILE_BYTES = 16 << 20


def found(root: Path) -> bool:
    """Whether the folder has this layout."""
    return (root / _FILE).is_file()


def read(root: Path) -> Capture:
    """The frames in the order of their names. The rows name no image, so none may be missing."""
    path = root / _FILE
    table = _table(path)
    folder = image_folder(root)
    names = sorted(
        file.name for file in folder.iterdir() if file.name.lower().endswith(IMAGE_SUFFIXES)
    )
    paths = [relative_path(root, f"{folder.name}/{name}", str(path)) for name in names]
    if len(names) != len(table):
        raise UserError(
            f"{path}: {len(table)} rows for {len(names)} images in {folder.name}/; their numbers must be equal"
        )
    matrices = table[:, :15].reshape(-1, 3, 5)
    poses = from_llff(matrices[:, :, :4])
    frames, near, far = [], math.inf, 0.0
    for i, name in enumerate(names):
        where = f"{path}: row {i} ({name})"
        height, width, focal = matrices[i, :, 4].tolist()
        if width != int(width) or height != int(height):
            raise UserError(f"{where}: an image of {width:g}x{height:g}; give whole numbers")
        intrinsics = Intrinsics((focal, focal), (width / 2, height / 2), int(width), int(height))
        checked_intrinsics(intrinsics, where)
        shallow, deep = table[i, 15:].tolist()
        if not 0.0 < shallow < deep:
            raise UserError(f"{where}: bounds are {shallow:g} and {deep:g}; give 0 < near < far")
        corner = math.hypot(1.0, 0.5 * width / focal, 0.5 * height / focal)
        near, far = min(near, shallow), max(far, deep * corner)
        pose = checked_pose(poses[i], where)
        frames.append(Frame(paths[i], pose, intrinsics))
    # The bounds are the nearest and farthest *reconstructed* points; NeRF's margin (Mildenhall et al. 2020).
    return Capture("llff", str(path), frames, near=0.9 * near, far=far, any_size=True)


def image_folder(root: Path) -> Path:
    """images/, else the images_N/ with the least N."""
    if (root / "images").is_dir():
        return root / "images"
    smaller = [
        (int(match[1]), folder)
        for folder in root.iterdir()
        if (match := re.fullmatch(r"images_(\d{1,3})", folder.name)) and folder.is_dir()
    ]
    if not smaller:
        raise UserError(f"{root}: no images/ or images_N/; put the images there")
    return min(smaller)[1]


def _table(path: Path) -> Float[np.ndarray, "n 17"]:
    """The array, never larger than its file: a header may claim any shape, a mapped file cannot."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the folder that holds it")
    if path.stat().st_size > _FILE_BYTES:
        raise UserError(f"{path}: above {_FILE_BYTES >> 20} MiB; this is no table of poses")
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (
        Exception
    ) as error:  # numpy evaluates the header as Python, so anything may come out of it
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not a readable array ({reason}); write it again") from error
    if not isinstance(table, np.ndarray) or table.dtype.kind != "f":
        raise UserError(f"{path}: must be one array of floating-point numbers; write it again")
    if table.ndim != 2 or table.shape[1] != 17 or not len(table):
        raise UserError(f"{path}: an array of shape {table.shape}; LLFF's has shape (views, 17)")
    table = np.array(table, np.float64)
    wrong = np.flatnonzero(~(np.abs(table) <= LARGEST).all(axis=1))
    if len(wrong):
        raise UserError(
            f"{path}: row {wrong[0]} has values that are not finite or above {LARGEST:g}; write it again"
        )
    return table
