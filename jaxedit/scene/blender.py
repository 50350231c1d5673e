"""NeRF-synthetic scenes, as Blender scripts write them (Mildenhall et al. 2020).

  transforms_train.json, transforms_val.json, transforms_test.json
      {"camera_angle_x": 0.69, "frames": [{"file_path": "./train/r_0", "transform_matrix": 4x4}, ...]}
  train/r_0.png, ...

`camera_angle_x` is the angle of view over the image's whole width; `file_path` lacks its ".png"; poses are
camera-to-world with OpenGL axes. Only listed images are read, so the depth and normal maps beside them are not.
The object stands in a box of 1.5 around the origin, and is seen between distances 2 and 6.
"""

import math
from pathlib import Path

import numpy as np

from jaxedit.scene.frames import (
    SPLITS,
    Capture,
    Frame,
    Intrinsics,
    checked_intrinsics,
    checked_pose,
    first_size,
    frame_names,
    merged,
)
from jaxedit.scene.records import frame_records, matrix, number, read_json
from jaxvid.core.errors import UserError

OBJECT_BOX = np.array([[-1.5, -1.5, -1.5], [1.5, 1.5, 1.5]])
NEAR, FAR = 2.0, 6.0

# A file with one of these describes another camera than `camera_angle_x` alone does.
_FOREIGN = ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "k3", "k4", "p1", "p2", "camera_angle_y")


def found(root: Path) -> bool:
    """Whether the folder has this layout."""
    return any((root / f"transforms_{split}.json").is_file() for split in SPLITS)


def read(root: Path) -> Capture:
    """The frames of all splits, in the order of their files."""
    rows = []
    for split in SPLITS:
        path = root / f"transforms_{split}.json"
        if not path.is_file():
            continue
        meta = read_json(path)
        for key in _FOREIGN:
            if key in meta:
                raise UserError(
                    f"{path}: has {key}, which this layout does not; load it with format instant_ngp"
                )
        angle = number(meta, "camera_angle_x", str(path))
        if not 0.0 < angle < math.pi:
            raise UserError(
                f"{path}: camera_angle_x is {angle:g}; give an angle between 0 and pi (radians)"
            )
        records = frame_records(meta, path)
        for i, name in enumerate(frame_names(root, records, path)):
            rows.append((split, f"{path}: frame {i} ({name})", name, angle, records[i]))
    if not rows:
        raise UserError(f"{root}: no transforms_train.json; give the folder that holds it")
    width, height = first_size(root, [row[2] for row in rows], str(root))
    frames = []
    for split, where, name, angle, record in rows:
        focal = 0.5 * width / math.tan(0.5 * angle)
        intrinsics = Intrinsics((focal, focal), (width / 2, height / 2), width, height)
        pose = checked_pose(
            matrix(record.get("transform_matrix"), 4, 4, "transform_matrix", where), where
        )
        frames.append(Frame(name, pose, checked_intrinsics(intrinsics, where), (split,)))
    return Capture(
        format="blender",
        source=str(root),
        frames=merged(frames, str(root)),
        box=OBJECT_BOX,
        near=NEAR,
        far=FAR,
        outside=True,
        upright=False,
    )
