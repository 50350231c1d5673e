"""Scenes of Vox-E and ReLU fields (Sella et al. 2023; Karnewar et al. 2022).

  train_camera_params.json with train/, and so for val and test; or camera_params.json with images/
      {"r_0.png": {"intrinsic": {"bounds": [2.0, 6.0], "height": 800, "width": 800, "focal": 1111.1},
                   "extrinsic": {"rotation": 3x3, "translation": 3x1}}, ...}

Poses are camera-to-world with OpenGL axes, the object is in a box of 1.5 around the origin.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.scene.blender import OBJECT_BOX
from jaxedit.scene.frames import (
    SPLITS,
    Capture,
    Frame,
    Intrinsics,
    checked_intrinsics,
    checked_pose,
    image_path,
)
from jaxedit.scene.records import brief, matrix, number, read_json, whole
from jaxedit.scene.scene import Split
from jaxvid.core.errors import UserError

_LAYOUTS: list[tuple[str, str, tuple[Split, ...]]] = [
    *((f"{split}_camera_params.json", split, (split,)) for split in SPLITS),
    ("camera_params.json", "images", ()),
]


def found(root: Path) -> bool:
    """Whether the folder has this layout."""
    return any((root / name).is_file() for name, _, _ in _LAYOUTS)


def read(root: Path) -> Capture:
    """The frames of all splits, in the order of their files; near and far enclose those of all views."""
    frames: list[Frame] = []
    bounds: list[tuple[float, float]] = []
    for file, folder, splits in _LAYOUTS:
        path = root / file
        if not path.is_file():
            continue
        for key, record in read_json(path).items():
            where = f"{path}: {brief(key)}"
            name = image_path(root, f"{folder}/{key}", where)
            intrinsic = _object(record, "intrinsic", where)
            bounds.append(_bounds(intrinsic, where))
            frames.append(Frame(name, _pose(record, where), _intrinsics(intrinsic, where), splits))
    if not frames:
        raise UserError(f"{root}: no camera_params.json that lists a view; give the scene's folder")
    return Capture(
        format="voxe",
        source=str(root),
        frames=frames,
        box=OBJECT_BOX,
        near=min(near for near, _ in bounds),
        far=max(far for _, far in bounds),
        outside=True,
        upright=False,
    )


def _object(record: Any, key: str, where: str) -> dict[str, Any]:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, dict):
        raise UserError(f"{where}: {key} must be an object, is {brief(value)}")
    return value


def _bounds(intrinsic: dict[str, Any], where: str) -> tuple[float, float]:
    near, far = matrix([intrinsic.get("bounds")], 1, 2, "bounds", where)[0]
    if not 0.0 < near < far:
        raise UserError(f"{where}: bounds are {near:g} and {far:g}; give 0 < near < far")
    return float(near), float(far)


def _intrinsics(intrinsic: dict[str, Any], where: str) -> Intrinsics:
    focal = number(intrinsic, "focal", where)
    width, height = (whole(intrinsic, key, where) for key in ("width", "height"))
    intrinsics = Intrinsics((focal, focal), (width / 2, height / 2), width, height)
    return checked_intrinsics(intrinsics, where)


def _pose(record: dict[str, Any], where: str) -> np.ndarray:
    extrinsic = _object(record, "extrinsic", where)
    rotation = matrix(extrinsic.get("rotation"), 3, 3, "rotation", where)
    translation = matrix(extrinsic.get("translation"), 3, 1, "translation", where)
    return checked_pose(np.concatenate([rotation, translation], axis=1), where)
