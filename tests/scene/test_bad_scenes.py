"""Wrong nerfstudio and Blender scenes, images and settings: one line names the thing, the value and the remedy."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from loaded import edited
from PIL import Image
from refusals import BENT, PLAIN, SQUARE, refused
from writers import write_blender, write_nerfstudio, write_voxe

from jaxedit.scene import load, records
from jaxedit.scene.load import SceneConfig, load_scene


@pytest.fixture
def studio(tmp_path):
    write_nerfstudio(tmp_path, PLAIN, "PINHOLE")
    return tmp_path


@pytest.fixture
def synthetic(tmp_path):
    write_blender(tmp_path, SQUARE, {"train": range(3), "test": range(3, 4)})
    return tmp_path


def frame(meta, i=1):
    return meta["frames"][i]


def pose_entry(row, column, value):
    def change(meta):
        frame(meta)["transform_matrix"][row][column] = value

    return change


def pose_times(matrix):
    def change(meta):
        pose = np.array(frame(meta)["transform_matrix"])
        frame(meta)["transform_matrix"] = (pose @ np.diag([*matrix, 1.0])).tolist()

    return change


# What is done to a nerfstudio file, and what the refusal must say (frame 1 is view_02: the file is not in order).
STUDIO = {
    "nan in a pose": (pose_entry(0, 1, math.nan), "transforms.json.*NaN"),
    "infinite position": (pose_entry(2, 3, 1e999), "transforms.json.*(Infinity|inf)"),
    "huge position": (pose_entry(2, 3, 1e300), r"frame 1 \(images/view_02.png\).*1e\+300"),
    "text in a pose": (pose_entry(0, 0, "1.0"), "transform_matrix is '1.0'"),
    "true in a pose": (pose_entry(0, 0, True), "transform_matrix is True"),
    "a pose of nothing": (lambda m: frame(m).pop("transform_matrix"), "transform_matrix is None; give 4x4"),
    "a pose of three rows": (lambda m: frame(m)["transform_matrix"].pop(), "give 4x4 numbers"),
    "a nested pose": (pose_entry(0, 0, [[[[[1]]]]]), r"transform_matrix is \[\[\[\.\.\.\]\]\]"),
    "last row": (pose_entry(3, 0, 0.5), "last row is .0.5, 0.0, 0.0, 1.0"),
    "mirrored": (pose_times([1, 1, -1]), r"view_02.*mirrored \(determinant -1\)"),
    "scaled": (pose_times([2, 2, 2]), "not orthonormal .off by 3,.*divide out its scale"),
    "sheared a little": (pose_entry(0, 0, 0.123), "not orthonormal"),
    "singular": (pose_times([1, 1, 0]), "pose is singular"),
    "no intrinsics": (lambda m: [m.pop(k) for k in ("fl_x", "fl_y", "cx", "cy")], "no intrinsics .fl_x is missing."),
    "no height": (lambda m: m.pop("h"), "h is missing"),
    "intrinsics twice": (lambda m: frame(m).update(fl_x=9.0), "fl_x is given for the whole file and again by frame 1"),
    "intrinsics of some": (
        lambda m: (m.pop("fl_x"), frame(m).update(fl_x=9.0)),
        "1 of 4 frames give fl_x, frame 0 does not",
    ),
    "distortion of some": (lambda m: frame(m).update(k1=0.1), "1 of 4 frames give k1"),
    "no focal": (lambda m: m.update(fl_x=0), "focal length along x is 0 pixels"),
    "negative focal": (lambda m: m.update(fl_y=-9), "focal length along y is -9 pixels"),
    "centre elsewhere": (lambda m: m.update(cx=99), "cx is 99 for an image of 8x8"),
    "half a pixel": (lambda m: m.update(w=8.5), "w is 8.5; give a whole number"),
    "another size": (lambda m: m.update(w=16, h=16), "has 8x8 pixels, its camera 16x16"),
    "unknown model": (lambda m: m.update(camera_model="FULL_OPENCV"), "camera model 'FULL_OPENCV', only SIMPLE_PINHOLE"),
    "model of a wrong type": (lambda m: m.update(camera_model=[1]), r"camera model \[1\]"),
    "coefficient of a pinhole": (lambda m: m.update(k1=0.1), "k1 is 0.1, which a PINHOLE camera does not have"),
    "impossible distortion": (lambda m: m.update(camera_model="OPENCV", k1=-9), "distortion -9, 0, .*folds over"),
    "skew": (lambda m: m.update(skew=0.5), "skew moves pixels by up to 0.1"),
    "nine coefficients": (
        lambda m: m.update(camera_model="OPENCV", distortion_params=[0] * 9),
        "distortion_params is .* give 1x6 numbers",
    ),
    "distortion twice": (
        lambda m: m.update(camera_model="OPENCV", k1=0.1, distortion_params=[0] * 6),
        "distortion_params and k1..p2 are given",
    ),
    "a frame twice": (lambda m: m["frames"].append(frame(m)), "'images/view_02.png' is listed twice"),
    "a frame of nothing": (lambda m: m["frames"].append(None), "frame 4 must be an object, is None"),
    "no frames": (lambda m: m.update(frames=[]), '"frames" must list the views'),
    "one view": (lambda m: m.update(frames=m["frames"][:1]), "only one view .images/view_03.png."),
    "absolute path": (lambda m: frame(m).update(file_path="/etc/passwd"), "'/etc/passwd' is an absolute path"),
    "drive": (lambda m: frame(m).update(file_path="C:\\a.png"), "is an absolute path"),
    "far path": (lambda m: frame(m).update(file_path="images/../../../a.png"), "leads out of"),
    "no path": (lambda m: frame(m).pop("file_path"), "frame 1: the path is None"),
    "path with a new line": (lambda m: frame(m).update(file_path="a\nb.png"), r"the path is 'a\\nb.png'"),
    "path that is no text": (lambda m: frame(m).update(file_path="\ud800"), r"the path is '\\ud800'"),
    "mask that is absent": (lambda m: frame(m).update(mask_path="no.png"), "no.png: .*No such file"),
    "unlisted file": (lambda m: m.update(train_filenames=["images/x.png"]), "train_filenames: 'images/x.png' is no frame"),
    "list of nothing": (lambda m: m.update(test_filenames=7), "test_filenames: must be a list"),
    "trained and held out": (
        lambda m: m.update(train_filenames=["images/view_00.png"], test_filenames=["images/view_00.png"]),
        "also in train_filenames",
    ),
    "applied mirror": (
        lambda m: m.update(applied_transform=np.diag([1.0, 1, -1, 0])[:3].tolist()),
        "applied_transform: the pose is mirrored",
    ),
    "applied scale": (lambda m: m.update(applied_scale=0), "applied_scale is 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", STUDIO)
def test_nerfstudio_files(case, studio):
    change, match = STUDIO[case]
    edited(studio / "transforms.json", change)
    refused(studio, match)


def test_a_valid_change_is_taken_and_not_corrected(studio):
    edited(studio / "transforms.json", lambda meta: meta.update(fl_x=110.0 / 8))
    focal = load_scene(SceneConfig(path=str(studio))).views["train"].cameras.focal
    np.testing.assert_allclose(focal[:, 0], 110.0 / 8)


def test_lenses_that_do_not_go_together(tmp_path):
    write_nerfstudio(tmp_path, BENT, "OPENCV", per_frame=True)

    def change(meta):
        for i, record in enumerate(meta["frames"]):
            record["camera_model"] = "OPENCV_FISHEYE" if i else "OPENCV"
            record.update(p1=0.0, p2=0.0)
        del meta["camera_model"]

    edited(tmp_path / "transforms.json", change)
    refused(tmp_path, "view_03.png has a opencv lens, others are fisheyes")


def at_the_origin(meta):
    for row in range(3):
        frame(meta)["transform_matrix"][row][3] = 0.0


SYNTHETIC = {
    "no angle": (lambda m: m.pop("camera_angle_x"), "transforms_train.json: camera_angle_x is missing"),
    "angle in degrees": (lambda m: m.update(camera_angle_x=40), "camera_angle_x is 40; .*radians"),
    "another camera": (lambda m: m.update(fl_x=9.0), "has fl_x.*format instant_ngp"),
    "camera in the box": (at_the_origin, "view_01.*at .0, 0, 0. is inside the object's box"),
}  # fmt: skip


@pytest.mark.parametrize("case", SYNTHETIC)
def test_blender_files(case, synthetic):
    change, match = SYNTHETIC[case]
    edited(synthetic / "transforms_train.json", change)
    refused(synthetic, match)


def test_a_camera_in_the_box_is_let_pass_where_that_is_meant(synthetic, studio):
    wide = ((-9.0, -9.0, -9.0), (9.0, 9.0, 9.0))
    refused(
        synthetic, "inside the object's box.*set a smaller box, or near", box=wide, format="blender"
    )
    meant = SceneConfig(path=str(synthetic), box=wide, near=0.1, format="blender")
    assert load_scene(meant).near == 0.1
    # A capture's box is the user's choice, and may be a room.
    load_scene(SceneConfig(path=str(studio), box=wide, format="nerfstudio"))


def test_views_that_miss_the_box(synthetic):
    refused(
        synthetic, "the box lies between .* outside near 2 and far 2.1; set near and far", far=2.1
    )
    refused(synthetic, "outside near 50 and far 60", near=50.0, far=60.0)
    refused(synthetic, "near is 7 and far is 6", near=7.0)


def test_images(synthetic):
    path = synthetic / "train/view_01.png"
    whole = path.read_bytes()
    Image.new("RGB", (8, 9)).save(path)
    refused(synthetic, "train/view_01.png has 8x9 pixels, train/view_00.png has 8x8")
    path.write_bytes(png_header(20_000, 20_000))
    refused(synthetic, "view_01.png: 20000x20000 pixels, at most 8192x8192")
    path.write_bytes(whole[: len(whole) // 2])
    refused(synthetic, "view_01.png: not a readable image")
    flipped = bytearray(whole)
    flipped[whole.index(b"IDAT") + 30] ^= 1
    path.write_bytes(flipped)
    refused(synthetic, "view_01.png: not a readable image .*checksum")
    np.save(path.with_suffix(".npy"), np.full((8, 8, 3), np.nan, np.float32))
    path.with_suffix(".npy").rename(path)
    refused(synthetic, "view_01.png: not a PNG or JPEG image .floating-point")
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(path, "TIFF")
    refused(synthetic, "floating-point and other kinds, such as .npy, .tiff")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)
    refused(synthetic, "view_01.png: 16 bits a channel")
    Image.new("CMYK", (8, 8)).save(path, "JPEG")
    refused(synthetic, "view_01.png: colour mode CMYK")
    path.write_bytes(b"")
    refused(synthetic, "not a PNG or JPEG image")
    path.unlink()
    path.mkdir()
    assert load_scene(SceneConfig(path=str(synthetic))).missing == ("train/view_01.png",)


def test_a_truncated_jpeg(synthetic):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(buffer, "JPEG", quality=95)  # fmt: skip
    path = synthetic / "train/view_01.png"
    path.write_bytes(buffer.getvalue()[:-40])
    refused(synthetic, "view_01.png: not a readable image .*truncated")


def png_header(width, height):
    """A PNG that claims a size and holds nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # fmt: skip

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_masks(studio):
    edited(studio / "transforms.json", lambda meta: frame(meta).update(mask_path="mask.png"))
    Image.new("L", (8, 4)).save(studio / "mask.png")
    refused(studio, "mask.png: a mask of 8x4 pixels for an image of 8x8")
    Image.new("RGB", (8, 8)).save(studio / "mask.png")
    refused(studio, "mask.png: a mask must be a one-channel PNG, this is RGB")


def test_straight_files_declared_premultiplied(synthetic):
    refused(synthetic, "view_00.png: colours above their alpha", alpha="premultiplied")


def test_images_that_do_not_fit_into_memory(synthetic, monkeypatch):
    monkeypatch.setattr(load, "SCENE_BYTES", 4 * 8 * 8 * 4 - 1)
    refused(synthetic, "4 views of 8x8 take .* GiB.*set size to 7 or less")
    load_scene(SceneConfig(path=str(synthetic), size=7))


def test_no_images(synthetic, tmp_path_factory):
    for path in synthetic.glob("*/*.png"):
        path.unlink()
    refused(synthetic, "none of its 4 images exists .the first is 'train/view_00.png'")
    refused(synthetic / "nowhere", "no such folder")
    empty = tmp_path_factory.mktemp("empty")
    refused(empty, "no scene found")
    for name in ("blender", "nerfstudio", "instant_ngp", "llff", "colmap", "voxe"):
        refused(empty, str(empty), format=name)


def test_several_layouts_in_one_folder(synthetic):
    write_voxe(synthetic, SQUARE)
    refused(synthetic, r"several layouts \(blender, voxe\); set format")
    assert load_scene(SceneConfig(path=str(synthetic), format="voxe")).format == "voxe"


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"size": 0}, "size is 0"),
        ({"hold_out": 1}, "hold_out is 1"),
        ({"hold_out": -2}, "hold_out is -2"),
        ({"near": 0.0}, "near is 0"),
        ({"far": math.nan}, "far is nan"),
        ({"box": ((0.0, 0.0, 0.0), (1.0, -1.0, 1.0))}, "box is .* lowest"),
        ({"box": ((0.0, 0.0, 0.0), (1.0, math.inf, 1.0))}, "box is "),
    ],
)
def test_settings(fields, match, tmp_path):
    refused(tmp_path, match, **fields)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "not valid JSON"),
        (b"[1, 2]", "must hold a JSON object"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b'{"frames": ' + b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b'{"frames": [{"a": ' + b"1" * 5000 + b"}]}", "not valid JSON"),
        (b'{"frames": NaN}', "NaN is not a number"),
    ],
)
def test_json_that_is_none(text, match, studio):
    (studio / "transforms.json").write_bytes(text)
    refused(studio, match)


def test_json_that_is_too_long(studio, monkeypatch):
    monkeypatch.setattr(records, "JSON_BYTES", 1 << 20)
    (studio / "transforms.json").write_bytes(b" " * ((1 << 20) + 1))
    refused(studio, "1 MiB of JSON, at most 1")
