"""Captures in instant-ngp's layout: transforms*.json (Müller et al. 2022).

  {"camera_angle_x": 0.7 (or "x_fov" in degrees, or "fl_x" in pixels; y likewise), "cx": .., "cy": .., "w": .., "h": ..,
   "k1": .., "k2": .., "p1": .., "p2": .. (with "is_fisheye": k1 .. k4), "aabb_scale": 4, "scale": 0.33, "offset": [..],
   "frames": [{"file_path": "images/0001.jpg", "transform_matrix": 4x4}, ...]}

A frame may override the file's camera. Poses are camera-to-world with OpenGL axes, in the file's own world. instant-ngp
moves them into its unit cube: it negates their y and z columns (OpenCV's axes), takes positions to `scale * t + offset`
and cycles the axes (x, y, z) <- (y, z, x); its box is 0.5 +- aabb_scale / 2 on every axis. Here poses stay in the file's
world, and the box is taken back to it: (0.5 +- aabb_scale / 2 - offset) / scale, which no cycling changes since `offset`
is added before it.

Files named transforms_train.json and so for val and test keep their split; what several files list is one frame.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxedit.scene.frames import (
    COEFFICIENT_NAMES,
    SPLITS,
    Capture,
    Frame,
    Intrinsics,
    checked_intrinsics,
    checked_pose,
    first_size,
    frame_names,
    lens_of,
    merged,
)
from jaxedit.scene.records import (
    brief,
    checked_number,
    frame_records,
    matrix,
    number,
    read_json,
    whole,
)
from jaxedit.scene.scene import Split
from jaxvid.core.errors import UserError

# What would change pixels or rays, and is not read; refused where it is set.
_REFUSED = (
    "rolling_shutter", "ftheta_p0", "latlong", "equirectangular", "white_transparent",
    "black_transparent", "fix_premult", "normal_mts_args", "transform_matrix_end",
)  # fmt: skip
_OFF = (None, False, 0, 0.0, [0, 0, 0], [0, 0, 0, 0])


def found(root: Path) -> bool:
    """Whether transforms.json bears instant-ngp's marks and no camera model, which is nerfstudio's."""
    path = root / "transforms.json"
    if not path.is_file():
        return False
    meta = read_json(path)
    marks = ("aabb_scale", "camera_angle_x", "camera_angle_y", "x_fov", "y_fov", "is_fisheye")
    return "camera_model" not in meta and any(mark in meta for mark in marks)


def read(root: Path) -> Capture:
    """The frames of all files, by name."""
    paths = sorted(root.glob("transforms*.json"))
    if not paths:
        raise UserError(f"{root}: no transforms.json; give the folder that holds it")
    metas = {path: read_json(path) for path in paths}
    boxes = {path: _box(meta, str(path)) for path, meta in metas.items()}
    for path, box in boxes.items():
        if not np.array_equal(box, boxes[paths[0]]):
            raise UserError(
                f"{path}: aabb_scale, scale or offset differ from {paths[0].name}'s; make them equal"
            )
    names = {
        path: frame_names(root, frame_records(meta, path), path) for path, meta in metas.items()
    }
    size = None
    if any("w" not in meta or "h" not in meta for meta in metas.values()):
        size = first_size(root, [name for listed in names.values() for name in listed], str(root))
    frames = [
        frame for path, meta in metas.items() for frame in _frames(path, meta, names[path], size)
    ]
    ordered = sorted(merged(frames, str(root)), key=lambda frame: frame.name)
    return Capture("instant_ngp", str(root), ordered, box=boxes[paths[0]], upright=False)


def _frames(
    path: Path, meta: dict[str, Any], names: list[str], size: tuple[int, int] | None
) -> Iterator[Frame]:
    splits: tuple[Split, ...] = tuple(
        split for split in SPLITS if path.stem == f"transforms_{split}"
    )
    for i, (name, record) in enumerate(zip(names, meta["frames"], strict=True)):
        where = f"{path}: frame {i} ({name})"
        camera = {**meta, **record}
        for key in _REFUSED:
            if camera.get(key) not in _OFF:
                raise UserError(
                    f"{where}: {key} is {brief(camera[key])}, which is not read; bake it into the images"
                )
        pose = matrix(record.get("transform_matrix"), 4, 4, "transform_matrix", where)
        yield Frame(name, checked_pose(pose, where), _intrinsics(camera, size, where), splits)


def _intrinsics(camera: dict[str, Any], size: tuple[int, int] | None, where: str) -> Intrinsics:
    if size is None or ("w" in camera and "h" in camera):
        size = whole(camera, "w", where), whole(camera, "h", where)
    width, height = size
    fl_x, fl_y = (
        _focal(camera, axis, length, where)
        for axis, length in zip("xy", (width, height), strict=True)
    )
    fl_x, fl_y = fl_x or fl_y, fl_y or fl_x
    if fl_x is None or fl_y is None:
        raise UserError(f"{where}: no focal length; add camera_angle_x (radians) or fl_x (pixels)")
    fisheye = camera.get("is_fisheye", False)
    if not isinstance(fisheye, bool):
        raise UserError(f"{where}: is_fisheye is {brief(fisheye)}; give true or false")
    coefficients = {key: number(camera, key, where, 0.0) for key in COEFFICIENT_NAMES["opencv"]}
    if not fisheye and (coefficients["k3"] or coefficients["k4"]):
        # instant-ngp keeps k3 and p1, and k4 and p2, in one place, so what such a file means is open.
        raise UserError(f"{where}: k3 or k4 without is_fisheye; this layout has k1, k2, p1 and p2")
    lens, distortion = lens_of("OPENCV_FISHEYE" if fisheye else "OPENCV", coefficients, where)
    centre = number(camera, "cx", where, width / 2), number(camera, "cy", where, height / 2)
    intrinsics = Intrinsics((fl_x, fl_y), centre, width, height, lens, distortion)
    return checked_intrinsics(intrinsics, where)


def _focal(camera: dict[str, Any], axis: str, length: int, where: str) -> float | None:
    """The focal length along an axis, of the first of instant-ngp's three keys; they must not contradict each other."""
    found: dict[str, float] = {}
    for key, radians in (
        (f"{axis}_fov", math.pi / 180),
        (f"fl_{axis}", None),
        (f"camera_angle_{axis}", 1.0),
    ):
        if key not in camera:
            continue
        value = number(camera, key, where)
        if radians is not None:
            if not 0.0 < value * radians < math.pi:
                raise UserError(
                    f"{where}: {key} is {value:g}; an angle of view is between 0 and 180 degrees"
                )
            value = 0.5 * length / math.tan(0.5 * value * radians)
        found[key] = value
    values = list(found.values())
    if len(values) > 1 and max(values) - min(values) > 1e-3 * abs(values[0]):
        raise UserError(
            f"{where}: {' and '.join(found)} mean focal lengths of {' and '.join(f'{v:g}' for v in values)} pixels; keep one"
        )
    return values[0] if values else None


def _box(meta: dict[str, Any], where: str) -> Float[np.ndarray, "2 3"]:
    """instant-ngp's box in the file's world."""
    side = number(meta, "aabb_scale", where, 1.0)
    if side not in [2.0**k for k in range(8)]:
        raise UserError(f"{where}: aabb_scale is {side:g}; give a power of 2 up to 128")
    if "aabb" in meta:
        # A box in the file's world stands for the unit cube around its middle.
        corners = matrix(meta["aabb"], 2, 3, "aabb", where)
        length = np.abs(corners[1] - corners[0]).max()
        if length < 1e-6:
            raise UserError(f"{where}: aabb is {brief(meta['aabb'])}; give two corners")
        half = np.full(3, 0.5 * side * length)
        middle = corners.mean(axis=0)
        return np.stack([middle - half, middle + half])
    scale = number(meta, "scale", where, 0.33)
    if scale < 1e-6:
        raise UserError(f"{where}: scale is {scale:g}; give a positive number")
    offset = meta.get("offset", 0.5)
    offset = offset if isinstance(offset, list) else [offset] * 3
    if len(offset) != 3:
        raise UserError(f"{where}: offset is {brief(offset)}; give three numbers")
    middle = np.array([0.5 - checked_number(value, "offset", where) for value in offset])
    return np.stack([middle - 0.5 * side, middle + 0.5 * side]) / scale
