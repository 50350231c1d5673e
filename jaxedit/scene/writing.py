"""Scenes to folders: NeRF-synthetic's layout, which most programs read."""

import io
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from jaxedit.scene.scene import Scene
from jaxvid.core.errors import UserError
from jaxvid.data.writing import write_bytes


def write_blender(scene: Scene, folder: str | Path) -> Path:
    """Writes images and transforms_SPLIT.json (`jaxedit.scene.blender`); returns the folder.

    The layout has one angle of view for all, a box of its own, and no lens: give box, near and far again when it is loaded. Raises
    UserError for cameras that it cannot express.
    """
    folder = Path(folder)
    for split, views in scene.views.items():
        cameras = views.cameras
        focal, middle = np.asarray(cameras.focal), np.asarray(cameras.centre)
        plain = cameras.lens == "pinhole" and np.ptp(focal) < 1e-4 * focal.mean()
        if not plain or not np.allclose(middle, [cameras.width / 2, cameras.height / 2], atol=1e-3):
            raise UserError(
                f"the cameras of split {split} differ or are distorted, which this layout cannot say"
            )
        frames = []
        for i, (image, pose) in enumerate(
            zip(views.images, np.asarray(cameras.pose, np.float64), strict=True)
        ):
            name = f"{split}/r_{i}"
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="PNG")
            write_bytes(folder / f"{name}.png", buffer.getvalue())
            matrix = np.concatenate([pose, [[0.0, 0.0, 0.0, 1.0]]]).tolist()
            frames.append({"file_path": f"./{name}", "transform_matrix": matrix})
        angle = 2.0 * math.atan(cameras.width / 2 / float(focal.mean()))
        text = json.dumps({"camera_angle_x": angle, "frames": frames}, indent=1)
        write_bytes(folder / f"transforms_{split}.json", text.encode())
    return folder
