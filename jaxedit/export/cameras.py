"""A scene's cameras in nerfstudio's transforms.json layout (see `jaxedit.scene.nerfstudio`)."""

import json
from typing import Any

import numpy as np

from jaxedit.scene.frames import COEFFICIENT_NAMES
from jaxedit.scene.lenses import Lens
from jaxedit.scene.poses import Similarity
from jaxedit.scene.record import SceneRecord

_MODELS: dict[Lens, str] = {
    "pinhole": "PINHOLE",
    "opencv": "OPENCV",
    "fisheye": "OPENCV_FISHEYE",
}


def transforms_json(record: SceneRecord, to_world: Similarity) -> bytes:
    """The bytes of a file of all splits' cameras, moved by `to_world` from the scene's world.

    Sizes and focal lengths are those of the images as they were fitted, which may be smaller than the files' are. Values
    that all views share stand once, at the head; there, too, what leads from the capture's original world to the file's.
    """
    frames: dict[str, dict[str, Any]] = {}
    lens: Lens = "pinhole"
    for split, cameras in record.cameras.items():
        lens = cameras.lens
        pose = to_world.poses(np.asarray(cameras.pose, np.float64))
        for i, name in enumerate(record.names[split]):
            values = zip(
                ("fl_x", "fl_y", "cx", "cy", *COEFFICIENT_NAMES[lens]),
                np.concatenate([cameras.focal[i], cameras.centre[i], cameras.distortion[i]]),
                strict=True,
            )
            frames[name] = {
                "file_path": name,
                "transform_matrix": [*pose[i].tolist(), [0.0, 0.0, 0.0, 1.0]],
                "lens": {key: float(value) for key, value in values}
                | {"w": cameras.width, "h": cameras.height},
            }
    lenses = [frame.pop("lens") for frame in frames.values()]
    head: dict[str, Any] = {"camera_model": _MODELS[lens]}
    if all(values == lenses[0] for values in lenses):
        head |= lenses[0]
    else:
        for frame, values in zip(frames.values(), lenses, strict=True):
            frame |= values
    applied = to_world.after(record.transform).after(record.applied)
    if not applied.is_identity():
        # nerfstudio applies the scale last, to the moved points.
        moved = np.concatenate(
            [applied.rotation, applied.translation[:, None] / applied.scale], axis=1
        )
        head |= {"applied_transform": moved.tolist(), "applied_scale": applied.scale}
    head |= {f"{split}_filenames": list(names) for split, names in record.names.items()}
    head["frames"] = list(frames.values())
    return json.dumps(head, indent=1).encode()
