"""What a run keeps of its scene: cameras, bounds and the transform from the file's world, as JSON without images.

A fitted scene can be rendered, exported and edited from this alone, and what is exported can be put back into the
file's world.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxedit.scene.cameras import Cameras
from jaxedit.scene.poses import Similarity
from jaxedit.scene.scene import Scene, Split
from jaxvid.core.errors import UserError

FILE = "scene.json"


@dataclass(frozen=True)
class SceneRecord:
    """A scene without its images: `cameras` and image `names` by split, and the rest of a `Scene`'s world."""

    format: str
    box: Float[np.ndarray, "2 3"] | None
    near: float
    far: float
    transform: Similarity
    applied: Similarity
    cameras: dict[Split, Cameras]
    names: dict[Split, tuple[str, ...]]

    @classmethod
    def of(cls, scene: Scene) -> "SceneRecord":
        """The record of a loaded scene."""
        return cls(
            format=scene.format,
            box=scene.box,
            near=scene.near,
            far=scene.far,
            transform=scene.transform,
            applied=scene.applied,
            cameras={split: views.cameras for split, views in scene.views.items()},
            names={split: views.names for split, views in scene.views.items()},
        )


def write_record(record: SceneRecord, path: Path) -> None:
    """Writes the record, whole or not at all."""
    data = {
        "format": record.format,
        "box": None if record.box is None else record.box.tolist(),
        "near": record.near,
        "far": record.far,
        "transform": _stored(record.transform),
        "applied": _stored(record.applied),
        "convention": "camera-to-world 3x4, OpenGL axes; pixel (0, 0) is the first pixel's outer corner",
        "cameras": {
            split: {
                "lens": cameras.lens,
                "width": cameras.width,
                "height": cameras.height,
                "names": list(record.names[split]),
                "pose": np.asarray(cameras.pose).tolist(),
                "focal": np.asarray(cameras.focal).tolist(),
                "centre": np.asarray(cameras.centre).tolist(),
                "distortion": np.asarray(cameras.distortion).tolist(),
            }
            for split, cameras in record.cameras.items()
        },
    }
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(data, indent=1))
    os.replace(temporary, path)


def read_record(path: Path) -> SceneRecord:
    """Reads what `write_record` wrote. Raises UserError when it is absent or damaged."""
    try:
        data: Any = json.loads(path.read_text())
        return SceneRecord(
            format=data["format"],
            box=None if data["box"] is None else np.array(data["box"], np.float64).reshape(2, 3),
            near=float(data["near"]),
            far=float(data["far"]),
            transform=_similarity(data["transform"]),
            applied=_similarity(data["applied"]),
            cameras={split: _cameras(stored) for split, stored in data["cameras"].items()},
            names={split: tuple(stored["names"]) for split, stored in data["cameras"].items()},
        )
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} is not a fitted scene: it has no {path.name}; check the path"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it from a copy") from None


def _stored(similarity: Similarity) -> dict[str, Any]:
    return {
        "scale": similarity.scale,
        "rotation": similarity.rotation.tolist(),
        "translation": similarity.translation.tolist(),
    }


def _similarity(stored: dict[str, Any]) -> Similarity:
    return Similarity(
        float(stored["scale"]),
        np.array(stored["rotation"], np.float64).reshape(3, 3),
        np.array(stored["translation"], np.float64).reshape(3),
    )


def _cameras(stored: dict[str, Any]) -> Cameras:
    pose = np.array(stored["pose"], np.float32).reshape(-1, 3, 4)
    count = len(pose)
    return Cameras(
        pose=pose,
        focal=np.array(stored["focal"], np.float32).reshape(count, 2),
        centre=np.array(stored["centre"], np.float32).reshape(count, 2),
        distortion=np.array(stored["distortion"], np.float32).reshape(count, -1),
        lens=stored["lens"],
        width=int(stored["width"]),
        height=int(stored["height"]),
    )
