"""A folder of posed images to a `Scene`, whatever its layout.

    blender        transforms_{train,val,test}.json      nerfstudio   transforms.json
    instant_ngp    transforms*.json                      llff         poses_bounds.npy
    colmap         sparse/0/                             voxe         {split}_camera_params.json

A format's reader turns its files into a `Capture`; the rest is the same for all and is here: which images exist, their
sizes, the lens that all views share, splits, the upright world, bounds, and at last the pixels.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Bool

from jaxedit.scene import blender, colmap, instant_ngp, llff, nerfstudio, voxe
from jaxedit.scene.bounds import known_bounds
from jaxedit.scene.cameras import Cameras
from jaxedit.scene.frames import (
    SPLITS,
    Capture,
    Frame,
    Intrinsics,
    distorted_radius,
    lens_reach,
    no_images,
)
from jaxedit.scene.images import Alpha, ImageInfo, image_info, read_image, read_mask
from jaxedit.scene.lenses import COEFFICIENTS, Lens
from jaxedit.scene.poses import Similarity, upright
from jaxedit.scene.records import LARGEST, brief
from jaxedit.scene.scene import Scene, Split, Views
from jaxvid.core.errors import UserError

Format: TypeAlias = Literal["blender", "nerfstudio", "instant_ngp", "llff", "colmap", "voxe"]

SCENE_BYTES = 4 << 30  # of decoded pixels of all views

# For each format: does the folder have its layout, and the reader.
_LAYOUTS: dict[Format, tuple[Callable[[Path], bool], Callable[[Path], Capture]]] = {
    "blender": (blender.found, blender.read),
    "nerfstudio": (nerfstudio.found, nerfstudio.read),
    "instant_ngp": (instant_ngp.found, instant_ngp.read),
    "llff": (llff.found, llff.read),
    "colmap": (colmap.found, colmap.read),
    "voxe": (voxe.found, voxe.read),
}


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """A scene on disk and how to take it.

    path: its folder. format: the layout; "auto" looks for the file that marks each.
    size: the longest side of the images in pixels, by area averaging; None keeps theirs. Never enlarges.
    alpha: what the files' RGBA images hold.
    hold_out: every so many views are the test split, from the first on, where the files have no splits; 0 for none.
    upright: turn the cameras' mean up to +z, centre them and scale the farthest to distance 1; None does so where the
        world's axes mean nothing (nerfstudio, LLFF, COLMAP) and not where the file's box belongs to them.
    box, near, far: instead of the file's bounds, in the scene's world (after `upright`).
    """

    path: str
    format: Literal["auto"] | Format = "auto"
    size: int | None = None
    alpha: Alpha = "straight"
    hold_out: int = 8
    upright: bool | None = None
    box: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    near: float | None = None
    far: float | None = None

    def __post_init__(self):
        if self.format not in ("auto", *get_args(Format)):
            raise UserError(
                f"format is {brief(self.format)}; give auto, {', '.join(get_args(Format))}"
            )
        if self.size is not None and self.size < 1:
            raise UserError(f"size is {self.size}; give a number of pixels, at least 1")
        if self.alpha not in get_args(Alpha):
            raise UserError(f"alpha is {brief(self.alpha)}; give {' or '.join(get_args(Alpha))}")
        if self.hold_out < 0 or self.hold_out == 1:
            raise UserError(f"hold_out is {self.hold_out}; give 0 for none, or 2 and more")
        if self.box is not None:
            low, high = np.array(self.box, np.float64)
            if not (np.abs([low, high]) <= LARGEST).all() or not (low < high).all():
                raise UserError(f"box is {brief(self.box)}; give its lowest and its highest corner")
        for name, value in (("near", self.near), ("far", self.far)):
            if value is not None and not 0.0 < value <= LARGEST:
                raise UserError(f"{name} is {value:g}; give a positive distance")


def load_scene(config: SceneConfig) -> Scene:
    """Reads the scene of `config`.

    Listed images that are absent are left out and named in `Scene.missing`. Raises `UserError`, in one line, for
    anything that would make the scene wrong: see the readers, `checked_pose`, `checked_intrinsics` and `known_bounds`.
    """
    root = Path(os.path.abspath(config.path))
    if not root.is_dir():
        raise UserError(f"{config.path}: no such folder; give the folder that holds the scene")
    name = _detected(root) if config.format == "auto" else config.format
    capture = _LAYOUTS[name][1](root)
    frames, missing = _present(root, capture)
    info = _image_info(root, frames, capture)
    width, height = _target_size(info, config.size)
    members = _members(capture.frames, frames, config.hold_out)
    _check_bytes(members, frames, width, height, info.has_alpha, capture.source)

    poses = np.stack([frame.pose for frame in capture.frames])
    turned = capture.upright if config.upright is None else config.upright
    transform = upright(poses) if turned else Similarity.identity()
    box, near, far = known_bounds(
        capture,
        transform,
        transform.points(poses[:, :, 3]),
        box=None if config.box is None else np.array(config.box, np.float64),
        near=config.near,
        far=config.far,
    )
    cameras = _cameras(frames, transform, capture.source).resized(width, height)
    return Scene(
        views={
            split: _views(
                root, [frames[i] for i in index], cameras.select(index), info, config.alpha
            )
            for split, index in members.items()
        },
        box=box,
        near=near,
        far=far,
        format=capture.format,
        transform=transform,
        applied=capture.applied,
        missing=missing,
    )


def describe(scene: Scene) -> str:
    """A few lines for people: views, size, what is missing, bounds, and the scale of the upright world."""
    first = next(iter(scene.views.values()))
    kind = "RGB" if first.images.shape[-1] == 3 else "RGBA"
    counts = ", ".join(f"{len(views)} {split}" for split, views in scene.views.items())
    camera = first.cameras
    lines = [
        f"format   {scene.format}",
        f"views    {counts}; {camera.width}x{camera.height} {kind}, {camera.lens} lens",
    ]
    if scene.missing:
        lines.append(
            f"missing  {len(scene.missing)} listed images, the first is {scene.missing[0]}"
        )
    masks = [views.masks for views in scene.views.values() if views.masks is not None]
    if masks:
        share = np.mean([1.0 - mask.mean() for mask in masks])
        lines.append(f"masked   {share:.1%} of the pixels")
    if scene.box is None:
        lines.append("box      none")
    else:
        low, high = (" ".join(f"{x:.3g}" for x in corner) for corner in scene.box)
        lines.append(f"box      {low} to {high}")
    lines.append(f"range    near {scene.near:.3g}, far {scene.far:.3g}")
    if not np.array_equal(scene.transform.rotation, np.eye(3)) or scene.transform.scale != 1.0:
        lines.append(
            f"upright  turned, centred, scaled by {scene.transform.scale:.4g} from the file's world"
        )
    return "\n".join(lines)


def _detected(root: Path) -> Format:
    formats: list[Format] = [name for name, (found, _) in _LAYOUTS.items() if found(root)]
    if not formats:
        raise UserError(
            f"{root}: no scene found (transforms.json, transforms_train.json, poses_bounds.npy, sparse/0, "
            "train_camera_params.json); give the folder that holds one"
        )
    if len(formats) > 1:
        raise UserError(
            f"{root}: holds several layouts ({', '.join(formats)}); set format to one of them"
        )
    return formats[0]


def _present(root: Path, capture: Capture) -> tuple[list[Frame], tuple[str, ...]]:
    """The frames whose image exists, and the names of the others."""
    names = [frame.name for frame in capture.frames]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"{capture.source}: {twice} is listed twice; take one out")
    frames = [frame for frame in capture.frames if os.path.isfile(root / frame.name)]
    if not frames:
        raise no_images(capture.source, names)
    if len(frames) == 1:
        raise UserError(
            f"{capture.source}: only one view ({frames[0].name}); a scene needs at least two"
        )
    there = {frame.name for frame in frames}
    return frames, tuple(name for name in names if name not in there)


def _image_info(root: Path, frames: list[Frame], capture: Capture) -> ImageInfo:
    """The size that all images share; an alpha channel if any has one. Reads headers only."""
    infos = [image_info(root / frame.name) for frame in frames]
    width, height, _ = infos[0]
    for frame, info in zip(frames, infos, strict=True):
        size = f"{capture.source}: {frame.name} has {info.width}x{info.height} pixels"
        if (info.width, info.height) != (width, height):
            raise UserError(
                f"{size}, {frames[0].name} has {width}x{height}; make all images of one size"
            )
        i = frame.intrinsics
        first = frames[0].intrinsics
        if (i.width, i.height) != (first.width, first.height):
            raise UserError(
                f"{capture.source}: {frame.name} belongs to a camera of {i.width}x{i.height} pixels, {frames[0].name} "
                f"to one of {first.width}x{first.height}; make all images of one size"
            )
        # Sizes of shrunk images are rounded, so their ratio is right up to a pixel.
        same_ratio = abs(width * i.height - height * i.width) <= max(i.width, i.height)
        if (i.width, i.height) != (width, height) and not (capture.any_size and same_ratio):
            raise UserError(
                f"{size}, its camera {i.width}x{i.height}; correct the camera's size or restore the images"
            )
    return ImageInfo(width, height, any(info.has_alpha for info in infos))


def _target_size(info: ImageInfo, size: int | None) -> tuple[int, int]:
    longest = max(info.width, info.height)
    if size is None or size >= longest:
        return info.width, info.height
    # Halves up, as sizes are usually rounded.
    width, height = (max(1, math.floor(side * size / longest + 0.5)) for side in info[:2])
    return width, height


def _members(listed: list[Frame], frames: list[Frame], hold_out: int) -> dict[Split, list[int]]:
    """Indices into `frames` by split, without empty splits.

    Held-out views are counted among all *listed* frames, so that a lost image moves no other into another split.
    """
    splits: dict[str, tuple[Split, ...]] = {frame.name: frame.splits for frame in listed}
    if any(splits.values()):
        splits = {name: own or ("train",) for name, own in splits.items()}
    else:
        held = {frame.name for i, frame in enumerate(listed) if hold_out and i % hold_out == 0}
        splits = {name: ("test",) if name in held else ("train",) for name in splits}
    members: dict[Split, list[int]] = {
        split: [i for i, frame in enumerate(frames) if split in splits[frame.name]]
        for split in SPLITS
    }
    return {split: index for split, index in members.items() if index}


def _check_bytes(
    members: dict[Split, list[int]],
    frames: list[Frame],
    width: int,
    height: int,
    has_alpha: bool,
    source: str,
) -> None:
    views = sum(len(index) for index in members.values())
    channels = 3 + has_alpha + any(frame.mask is not None for frame in frames)
    size = views * width * height * channels
    if size > SCENE_BYTES:
        fits = math.floor(max(width, height) * math.sqrt(SCENE_BYTES / size))
        raise UserError(
            f"{source}: {views} views of {width}x{height} take {size / 2**30:.1f} GiB, at most "
            f"{SCENE_BYTES / 2**30:.0f} are held; set size to {fits} or less"
        )


def _cameras(frames: list[Frame], transform: Similarity, source: str) -> Cameras:
    """All frames' cameras in the scene's world, in float32 at last; pinholes among distorted lenses get zeros."""
    lenses: set[Lens] = {frame.intrinsics.lens for frame in frames}
    if "fisheye" in lenses and len(lenses) > 1:
        other = next(frame for frame in frames if frame.intrinsics.lens != "fisheye")
        raise UserError(
            f"{source}: {other.name} has a {other.intrinsics.lens} lens, others are fisheyes; split the scene"
        )
    lens: Lens = "opencv" if "opencv" in lenses else lenses.pop()
    intrinsics = [frame.intrinsics for frame in frames]
    distortion = [i.distortion or (0.0,) * COEFFICIENTS[lens] for i in intrinsics]
    poses = transform.poses(np.stack([frame.pose for frame in frames]))
    return Cameras(
        pose=poses.astype(np.float32),
        focal=np.array([i.focal for i in intrinsics], np.float32),
        centre=np.array([i.centre for i in intrinsics], np.float32),
        distortion=np.array(distortion, np.float32).reshape(len(frames), -1),
        lens=lens,
        width=intrinsics[0].width,
        height=intrinsics[0].height,
    )


def _views(
    root: Path, frames: list[Frame], cameras: Cameras, info: ImageInfo, alpha: Alpha
) -> Views:
    width, height = cameras.width, cameras.height
    channels = 3 + info.has_alpha
    images = np.empty((len(frames), height, width, channels), np.uint8)
    for i, frame in enumerate(frames):
        images[i] = read_image(root / frame.name, width, height, channels=channels, alpha=alpha)
    masks = [_mask(root, frame, info, width, height) for frame in frames]
    return Views(
        cameras=cameras,
        images=images,
        names=tuple(frame.name for frame in frames),
        masks=None
        if all(mask is None for mask in masks)
        else np.stack([np.ones((height, width), bool) if m is None else m for m in masks]),
    )


def _mask(
    root: Path, frame: Frame, info: ImageInfo, width: int, height: int
) -> Bool[np.ndarray, "h w"] | None:
    """Where the frame's own mask, if any, lets pixels count and the lens has a ray for them; None for everywhere."""
    mask = None
    if frame.mask is not None:
        mask = read_mask(root / frame.mask, (info.width, info.height), (width, height))
    reach = lens_reach(frame.intrinsics)
    if np.isfinite(reach):
        seen = _pixel_radius(frame.intrinsics, width, height) < reach
        if not seen.all():
            mask = seen if mask is None else mask & seen
    return mask


def _pixel_radius(intrinsics: Intrinsics, width: int, height: int) -> np.ndarray:
    u = (np.arange(width) + 0.5) * intrinsics.width / width
    v = (np.arange(height) + 0.5) * intrinsics.height / height
    return distorted_radius(intrinsics, np.stack(np.meshgrid(u, v), axis=-1))
