r"""COLMAP reconstructions (Schönberger & Frahm 2016): sparse/0/{cameras,images,points3D}.{bin,txt} and images/.

A camera is a model's name with its parameters, an image is a quaternion (w, x, y, z) and a translation that take world
points to OpenCV camera axes, x_cam = R(q) x + t. Binary files are little-endian:

  cameras    u64 n; n times: i32 id, i32 model, u64 width, u64 height, f64 parameters
  images     u64 n; n times: i32 id, f64 q[4], f64 t[3], i32 camera, name\0, u64 m, m times (f64 x, f64 y, i64 point)
  points3D   u64 n; n times: u64 id, f64 x[3], u8 rgb[3], f64 error, u64 m, m times (i32 image, i32 place)

Text files have the same values in words (points3D: id x y z r g b error, then the sights). Every count is compared with
the bytes left before anything is made of it, and a file must end where its records do.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxedit.scene.frames import (
    Capture,
    Frame,
    Intrinsics,
    checked_intrinsics,
    checked_pose,
    lens_of,
    relative_path,
)
from jaxedit.scene.llff import image_folder
from jaxedit.scene.poses import from_opencv, inverted, rotation_of_quaternion
from jaxedit.scene.records import LARGEST, brief
from jaxvid.core.errors import UserError

FILE_BYTES = 2 << 30
_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0")

# Models by their number in binary files; parameters by name. "f" stands for both focal lengths.
_MODELS: dict[int, tuple[str, str]] = {
    0: ("SIMPLE_PINHOLE", "f cx cy"),
    1: ("PINHOLE", "fx fy cx cy"),
    2: ("SIMPLE_RADIAL", "f cx cy k1"),
    3: ("RADIAL", "f cx cy k1 k2"),
    4: ("OPENCV", "fx fy cx cy k1 k2 p1 p2"),
    5: ("OPENCV_FISHEYE", "fx fy cx cy k1 k2 k3 k4"),
}
_OTHER_MODELS = {
    6: "FULL_OPENCV", 7: "FOV", 8: "SIMPLE_RADIAL_FISHEYE", 9: "RADIAL_FISHEYE",
    10: "THIN_PRISM_FISHEYE", 11: "RAD_TAN_THIN_PRISM_FISHEYE",
}  # fmt: skip
_PARAMETERS = dict(_MODELS.values())


class Image(NamedTuple):
    """One registered image: its name, quaternion, translation, camera and the ids of the points that it sees."""

    name: str
    q: tuple[float, ...]
    t: tuple[float, ...]
    camera: int
    points: Int[np.ndarray, "m"]


Model = tuple[dict[int, Intrinsics], list[Image], dict[int, tuple[float, ...]]]


def found(root: Path) -> bool:
    """Whether the folder has this layout."""
    return _model_folder(root) is not None


def read(root: Path) -> Capture:
    """The registered images, by name; binary files are preferred to text."""
    folder = _model_folder(root)
    if folder is None:
        raise UserError(f"{root}: no sparse/0/cameras.bin or .txt; give the project's folder")
    cameras, images, positions = (
        _read_binary if (folder / "cameras.bin").is_file() else _read_text
    )(folder)
    source = str(folder)
    if not images:
        raise UserError(f"{source}: no registered image; run the mapper again")
    pictures = image_folder(root)
    frames, distances = [], []
    for image in sorted(images, key=lambda image: image.name):
        name = relative_path(root, f"{pictures.name}/{image.name}", source)
        where = f"{source}: image {image.name}"
        if image.camera not in cameras:
            raise UserError(f"{where}: camera {image.camera} is not in its file; export again")
        pose = _pose(image, where)
        frames.append(Frame(name, pose, cameras[image.camera]))
        seen = [positions[i] for i in image.points.tolist() if i in positions]
        if seen:
            distances.append(np.linalg.norm(np.array(seen) - pose[:, 3], axis=-1))
    return Capture(
        "colmap",
        source,
        frames,
        points=np.array(list(positions.values())) if positions else None,
        distances=np.concatenate(distances) if distances else None,
        any_size=True,
    )


def _model_folder(root: Path) -> Path | None:
    for name in _FOLDERS:
        if any((root / name / f"cameras.{kind}").is_file() for kind in ("bin", "txt")):
            return root / name
    return None


def _pose(image: Image, where: str) -> Float[np.ndarray, "3 4"]:
    length = np.linalg.norm(image.q)
    if not abs(length - 1.0) <= 1e-3:
        raise UserError(
            f"{where}: the quaternion has length {length:.4g}, it must be 1; export again"
        )
    rotation = rotation_of_quaternion(np.array([image.q]))
    world_to_camera = np.concatenate([rotation, np.array(image.t)[None, :, None]], axis=-1)
    return checked_pose(from_opencv(inverted(world_to_camera))[0], where)


def _intrinsics(
    model: str, width: int, height: int, values: tuple[float, ...], where: str
) -> Intrinsics:
    known = dict(zip(_PARAMETERS[model].split(), values, strict=True))
    focal = known.get("fx", known.get("f", 0.0)), known.get("fy", known.get("f", 0.0))
    coefficients = {key: value for key, value in known.items() if key[0] in "kp"}
    lens, distortion = lens_of(model, coefficients, where)
    centre = known["cx"], known["cy"]
    return checked_intrinsics(Intrinsics(focal, centre, width, height, lens, distortion), where)


def _finite(values: tuple[float, ...], where: str) -> tuple[float, ...]:
    for value in values:
        if not -LARGEST <= value <= LARGEST:
            raise UserError(f"{where}: a value of {value:g}; give finite numbers up to {LARGEST:g}")
    return values


# Binary files


class _Bytes:
    """A file read from front to back, which says so when it is too short."""

    def __init__(self, path: Path):
        self.path = path
        try:
            size = path.stat().st_size
            if size > FILE_BYTES:
                raise UserError(f"{path}: {size >> 20} MiB, at most {FILE_BYTES >> 20} are read")
            self.data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); export again") from error
        self.at = 0

    def take(self, layout: str) -> tuple:
        """The next values of a `struct` layout (little-endian, unpadded)."""
        size = struct.calcsize("<" + layout)
        self._need(size)
        self.at += size
        return struct.unpack_from("<" + layout, self.data, self.at - size)

    def count(self, smallest: int, what: str) -> int:
        """The next count, if so many records of at least `smallest` bytes can follow."""
        (count,) = self.take("Q")
        left = len(self.data) - self.at
        if count * smallest > left:
            raise UserError(
                f"{self.path}: {count} {what} announced at byte {self.at - 8}, {left} bytes left; truncated, copy it again"
            )
        return count

    def name(self) -> str:
        """A text up to its closing zero."""
        end = self.data.find(b"\0", self.at, self.at + 1024)
        if end < 0:
            raise UserError(
                f"{self.path}: a name without end at byte {self.at}; damaged, copy it again"
            )
        text = self.data[self.at : end]
        self.at = end + 1
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.path}: a name is not UTF-8 ({brief(text)}); rename the image"
            ) from error

    def skip(self, size: int) -> int:
        """Passes over `size` bytes and returns where they begin."""
        self._need(size)
        self.at += size
        return self.at - size

    def finish(self) -> None:
        """Raises unless everything was read."""
        if self.at != len(self.data):
            raise UserError(
                f"{self.path}: {len(self.data) - self.at} bytes after the last record; damaged, copy it again"
            )

    def _need(self, size: int) -> None:
        if self.at + size > len(self.data):
            raise UserError(
                f"{self.path}: ends at byte {len(self.data)} in a record; truncated, copy it again"
            )


_SIGHT = np.dtype([("xy", "<f8", 2), ("point", "<i8")])


def _read_binary(folder: Path) -> Model:
    file = _Bytes(folder / "cameras.bin")
    cameras: dict[int, Intrinsics] = {}
    for _ in range(file.count(24, "cameras")):
        key, model, width, height = file.take("iiQQ")
        where = f"{file.path}: camera {key}"
        if model not in _MODELS:
            lens_of(_OTHER_MODELS.get(model, f"number {model}"), {}, where)  # raises
        name, parameters = _MODELS[model]
        values = _finite(file.take(f"{len(parameters.split())}d"), where)
        _add(cameras, key, _intrinsics(name, width, height, values, where), where)
    file.finish()
    file = _Bytes(folder / "images.bin")
    images, numbers = [], set()
    for _ in range(file.count(73, "images")):
        key, *values, camera = file.take("i7di")
        name = file.name()
        if key in numbers:
            raise UserError(f"{file.path}: image {key} is listed twice; export again")
        numbers.add(key)
        _finite(tuple(values), f"{file.path}: image {brief(name)}")
        sights = file.count(_SIGHT.itemsize, "sights")
        begin = file.skip(sights * _SIGHT.itemsize)
        points = np.frombuffer(file.data, _SIGHT, sights, begin)["point"].astype(np.int64)
        images.append(Image(name, tuple(values[:4]), tuple(values[4:]), camera, points))
    file.finish()
    positions: dict[int, tuple[float, ...]] = {}
    if (folder / "points3D.bin").is_file():
        file = _Bytes(folder / "points3D.bin")
        for _ in range(file.count(51, "points")):
            key, *position = file.take("Q3d3x8x")
            where = f"{file.path}: point {key}"
            file.skip(8 * file.count(8, "sights"))
            _add(positions, key, _finite(tuple(position), where), where)
        file.finish()
    return cameras, images, positions


def _add(table: dict, key: int, value: object, where: str) -> None:
    if key in table:
        raise UserError(f"{where} is listed twice; export again")
    table[key] = value


# Text files


def _read_text(folder: Path) -> Model:
    cameras: dict[int, Intrinsics] = {}
    path = folder / "cameras.txt"
    for where, line in _lines(path, "cameras"):
        words = line.split()
        (key,) = _whole(words[:1], 1, where)
        model = words[1] if len(words) > 1 else ""
        if model not in _PARAMETERS:
            lens_of(model, {}, where)  # raises
        width, height = _whole(words[2:4], 2, where)
        values = _floats(words[4:], len(_PARAMETERS[model].split()), where)
        _add(cameras, key, _intrinsics(model, width, height, values, where), where)
    images, numbers = [], {}
    path = folder / "images.txt"
    pairs = _lines(path, "images", lines_each=2)
    for where, line in pairs:
        words = line.split(maxsplit=9)
        key, camera = _whole(words[:1] + words[8:9], 2, where)
        if len(words) < 10:
            raise UserError(
                f"{where}: {len(words)} values, an image has 10; truncated, export again"
            )
        _add(numbers, key, None, where)
        values = _floats(words[1:8], 7, where)
        where, line = next(pairs, (where, ""))
        sights = line.split()
        if len(sights) % 3:
            raise UserError(
                f"{where}: {len(sights)} values, sights come in threes; truncated, export again"
            )
        points = np.array(_whole(sights[2::3], len(sights) // 3, where), np.int64)
        images.append(Image(words[9].strip(), values[:4], values[4:], camera, points))
    positions: dict[int, tuple[float, ...]] = {}
    path = folder / "points3D.txt"
    for where, line in _lines(path, "points") if path.is_file() else ():
        words = line.split(maxsplit=8)
        (key,) = _whole(words[:1], 1, where)
        _add(positions, key, _floats(words[1:4], 3, where), where)
    return cameras, images, positions


def _lines(path: Path, what: str, lines_each: int = 1) -> Iterator[tuple[str, str]]:
    """Where and what, for each line but comments; with two lines a record, the second may be empty.

    Raises `UserError` if COLMAP's own comment announces another number of records.
    """
    try:
        if path.stat().st_size > FILE_BYTES:
            raise UserError(f"{path}: above {FILE_BYTES >> 20} MiB; export it as binary")
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: cannot be read ({reason}); export again") from error
    announced, begun, second = None, 0, False
    for number, line in enumerate(text.split("\n"), 1):
        if match := re.match(rf"# Number of {what}: (\d{{1,9}})\b", line):
            announced = int(match[1])
        if not second and (line.startswith("#") or not line.strip()):
            continue
        begun += not second
        second = lines_each == 2 and not second
        yield f"{path}: line {number}", line
    if announced is not None and begun != announced:
        raise UserError(f"{path}: {begun} {what}, {announced} announced; truncated, export again")


def _whole(words: list[str], count: int, where: str) -> list[int]:
    values = _floats(words, count, where, limit=float(1 << 62))
    if any(value != int(value) for value in values):
        raise UserError(f"{where}: {brief(words)} where whole numbers belong; export again")
    return [int(value) for value in values]


def _floats(words: list[str], count: int, where: str, limit: float = LARGEST) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in words)
    except ValueError as error:
        raise UserError(f"{where}: {brief(words)} where numbers belong; export again") from error
    if len(values) != count:
        raise UserError(
            f"{where}: {len(values)} values, {count} belong there; truncated, export again"
        )
    if not all(-limit <= value <= limit for value in values):
        raise UserError(f"{where}: {brief(words)}; give finite numbers up to {limit:g}")
    return values
