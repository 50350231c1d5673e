"""Wrong instant-ngp, LLFF, COLMAP and Vox-E scenes: one line names the thing, the value and the remedy."""

import json
import math
import struct

import numpy as np
import pytest
from loaded import edited
from refusals import BENT, SQUARE, refused
from writers import write_colmap, write_instant_ngp, write_json, write_llff, write_voxe

from jaxedit.scene import colmap
from jaxedit.scene.load import SceneConfig, load_scene


@pytest.fixture
def ngp(tmp_path):
    write_instant_ngp(tmp_path, BENT)
    return tmp_path


NGP = {
    "no focal": (lambda m: [m.pop(k) for k in ("fl_x", "fl_y")], "no focal length; add camera_angle_x"),
    "two focals": (lambda m: m.update(camera_angle_x=0.1), "fl_x and camera_angle_x mean focal lengths of"),
    "angle": (lambda m: (m.pop("fl_x"), m.update(x_fov=200)), "x_fov is 200; an angle of view"),
    "three for a box": (lambda m: m.update(aabb_scale=3), "aabb_scale is 3; give a power of 2"),
    "scale": (lambda m: m.update(scale=-1), "scale is -1"),
    "offset": (lambda m: m.update(offset=[1, 2]), r"offset is \[1, 2\]"),
    "box": (lambda m: m.update(aabb=[[1, 1, 1], [1, 1, 1]]), "aabb is .*give two corners"),
    "k3": (lambda m: m.update(k3=0.01), "k3 or k4 without is_fisheye"),
    "fisheye p1": (lambda m: m.update(is_fisheye=True), "p1 is 0.0007, which a OPENCV_FISHEYE camera"),
    "fisheye text": (lambda m: m.update(is_fisheye="no"), "is_fisheye is 'no'"),
    "rolling shutter": (lambda m: m.update(rolling_shutter=[0, 0, 1, 0]), "rolling_shutter is .*not read"),
    "white": (lambda m: m.update(white_transparent=True), "white_transparent is True"),
}  # fmt: skip


@pytest.mark.parametrize("case", NGP)
def test_instant_ngp_files(case, ngp):
    change, match = NGP[case]
    edited(ngp / "transforms.json", change)
    refused(ngp, match)


def test_instant_ngp_files_that_disagree(ngp):
    meta = json.loads((ngp / "transforms.json").read_text())
    write_json(ngp / "transforms_more.json", {**meta, "aabb_scale": 8})
    refused(ngp, "aabb_scale, scale or offset differ")
    write_json(ngp / "transforms_more.json", {**meta, "cx": 4.5})
    refused(ngp, "view_00.png has another camera in another file")
    write_json(ngp / "transforms_more.json", meta)
    load_scene(SceneConfig(path=str(ngp)))
    write_json(ngp / "transforms_train.json", meta)
    write_json(ngp / "transforms_test.json", meta)
    refused(ngp, "listed for training and as held out", format="instant_ngp")


def poses_bounds(root, change):
    table = np.load(root / "poses_bounds.npy")
    np.save(root / "poses_bounds.npy", change(table))


LLFF = {
    "rows": (lambda t: t[:3], "3 rows for 4 images"),
    "columns": (lambda t: t[:, :16], r"shape \(4, 16\)"),
    "empty": (lambda t: t[:0], r"shape \(0, 17\)"),
    "integers": (lambda t: t.astype(int), "must be one array of floating-point"),
    "objects": (lambda t: t.astype(object), "not a readable array"),
    "nan": (lambda t: np.where(np.arange(17) == 3, np.nan, t), "row 0 has values that are not finite"),
    "bounds": (lambda t: np.where(np.arange(17) == 15, 7.0, t), "bounds are 7 and 6"),
    "size": (lambda t: np.where(np.arange(17) == 9, 8.5, t), "8.5x8; give whole numbers|8x8.5; give whole"),
    "ratio": (lambda t: np.where(np.arange(17) == 9, 16.0, t), "has 8x8 pixels, its camera 16x8"),
    "focal": (lambda t: np.where(np.arange(17) == 14, 0.0, t), r"row 0 \(view_00.png\).*focal length along x is 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", LLFF)
def test_llff_files(case, tmp_path):
    write_llff(tmp_path, SQUARE)
    change, match = LLFF[case]
    poses_bounds(tmp_path, change)
    refused(tmp_path, match)


def test_an_array_of_a_false_shape_takes_no_memory(tmp_path):
    write_llff(tmp_path, SQUARE)
    path = tmp_path / "poses_bounds.npy"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 17)}"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    refused(tmp_path, "not a readable array")


@pytest.fixture
def binary(tmp_path):
    points = np.random.default_rng(0).normal(size=(20, 3))
    write_colmap(tmp_path, BENT, "OPENCV", "bin", points=points, seen=[range(20)] * 4)
    return tmp_path


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_binary_colmap_files_of_a_wrong_length(name, binary):
    path = binary / "sparse/0" / name
    whole = path.read_bytes()
    for size in (0, 7, 8, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(binary, f"{name}.*(truncated|without end)")
    path.write_bytes(whole + b"\0")
    refused(binary, f"{name}: 1 bytes after the last record")
    count = struct.unpack("<Q", whole[:8])[0]
    for false, match in ((2**64 - 1, "announced"), (2**40, "announced"), (count + 1, "truncated")):
        path.write_bytes(struct.pack("<Q", false) + whole[8:])
        refused(binary, f"{name}.*{match}")


def test_binary_colmap_values(binary):
    folder = binary / "sparse/0"
    path, at = folder / "cameras.bin", 8
    whole = path.read_bytes()

    def with_camera(offset, layout, value):
        path.write_bytes(whole[: at + offset] + struct.pack(layout, value) + whole[at + offset + struct.calcsize(layout) :])  # fmt: skip

    with_camera(4, "<i", 6)
    refused(binary, "camera 1: camera model 'FULL_OPENCV', only SIMPLE_PINHOLE.*image_undistorter")
    with_camera(4, "<i", 77)
    refused(binary, "camera model 'number 77'")
    with_camera(8, "<Q", 2**63)
    refused(binary, "camera 1: an image of 9223372036854775808x8 pixels")
    with_camera(24, "<d", math.nan)
    refused(binary, "camera 1: a value of nan")
    with_camera(0, "<i", 5)
    refused(binary, "view_00.png: camera 1 is not in its file")
    path.write_bytes(whole)
    path = folder / "images.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:12] + struct.pack("<d", 2.0) + whole[20:])
    refused(binary, "image view_00.png: the quaternion has length 2")
    path.write_bytes(whole.replace(b"view_01", b"view_00"))
    refused(binary, "images/view_00.png is listed twice")
    path.write_bytes(whole.replace(b"view_01", b"view\xff01"))
    refused(binary, "a name is not UTF-8")
    path.write_bytes(whole.replace(b"view_01", b"vie\nw01"))
    refused(binary, r"the path is 'images/vie\\nw01.png'")
    path.write_bytes(struct.pack("<Q", 0))
    refused(binary, "no registered image")


def test_colmap_files_are_read_up_to_a_size(binary, monkeypatch):
    monkeypatch.setattr(colmap, "FILE_BYTES", 100)
    refused(binary, "images.bin: 0 MiB, at most")


TEXT = {
    "cameras.txt": [
        ("OPENCV", "FOV", "line 3: camera model 'FOV'"),
        ("OPENCV 8 8", "OPENCV 8.5 8", "line 3: .*whole numbers"),
        (" OPENCV", " SIMPLE_PINHOLE", "line 3: 8 values, 3 belong there"),
        ("OPENCV 8 8", "OPENCV 8 eight", "line 3: .*where numbers belong"),
        ("\n1 OPENCV", "\nnan OPENCV", "line 3: .*nan"),
        ("cameras: 1", "cameras: 2", "1 cameras, 2 announced"),
    ],
    "images.txt": [
        ("images: 4", "images: 5", "4 images, 5 announced; truncated"),
        ("view_02.png", "", "line 7: 9 values, an image has 10"),
        ("\n2 ", "\n1 ", "line 5 is listed twice"),
        ("3.0 4.0 10", "3.0 4.0", "line 4: 59 values, sights come in threes"),
        ("3.0 4.0 10", "3.0 4.0 x", "line 4: .*where numbers belong"),
    ],
    "points3D.txt": [
        ("\n10 ", "\n11 ", "line 3 is listed twice"),
        ("\n10 ", "\n10 inf ", "line 2: .*inf"),
        ("points: 20", "points: 21", "20 points, 21 announced"),
    ],
}


@pytest.mark.parametrize("name", TEXT)
def test_text_colmap_files(name, tmp_path):
    points = np.random.default_rng(0).normal(size=(20, 3))
    write_colmap(tmp_path, BENT, "OPENCV", "txt", points=points, seen=[range(20)] * 4)
    path = tmp_path / "sparse/0" / name
    whole = path.read_text()
    for old, new, match in TEXT[name]:
        assert old in whole
        path.write_text(whole.replace(old, new, 1))
        refused(tmp_path, f"{name}.*{match}")
    path.write_bytes(b"\xff" + whole.encode())
    refused(tmp_path, f"{name}: cannot be read")
    path.unlink()
    if name == "images.txt":
        refused(tmp_path, f"{name}: cannot be read .*No such file")


VOXE = {
    "no intrinsic": (lambda r: r.pop("intrinsic"), "'view_00.png': intrinsic must be an object, is None"),
    "list": (lambda r: r.update(extrinsic=[1]), r"extrinsic must be an object, is \[1\]"),
    "bounds": (lambda r: r["intrinsic"].update(bounds=[3, 2]), "bounds are 3 and 2"),
    "translation": (lambda r: r["extrinsic"].update(translation=[1, 2, 3]), "translation is .* give 3x1"),
    "focal": (lambda r: r["intrinsic"].pop("focal"), "focal is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", VOXE)
def test_voxe_files(case, tmp_path):
    write_voxe(tmp_path, SQUARE)
    change, match = VOXE[case]
    edited(tmp_path / "camera_params.json", lambda meta: change(meta["view_00.png"]))
    refused(tmp_path, match)
    (tmp_path / "camera_params.json").write_text("{}")
    refused(tmp_path, "lists a view")
