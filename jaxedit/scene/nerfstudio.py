"""Captures in nerfstudio's layout: one transforms.json (Tancik et al. 2023).

  {"camera_model": "OPENCV", "fl_x": .., "fl_y": .., "cx": .., "cy": .., "w": .., "h": .., "k1": .., ...,
   "frames": [{"file_path": "images/frame_00001.png", "transform_matrix": 4x4, "mask_path": ..}, ...],
   "train_filenames": [..], "val_filenames": [..], "test_filenames": [..], "applied_transform": 3x4, "applied_scale": ..}

Each camera value stands once for the file or in every frame. Poses are camera-to-world with OpenGL axes. Distortion is
k1 k2 k3 k4 p1 p2, one by one or as "distortion_params". Frames are in the order of their names. In a mask, black pixels
do not count.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxedit.scene.frames import (
    COEFFICIENT_NAMES,
    SPLITS,
    Capture,
    Frame,
    Intrinsics,
    checked_intrinsics,
    checked_pose,
    frame_names,
    image_path,
    lens_of,
    relative_path,
)
from jaxedit.scene.instant_ngp import found as is_instant_ngp
from jaxedit.scene.poses import Similarity
from jaxedit.scene.records import brief, frame_records, matrix, number, read_json, whole
from jaxedit.scene.scene import Split
from jaxvid.core.errors import UserError

_FILE = "transforms.json"
_COEFFICIENTS = COEFFICIENT_NAMES["opencv"]
_SHAPE = ("fl_x", "fl_y", "cx", "cy", "w", "h")
_OPTIONAL = ("camera_model", "distortion_params", "skew", *_COEFFICIENTS)
# Skew has no place in the lens models; below this it moves no pixel that anybody could measure.
SKEW_PIXELS = 0.01


def found(root: Path) -> bool:
    """Whether the folder has a transforms.json without the marks of instant-ngp's."""
    return (root / _FILE).is_file() and not is_instant_ngp(root)


def read(root: Path) -> Capture:
    """The frames, by name; a frame that no split lists, where there are splits, is left out."""
    path = root / _FILE
    meta = read_json(path)
    records = frame_records(meta, path)
    holders = {key: _holders(meta, records, key, path) for key in _SHAPE + _OPTIONAL}
    frames = []
    names = frame_names(root, records, path)
    for i, (name, record) in enumerate(zip(names, records, strict=True)):
        where = f"{path}: frame {i} ({name})"
        camera = {key: held[i][key] for key, held in holders.items() if held is not None}
        mask = record.get("mask_path")
        frames.append(
            Frame(
                name=name,
                pose=checked_pose(
                    matrix(record.get("transform_matrix"), 4, 4, "transform_matrix", where), where
                ),
                intrinsics=_intrinsics(camera, where),
                mask=None if mask is None else relative_path(root, mask, where),
            )
        )
    frames = _with_splits(root, meta, sorted(frames, key=lambda frame: frame.name), path)
    return Capture("nerfstudio", str(path), frames, applied=_applied(meta, path))


def _holders(
    meta: dict[str, Any], records: list[dict[str, Any]], key: str, path: Path
) -> list[dict[str, Any]] | None:
    """For each frame the object that holds `key`: the file's head or the frame; None where nothing does."""
    with_key = [i for i, record in enumerate(records) if key in record]
    if key in meta and with_key:
        raise UserError(
            f"{path}: {key} is given for the whole file and again by frame {with_key[0]}; keep one of the two"
        )
    if key in meta:
        return [meta] * len(records)
    if with_key and len(with_key) < len(records):
        without = next(i for i, record in enumerate(records) if key not in record)
        raise UserError(
            f"{path}: {len(with_key)} of {len(records)} frames give {key}, frame {without} does not; "
            "give it in all or once for the file"
        )
    return records if with_key else None


def _intrinsics(camera: dict[str, Any], where: str) -> Intrinsics:
    if "fl_x" not in camera:
        raise UserError(
            f"{where}: no intrinsics (fl_x is missing); add fl_x, fl_y, cx, cy, w and h"
        )
    fl_x, fl_y, cx, cy = (number(camera, key, where) for key in _SHAPE[:4])
    width, height = whole(camera, "w", where), whole(camera, "h", where)
    model = camera.get("camera_model", "OPENCV")
    lens, distortion = lens_of(model, _coefficients(camera, model, where), where)
    intrinsics = Intrinsics((fl_x, fl_y), (cx, cy), width, height, lens, distortion)
    checked_intrinsics(intrinsics, where)
    shift = abs(number(camera, "skew", where, 0.0)) * max(abs(cy), abs(height - cy)) / fl_y
    if shift > SKEW_PIXELS:
        raise UserError(
            f"{where}: skew moves pixels by up to {shift:.3g}, at most {SKEW_PIXELS:g} is let pass; undistort the images"
        )
    return intrinsics


def _coefficients(camera: dict[str, Any], model: Any, where: str) -> dict[str, float]:
    listed = camera.get("distortion_params")
    if listed is None:
        return {key: number(camera, key, where, 0.0) for key in _COEFFICIENTS}
    if any(key in camera for key in _COEFFICIENTS):
        raise UserError(f"{where}: distortion_params and k1..p2 are given; keep one of the two")
    names = COEFFICIENT_NAMES["fisheye"] if model == "OPENCV_FISHEYE" else _COEFFICIENTS
    if isinstance(listed, list) and len(listed) == len(_COEFFICIENTS):
        names = _COEFFICIENTS  # nerfstudio's own six, whatever the model
    values = matrix([listed], 1, len(names), "distortion_params", where)[0].tolist()
    return dict(zip(names, values, strict=True))


def _with_splits(root: Path, meta: dict[str, Any], frames: list[Frame], path: Path) -> list[Frame]:
    """The frames that {split}_filenames name, each with its splits; all frames where there are no such lists."""
    splits: dict[str, list[Split]] = {frame.name: [] for frame in frames}
    lists: dict[Split, Any] = {
        split: meta[f"{split}_filenames"] for split in SPLITS if f"{split}_filenames" in meta
    }
    for split, names in lists.items():
        where = f"{path}: {split}_filenames"
        if not isinstance(names, list):
            raise UserError(f"{where}: must be a list of paths, is {brief(names)}")
        for listed in names:
            name = image_path(root, listed, where)
            if name not in splits:
                raise UserError(f"{where}: {brief(name)} is no frame; list file_path values")
            if split in splits[name]:
                raise UserError(f"{where}: {brief(name)} is listed twice; take one out")
            if split != "train" and "train" in splits[name]:
                raise UserError(
                    f"{where}: {brief(name)} is also in train_filenames; held-out views must not be trained on"
                )
            splits[name].append(split)
    if not lists:
        return frames
    return [
        Frame(frame.name, frame.pose, frame.intrinsics, tuple(splits[frame.name]), frame.mask)
        for frame in frames
        if splits[frame.name]
    ]


def _applied(meta: dict[str, Any], path: Path) -> Similarity:
    """From the capture's original world (often COLMAP's) to the file's."""
    rotation, translation = np.eye(3), np.zeros(3)
    if "applied_transform" in meta:
        where = f"{path}: applied_transform"
        pose = matrix(meta["applied_transform"], 3, 4, "applied_transform", str(path))
        pose = checked_pose(pose, where)
        rotation, translation = pose[:, :3], pose[:, 3]
    scale = number(meta, "applied_scale", str(path), 1.0)
    if scale <= 0.0:
        raise UserError(f"{path}: applied_scale is {scale:g}; give a positive number")
    return Similarity(scale, rotation, scale * translation)
