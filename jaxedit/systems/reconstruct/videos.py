"""`jaxedit render`: a fitted scene along a camera path, as a video or as pictures."""

import json
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from jaxtyping import Float, UInt8

from jaxedit.history import load_current
from jaxedit.render.compositing import Pixels
from jaxedit.scene.cameras import Cameras
from jaxedit.scene.paths import cameras_along, spiral, through, turntable
from jaxedit.scene.poses import Poses
from jaxedit.scene.record import SceneRecord
from jaxedit.systems.reconstruct.report import to_bytes
from jaxedit.systems.reconstruct.stored import Fitted
from jaxvid.core.errors import UserError
from jaxvid.core.progress import Progress
from jaxvid.data.writing import check_place, write_image, write_video

VIDEOS = (".mp4", ".gif")


def render_to_files(arguments: Namespace) -> Path:
    """Renders as the options say; returns what was written. Nothing is written for bad input."""
    fitted = load_current(arguments.source)
    cameras, names = path_cameras(fitted.record, arguments)
    out: Path = arguments.out
    video = out.suffix.lower() in VIDEOS
    if not video and out.suffix:
        raise UserError(f"--out is {out}; give a file ending in {' or '.join(VIDEOS)}, or a folder")
    if not video and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists; give a new or empty folder")
    check_place(out)
    frames = []
    with Progress("frames", len(cameras)) as progress:
        for index in range(len(cameras)):
            frames.append(render_frame(fitted, cameras, index, arguments.kind))
            progress.advance()
            if (index + 1) % 10 == 0 or index + 1 == len(cameras):
                progress.report({})
    pictures = to_pictures(frames, arguments.kind)
    if video:
        # Video codecs halve colours: sides must be even.
        return write_video(
            out, pictures[:, : cameras.height // 2 * 2, : cameras.width // 2 * 2], arguments.fps
        )
    for name, picture in zip(names, pictures, strict=True):
        write_image(out / name, picture)
    return out


def path_cameras(record: SceneRecord, arguments: Namespace) -> tuple[Cameras, list[str]]:
    """The cameras of the path and the names of their pictures."""
    if arguments.frames < 1:
        raise UserError(f"--frames is {arguments.frames}; give 1 or more")
    training = record.cameras["train"]
    poses = np.asarray(training.pose, np.float64)
    if arguments.path == "views":
        if arguments.split not in record.cameras:
            raise UserError(
                f"--split is {arguments.split}; the scene has {', '.join(record.cameras)}"
            )
        cameras = record.cameras[arguments.split]
        names = [f"{Path(name).stem}.png" for name in record.names[arguments.split]]
        if len(set(names)) < len(names):
            names = [f"{index:05d}.png" for index in range(len(names))]
    else:
        if arguments.path == "turntable":
            along = turntable(
                poses, arguments.frames, elevation=arguments.elevation, radius=arguments.radius
            )
        elif arguments.path == "spiral":
            along = spiral(poses, arguments.frames)
        else:
            keys, closed = read_keys(Path(arguments.path))
            along = through(keys, arguments.frames, closed=closed)
        cameras = cameras_along(along, training)
        names = [f"{index:05d}.png" for index in range(len(along))]
    if arguments.size is not None:
        if arguments.size < 1:
            raise UserError(f"--size is {arguments.size}; give a number of pixels, at least 1")
        scale = arguments.size / max(cameras.width, cameras.height)
        sides = (max(1, round(side * scale)) for side in (cameras.width, cameras.height))
        cameras = cameras.resized(*sides)
    return cameras, names


def read_keys(path: Path) -> tuple[Poses, bool]:
    """Key frames of a JSON file: {"keys": [4x4 or 3x4, ...], "closed": bool}, camera-to-world with OpenGL axes."""
    try:
        data: Any = json.loads(path.read_text())
        keys = np.array(data["keys"], np.float64)[:, :3, :4]
    except FileNotFoundError:
        raise UserError(
            f"--path {path}: no such file, and not turntable, spiral or views"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f'--path {path} is not {{"keys": [4x4 matrices]}} ({error}); correct it'
        ) from None
    turned = (
        keys[..., :3] @ np.swapaxes(keys[..., :3], 1, 2)
        if keys.ndim == 3 and keys.shape[1:] == (3, 4)
        else None
    )
    if (
        turned is None
        or not np.isfinite(keys).all()
        or np.abs(turned - np.eye(3)).max() > 1e-3
        or np.linalg.det(keys[..., :3]).min() < 0
    ):
        raise UserError(
            f"--path {path}: keys must be camera-to-world matrices with unit axes; correct it"
        )
    return keys, bool(data.get("closed", False))


def render_frame(fitted: Fitted, cameras: Cameras, index: int, kind: str) -> Pixels:
    """One camera's image; for normals the colours are (n + 1) / 2, over grey."""
    pixels = fitted.system.render_image(
        fitted.frame, fitted.state, cameras, index, fit=fitted.fit, normals=kind == "normal"
    )
    return jax.tree.map(np.asarray, pixels)


def to_pictures(frames: list[Any], kind: str) -> UInt8[np.ndarray, "n h w 3"]:
    """Bytes of rendered frames. Depth is coloured from its nearest to its farthest over all frames, white for nothing."""
    if kind != "depth":
        return np.stack([to_bytes(frame.colour) for frame in frames])
    ends = [
        end(frame.depth[frame.opacity > 0.5])
        for frame in frames
        if (frame.opacity > 0.5).any()
        for end in (np.min, np.max)
    ]
    low, high = (float(min(ends)), float(max(ends))) if ends else (0.0, 1.0)

    def shaded(frame: Any) -> np.ndarray:
        shade = colours(1.0 - (frame.depth - low) / max(high - low, math.ulp(1.0)))
        return to_bytes(np.where(frame.opacity[..., None] > 0.5, shade, 1.0))

    return np.stack([shaded(frame) for frame in frames])


def colours(values: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n 3"]:
    """Values in [0, 1] as colours, dark to bright."""
    table: Callable[..., np.ndarray] = matplotlib.colormaps["viridis"]
    return np.asarray(table(np.clip(values, 0.0, 1.0)))[..., :3].astype(np.float32)
