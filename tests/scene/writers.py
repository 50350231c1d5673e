"""Writes one small scene in every layout that the loaders read, by the layouts' own descriptions.

Conventions are converted here with explicit columns and scipy, not with the library's functions.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from jaxedit.scene.cameras import Cameras
from jaxedit.scene.lenses import Lens

MILD = {
    "pinhole": [],
    "opencv": [-0.12, 0.03, 0.002, -0.001, 0.0007, -0.0011],
    "fisheye": [-0.04, 0.01, -0.003, 0.0005],
}
COLMAP_MODELS = {
    "SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV": 4, "OPENCV_FISHEYE": 5,
}  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """A scene as it is: cameras with float64 arrays, images [n, h, w, 3 or 4], and stems of names."""

    cameras: Cameras
    images: np.ndarray
    stems: list[str]

    def __len__(self):
        return len(self.stems)


def make_truth(
    lens: Lens = "pinhole",
    *,
    square=False,
    count=6,
    width=12,
    height=8,
    channels=4,
    seed=0,
    keep=None,
) -> Truth:
    """Random rotations about 4 from the origin, random pixels.

    square: equal focal lengths and the centre in the middle, as some layouts have it.
    keep: how many distortion coefficients are other than 0 (OPENCV of COLMAP has k1 k2 p1 p2: the list of their places).
    """
    rng = np.random.default_rng(seed)
    position = rng.normal(size=(count, 3))
    position *= rng.uniform(3.7, 4.3, (count, 1)) / np.linalg.norm(position, axis=-1, keepdims=True)
    rotation = Rotation.from_quat(rng.normal(size=(count, 4))).as_matrix()
    focal = rng.uniform(14.0, 18.0, (1, 1) if square else (1, 2)) * np.ones((count, 2))
    centre = np.array([width / 2, height / 2]) + (0 if square else rng.uniform(-1, 1, 2))
    distortion = np.array(MILD[lens])
    if keep is not None:
        distortion = np.where(np.isin(np.arange(len(distortion)), keep), distortion, 0.0)
    cameras = Cameras(
        pose=np.concatenate([rotation, position[..., None]], axis=-1),
        focal=focal,
        centre=np.tile(centre, (count, 1)),
        distortion=np.tile(distortion, (count, 1)).reshape(count, -1),
        lens=lens,
        width=width,
        height=height,
    )
    images = rng.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    return Truth(cameras, images, [f"view_{i:02d}" for i in range(count)])


def save_images(folder: Path, truth: Truth, index=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(len(truth)) if index is None else index:
        Image.fromarray(truth.images[i]).save(folder / f"{truth.stems[i]}.png")


def write_json(path: Path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, default=float))


def four_by_four(pose):
    return np.vstack([pose, [0.0, 0.0, 0.0, 1.0]]).tolist()


def thirds(truth):
    """Every third view to one of the splits."""
    index = range(len(truth))
    return {"train": index[0::3], "val": index[1::3], "test": index[2::3]}


def write_blender(root: Path, truth: Truth, splits=None):
    cameras = truth.cameras
    for split, index in (splits or thirds(truth)).items():
        save_images(root / split, truth, index)
        frames = [
            {
                "file_path": f"./{split}/{truth.stems[i]}",
                "rotation": 0.0314,
                "transform_matrix": four_by_four(cameras.pose[i]),
            }
            for i in index
        ]
        angle = 2 * math.atan(0.5 * cameras.width / cameras.focal[0, 0])
        write_json(root / f"transforms_{split}.json", {"camera_angle_x": angle, "frames": frames})


def write_voxe(root: Path, truth: Truth, splits=None):
    """splits: None writes one camera_params.json with images/."""
    cameras = truth.cameras
    for split, index in (splits or {None: range(len(truth))}).items():
        save_images(root / (split or "images"), truth, index)
        records = {}
        for i in index:
            rotation, translation = cameras.pose[i, :, :3], cameras.pose[i, :, 3:]
            records[f"{truth.stems[i]}.png"] = {
                "intrinsic": {
                    "bounds": [2.0, 6.0],
                    "height": cameras.height,
                    "width": cameras.width,
                    "focal": cameras.focal[i, 0],
                },
                "extrinsic": {"rotation": rotation.tolist(), "translation": translation.tolist()},
            }
        write_json(root / f"{split + '_' if split else ''}camera_params.json", records)


def camera_values(truth: Truth, i=0):
    """fl_x .. h and the coefficients by nerfstudio's names."""
    cameras = truth.cameras
    names = {"pinhole": [], "opencv": ["k1", "k2", "k3", "k4", "p1", "p2"]}
    names["fisheye"] = ["k1", "k2", "k3", "k4"]
    values = {
        "fl_x": cameras.focal[i, 0],
        "fl_y": cameras.focal[i, 1],
        "cx": cameras.centre[i, 0],
        "cy": cameras.centre[i, 1],
        "w": cameras.width,
        "h": cameras.height,
    }
    coefficients = dict(zip(names[cameras.lens], cameras.distortion[i].tolist(), strict=True))
    return values | {key: value for key, value in coefficients.items() if value}


def frame_values(truth: Truth, folder="images"):
    return [
        {
            "file_path": f"{folder}/{truth.stems[i]}.png",
            "transform_matrix": four_by_four(truth.cameras.pose[i]),
        }
        for i in range(len(truth))
    ]


def write_nerfstudio(root: Path, truth: Truth, model, *, per_frame=False, listed=False, **extra):
    """listed: distortion as one list; extra: further entries of the file's head."""
    save_images(root / "images", truth)
    frames = frame_values(truth)[::-1]  # the loader sorts
    for i, frame in enumerate(frames):
        if per_frame:
            frame.update(camera_values(truth, len(truth) - 1 - i))
    head = {"camera_model": model, **({} if per_frame else camera_values(truth)), **extra}
    if listed:
        head["distortion_params"] = [head.pop(f"{key}", 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2")]  # fmt: skip
    write_json(root / "transforms.json", {**head, "frames": frames})


def write_instant_ngp(root: Path, truth: Truth, *, angle=None, files=1, **extra):
    """angle: "radians" or "degrees" gives the focal lengths so, without w and h. files: frames spread over so many."""
    cameras = truth.cameras
    save_images(root / "images", truth)
    head = camera_values(truth)
    if cameras.lens == "fisheye":
        head["is_fisheye"] = True
    if angle:
        fields = 2 * np.arctan(0.5 * np.array([cameras.width, cameras.height]) / cameras.focal[0])
        for key in ("fl_x", "fl_y", "w", "h"):
            head.pop(key)
        for axis, field in zip("xy", fields, strict=True):
            if angle == "degrees":
                head[f"{axis}_fov"] = math.degrees(field)
            else:
                head[f"camera_angle_{axis}"] = field
    head = {"aabb_scale": 4, **head, **extra}
    frames = frame_values(truth)
    for i in range(files):
        name = "transforms.json" if i == 0 else f"transforms_{i}.json"
        write_json(root / name, {**head, "frames": frames[i::files]})


def write_llff(root: Path, truth: Truth, folder="images", bounds=(2.0, 6.0)):
    """Rows of [down, right, backwards | position | h, w, f], near, far."""
    save_images(root / folder, truth)
    cameras, rows = truth.cameras, []
    for i in range(len(truth)):
        right, up, back, position = cameras.pose[i].T
        size = [cameras.height, cameras.width, cameras.focal[i, 0]]
        rows.append([*np.stack([-up, right, back, position, size], axis=1).ravel(), *bounds])
    np.save(root / "poses_bounds.npy", np.array(rows))


def colmap_parameters(truth: Truth, model, i=0):
    (fx, fy), (cx, cy) = truth.cameras.focal[i], truth.cameras.centre[i]
    k = [*truth.cameras.distortion[i], 0.0, 0.0]
    return {
        "SIMPLE_PINHOLE": [fx, cx, cy],
        "PINHOLE": [fx, fy, cx, cy],
        "SIMPLE_RADIAL": [fx, cx, cy, k[0]],
        "RADIAL": [fx, cx, cy, k[0], k[1]],
        "OPENCV": [fx, fy, cx, cy, k[0], k[1], *truth.cameras.distortion[i][4:]],
        "OPENCV_FISHEYE": [fx, fy, cx, cy, *k[:4]],
    }[model]


def colmap_image(pose):
    """Quaternion (w, x, y, z) and translation of world to OpenCV camera."""
    to_world = np.eye(4)
    to_world[:3] = pose
    to_camera = np.diag([1.0, -1.0, -1.0, 1.0]) @ np.linalg.inv(to_world)
    x, y, z, w = Rotation.from_matrix(to_camera[:3, :3]).as_quat()
    return [w, x, y, z], to_camera[:3, 3].tolist()


def write_colmap(
    root: Path, truth: Truth, model, kind="bin", *, folder="images", points=None, seen=None
):
    """points: [p, 3]; seen: for each image the indices of the points that it sees."""
    save_images(root / folder, truth)
    points = np.zeros((0, 3)) if points is None else points
    seen = [[] for _ in range(len(truth))] if seen is None else seen
    out = root / "sparse/0"
    out.mkdir(parents=True)
    write = _write_colmap_binary if kind == "bin" else _write_colmap_text
    write(out, truth, model, points, seen)


def _write_colmap_binary(out, truth, model, points, seen):
    cameras = truth.cameras
    parameters = colmap_parameters(truth, model)
    data = struct.pack("<QiiQQ", 1, 1, COLMAP_MODELS[model], cameras.width, cameras.height)
    (out / "cameras.bin").write_bytes(data + struct.pack(f"<{len(parameters)}d", *parameters))
    data = struct.pack("<Q", len(truth))
    for i in range(len(truth)):
        q, t = colmap_image(cameras.pose[i])
        data += struct.pack("<i7di", i + 1, *q, *t, 1) + f"{truth.stems[i]}.png".encode() + b"\0"
        # One place in each image saw nothing that was reconstructed.
        data += struct.pack("<Q", len(seen[i]) + 1) + struct.pack("<ddq", 1.0, 2.0, -1)
        for point in seen[i]:
            data += struct.pack("<ddq", 3.0, 4.0, point + 10)
    (out / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(points))
    for j, point in enumerate(points):
        track = [i for i in range(len(truth)) if j in seen[i]]
        data += struct.pack("<Q3d3BdQ", j + 10, *point, 1, 2, 3, 0.5, len(track))
        data += b"".join(struct.pack("<ii", i + 1, 0) for i in track)
    (out / "points3D.bin").write_bytes(data)


def _write_colmap_text(out, truth, model, points, seen):
    cameras = truth.cameras
    words = [1, model, cameras.width, cameras.height, *colmap_parameters(truth, model)]
    (out / "cameras.txt").write_text(
        "# Camera list\n# Number of cameras: 1\n" + " ".join(map(str, words)) + "\n"
    )
    lines = ["# Image list", f"# Number of images: {len(truth)}, mean observations per image: 1"]
    for i in range(len(truth)):
        q, t = colmap_image(cameras.pose[i])
        lines.append(" ".join(map(str, [i + 1, *q, *t, 1, f"{truth.stems[i]}.png"])))
        lines.append(" ".join(f"3.0 4.0 {point + 10}" for point in seen[i]))
    (out / "images.txt").write_text("\n".join(lines) + "\n")
    lines = [f"# Number of points: {len(points)}, mean track length: 1"]
    for j, point in enumerate(points):
        track = [f"{i + 1} 0" for i in range(len(truth)) if j in seen[i]]
        lines.append(" ".join(map(str, [j + 10, *point, 1, 2, 3, 0.5, *track])))
    (out / "points3D.txt").write_text("\n".join(lines) + "\n")
