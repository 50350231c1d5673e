"""Loaders: one scene in every layout gives the same rays and pixels; real scenes against their own numbers."""

import itertools
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from loaded import assert_same, every_view, load, rays_of
from PIL import Image
from scipy.spatial.transform import Rotation
from writers import (
    COLMAP_MODELS,
    Truth,
    camera_values,
    frame_values,
    make_truth,
    save_images,
    thirds,
    write_blender,
    write_colmap,
    write_instant_ngp,
    write_json,
    write_llff,
    write_nerfstudio,
    write_voxe,
)

from jaxedit.scene.cameras import pinhole_cameras, project_points
from jaxedit.scene.lenses import Lens
from jaxedit.scene.load import describe

REAL = Path(os.environ.get("JAXVID_DATA", Path(__file__).parents[2] / "../shared/data"))


def needs(name):
    return pytest.mark.skipif(
        not (REAL / name).is_dir(), reason=f"{name} is absent; set JAXVID_DATA"
    )


KEPT = {"SIMPLE_RADIAL": [0], "RADIAL": [0, 1], "OPENCV": [0, 1, 4, 5]}


def truth_for(model):
    lens: Lens = "pinhole" if "PINHOLE" in model else "opencv"
    if model == "OPENCV_FISHEYE":
        lens = "fisheye"
    truth = make_truth(lens, keep=KEPT.get(model))
    if "SIMPLE" in model or model == "RADIAL":
        focal = np.repeat(truth.cameras.focal[:, :1], 2, axis=1)
        truth = replace(truth, cameras=replace(truth.cameras, focal=focal))
    return truth


SQUARE = make_truth(square=True)
BENT, FISH = make_truth("opencv"), make_truth("fisheye")
# instant-ngp has no k3 and k4 beside p1 and p2
NGP = make_truth("opencv", keep=[0, 1, 4, 5])

LAYOUTS = {
    "blender": (SQUARE, write_blender, {}),
    "voxe": (SQUARE, write_voxe, {}),
    "voxe, splits": (SQUARE, write_voxe, {"splits": thirds(SQUARE)}),
    "llff": (SQUARE, write_llff, {}),
    "llff, images_4": (SQUARE, write_llff, {"folder": "images_4"}),
    "nerfstudio": (BENT, write_nerfstudio, {"model": "OPENCV"}),
    "nerfstudio, by frame": (BENT, write_nerfstudio, {"model": "OPENCV", "per_frame": True}),
    "nerfstudio, one list": (BENT, write_nerfstudio, {"model": "OPENCV", "listed": True}),
    "nerfstudio, fisheye": (FISH, write_nerfstudio, {"model": "OPENCV_FISHEYE"}),
    "nerfstudio, pinhole": (make_truth(), write_nerfstudio, {"model": "PINHOLE"}),
    "nerfstudio, radial": (truth_for("RADIAL"), write_nerfstudio, {"model": "RADIAL"}),
    "instant_ngp": (NGP, write_instant_ngp, {}),
    "instant_ngp, radians": (NGP, write_instant_ngp, {"angle": "radians"}),
    "instant_ngp, degrees": (NGP, write_instant_ngp, {"angle": "degrees"}),
    "instant_ngp, fisheye": (FISH, write_instant_ngp, {"files": 3}),
    **{
        f"colmap, {kind} {model}": (truth_for(model), write_colmap, {"model": model, "kind": kind})
        for model in COLMAP_MODELS
        for kind in ("bin", "txt")
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("upright", [None, True])
def test_every_layout_gives_the_same_rays_and_pixels(layout, upright, tmp_path):
    truth, write, options = LAYOUTS[layout]
    write(tmp_path, truth, **options)
    scene = load(tmp_path, upright=upright)
    assert scene.format == layout.split(",")[0]
    assert_same(scene, truth)
    captured = scene.format in ("nerfstudio", "llff", "colmap")
    if upright or captured:
        poses = np.concatenate([views.cameras.pose for views in scene.views.values()])
        np.testing.assert_allclose(poses[:, :, 3].mean(axis=0), 0.0, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(poses[:, :, 3], axis=-1).max(), 1.0, atol=1e-6)
        up = poses[:, :, 1].mean(axis=0)
        np.testing.assert_allclose(up / np.linalg.norm(up), [0, 0, 1], atol=1e-5)
    else:
        np.testing.assert_array_equal(scene.transform.rotation, np.eye(3))


@pytest.mark.parametrize("layout", ["blender", "nerfstudio", "instant_ngp, fisheye"])
def test_resized_scenes_have_the_same_rays(layout, tmp_path):
    truth, write, options = LAYOUTS[layout]
    write(tmp_path, truth, **options)
    scene = load(tmp_path, size=6)
    assert scene.views["train"].images.shape[1:] == (4, 6, 4)
    assert_same(scene, truth, scale=0.5)
    assert_same(load(tmp_path, size=100), truth)  # never enlarged


def test_smaller_folders_scale_the_camera(tmp_path):
    small = replace(SQUARE, images=SQUARE.images[:, ::2, ::2])
    write_llff(tmp_path / "llff", SQUARE)
    write_colmap(tmp_path / "colmap", SQUARE, "PINHOLE")
    for root in (tmp_path / "llff", tmp_path / "colmap"):
        (root / "images").rename(root / "full")
        save_images(root / "images_8", small)
        save_images(root / "images_16", replace(SQUARE, images=SQUARE.images[:, ::4, ::4]))
        assert_same(load(root), SQUARE, scale=0.5)


# Splits, bounds, records


def test_missing_images_are_counted_and_empty_splits_absent(tmp_path):
    write_blender(tmp_path, SQUARE)
    for path in (tmp_path / "val").iterdir():
        path.unlink()
    (tmp_path / "train" / "view_03.png").unlink()
    # Maps beside the test images are not views.
    Image.new("RGBA", (12, 8)).save(tmp_path / "test" / "view_02_depth_0001.png")
    Image.new("RGBA", (12, 8)).save(tmp_path / "test" / "view_02_normal_0001.png")
    scene = load(tmp_path)
    assert {split: views.names for split, views in scene.views.items()} == {
        "train": ("train/view_00.png",),
        "test": ("test/view_02.png", "test/view_05.png"),
    }
    assert scene.missing == ("train/view_03.png", "val/view_01.png", "val/view_04.png")
    assert "missing  3 listed images" in describe(scene)


def test_held_out_views_do_not_depend_on_missing_ones(tmp_path):
    write_nerfstudio(tmp_path, make_truth(count=10), "PINHOLE")

    def held(**fields):
        scene = load(tmp_path, **fields)
        train, test = scene.views["train"].names, scene.views.get("test")
        return len(train), [] if test is None else [int(name[-6:-4]) for name in test.names]

    assert held() == (8, [0, 8])
    assert held(hold_out=3) == (6, [0, 3, 6, 9])
    assert held(hold_out=0) == (10, [])
    (tmp_path / "images/view_01.png").unlink()
    assert held(hold_out=3) == (5, [0, 3, 6, 9])


def test_nerfstudio_filename_lists(tmp_path):
    names = [f"images/view_{i:02d}.png" for i in range(6)]
    lists: dict[str, Any] = {
        "train_filenames": names[:3],
        "val_filenames": names[4:],
        "test_filenames": names[4:5],
    }
    write_nerfstudio(tmp_path, make_truth(), "PINHOLE", **lists)
    views = load(tmp_path).views
    assert {f"{split}_filenames": list(view.names) for split, view in views.items()} == lists
    # The world is turned by all listed cameras, so that it does not depend on the split.
    np.testing.assert_array_equal(views["val"].images[0], views["test"].images[0])


def test_one_image_in_several_files_is_one_view(tmp_path):
    write_blender(tmp_path, SQUARE, {"train": range(4), "test": range(4, 6)})
    (tmp_path / "transforms_val.json").write_text((tmp_path / "transforms_test.json").read_text())
    scene = load(tmp_path)
    assert [len(scene.views[split]) for split in ("train", "val", "test")] == [4, 2, 2]
    # instant-ngp reads the same files; names tell the splits.
    same = load(tmp_path, format="instant_ngp")
    for split, views in scene.views.items():
        assert views.names == same.views[split].names
        np.testing.assert_allclose(views.cameras.pose, same.views[split].cameras.pose)
        np.testing.assert_allclose(views.cameras.focal, same.views[split].cameras.focal)


def test_the_original_world_is_recorded(tmp_path):
    rotation = Rotation.from_quat([0.3, -0.5, 0.2, 0.8]).as_matrix()
    shift = np.array([0.3, -1.0, 2.0])
    applied = np.concatenate([rotation, shift[:, None]], axis=1).tolist()
    write_nerfstudio(
        tmp_path, make_truth(), "PINHOLE", applied_transform=applied, applied_scale=2.5
    )
    scene = load(tmp_path)
    x = np.random.default_rng(0).normal(size=(5, 3))
    expected = np.array([2.5 * (rotation @ p + shift) for p in x])
    np.testing.assert_allclose(scene.applied.points(x), expected, atol=1e-12)
    assert_same(scene, make_truth())


def box_of(scene):
    assert scene.box is not None
    return scene.box


def nearest_of(box, position):
    """The least distance from a camera to the box, but 0.05 of the cameras' radius."""
    nearest = np.linalg.norm(position - position.clip(*box), axis=-1).min()
    return max(nearest, 0.05 * np.linalg.norm(position - position.mean(axis=0), axis=-1).max())


@pytest.mark.parametrize(
    "box",
    [
        {"aabb_scale": 1},
        {"aabb_scale": 8, "scale": 0.2, "offset": [0.5, 0.1, -0.7]},
        {"aabb_scale": 2, "aabb": [[-1, -2, 0], [3, 1, 1]]},
    ],
)
def test_instant_ngps_box_is_its_cube_in_the_files_world(box, tmp_path):
    write_instant_ngp(tmp_path, NGP, **box)
    scene = load(tmp_path)
    scale, offset = box.get("scale", 0.33), np.array(box.get("offset", [0.5] * 3))
    if "aabb" in box:  # its middle to 0.5, its longest side to 1
        scale = 1 / 4
        offset = 0.5 - scale * np.array([1.0, -0.5, 0.5])
    for corner, side in zip(box_of(scene), (-1, 1), strict=True):
        x, y, z = corner * scale + offset
        np.testing.assert_allclose([y, z, x], 0.5 + side * box["aabb_scale"] / 2, atol=1e-9)
    position = NGP.cameras.pose[:, :, 3]
    corners = np.array(list(itertools.product(*box_of(scene).T)))
    farthest = np.linalg.norm(position[:, None] - corners, axis=-1).max()
    np.testing.assert_allclose(scene.far, farthest)
    np.testing.assert_allclose(scene.near, nearest_of(box_of(scene), position))


def test_bounds_of_object_scenes(tmp_path):
    write_blender(tmp_path / "blender", SQUARE)
    write_voxe(tmp_path / "voxe", SQUARE)
    for name in ("blender", "voxe"):
        scene = load(tmp_path / name)
        np.testing.assert_array_equal(box_of(scene), [[-1.5] * 3, [1.5] * 3])
        assert (scene.near, scene.far) == (2.0, 6.0)
        mine = load(tmp_path / name, near=1.0, far=7.0, box=((-1.0, -1.0, -1.0), (1.0, 1.0, 2.0)))
        np.testing.assert_array_equal(box_of(mine), [[-1, -1, -1], [1, 1, 2]])
        assert (mine.near, mine.far) == (1.0, 7.0)
        turned = load(tmp_path / name, upright=True)
        scale = turned.transform.scale
        np.testing.assert_allclose([turned.near, turned.far], [2 * scale, 6 * scale])
        corners = np.random.default_rng(0).uniform(-1.5, 1.5, (500, 3))
        moved = turned.transform.points(corners)
        assert (moved >= box_of(turned)[0]).all()
        assert (moved <= box_of(turned)[1]).all()
    assert describe(scene).splitlines() == [
        "format   voxe",
        "views    5 train, 1 test; 12x8 RGBA, pinhole lens",
        "box      -1.5 -1.5 -1.5 to 1.5 1.5 1.5",
        "range    near 2, far 6",
    ]


def test_bounds_of_captures(tmp_path):
    write_nerfstudio(tmp_path / "nerfstudio", make_truth(), "PINHOLE")
    scene = load(tmp_path / "nerfstudio")
    assert scene.box is None
    np.testing.assert_allclose([scene.near, scene.far], [0.05, 1000.0])  # the radius is 1
    write_llff(tmp_path / "llff", SQUARE, bounds=(2.0, 5.0))
    scene = load(tmp_path / "llff", upright=False)
    corner = math.hypot(1, 6 / SQUARE.cameras.focal[0, 0], 4 / SQUARE.cameras.focal[0, 0])
    np.testing.assert_allclose([scene.near, scene.far], [1.8, 5.0 * corner])
    assert scene.box is None


@pytest.mark.parametrize("kind", ["bin", "txt"])
def test_bounds_of_colmaps_points(kind, tmp_path):
    rng = np.random.default_rng(4)
    truth, points = make_truth(count=6), rng.normal(size=(300, 3))
    seen = [rng.choice(300, 40, replace=False) for _ in range(6)]
    write_colmap(tmp_path / "seen", truth, "PINHOLE", kind, points=points, seen=seen)
    scene = load(tmp_path / "seen", upright=False)
    position = truth.cameras.pose[:, :, 3]
    distances = np.concatenate([np.linalg.norm(points[s] - p, axis=-1) for s, p in zip(seen, position, strict=True)])  # fmt: skip
    np.testing.assert_allclose(scene.near, 0.9 * np.percentile(distances, 0.1))
    np.testing.assert_allclose(scene.far, 1.1 * np.percentile(distances, 99.9))
    low, high = np.percentile(points, [1, 99], axis=0)
    np.testing.assert_allclose(box_of(scene), [low - (high - low) / 10, high + (high - low) / 10])
    # In the upright world the box is made there, and distances scale with it.
    turned = load(tmp_path / "seen")
    scale = turned.transform.scale
    np.testing.assert_allclose([turned.near, turned.far], [scene.near * scale, scene.far * scale])
    inside = (turned.transform.points(points) > box_of(turned)[0]) & (turned.transform.points(points) < box_of(turned)[1])  # fmt: skip
    assert inside.mean() > 0.97
    # Without sights the box gives the range.
    write_colmap(tmp_path / "points", truth, "PINHOLE", kind, points=points)
    scene = load(tmp_path / "points", upright=False)
    corners = np.array(list(itertools.product(*box_of(scene).T)))
    farthest = np.linalg.norm(position[:, None] - corners, axis=-1).max()
    np.testing.assert_allclose(scene.far, farthest)
    np.testing.assert_allclose(scene.near, nearest_of(box_of(scene), position))


def test_a_small_skew_is_let_pass(tmp_path):
    write_nerfstudio(tmp_path, make_truth(), "PINHOLE", skew=1e-3)
    assert_same(load(tmp_path), make_truth())  # 1e-3 * 5 / 14 pixels


def test_images_beside_the_folder(tmp_path):
    truth = make_truth()
    save_images(tmp_path / "photographs", truth)
    head = {"camera_model": "PINHOLE", **camera_values(truth)}
    frames = frame_values(truth, "../photographs")
    write_json(tmp_path / "scene/transforms.json", {**head, "frames": frames})
    assert_same(load(tmp_path / "scene"), truth)


# Real scenes


@pytest.fixture(scope="module")
def mic():
    return load(REAL / "scene_mic", size=128)


@needs("scene_mic")
def test_mic_is_the_scene_that_others_read(mic):
    stored = np.load(REAL / "scene_mic" / "mic_128.npz")
    assert {split: len(views) for split, views in mic.views.items()} == {
        "train": 100,
        "val": 10,
        "test": 25,
    }
    assert len(mic.missing) == 265
    np.testing.assert_array_equal(box_of(mic), [[-1.5] * 3, [1.5] * 3])
    for split, views in mic.views.items():
        cameras = views.cameras
        np.testing.assert_allclose(cameras.pose, stored[f"{split}_c2w"][:, :3], atol=2e-6)
        np.testing.assert_allclose(cameras.focal, stored["focal"], rtol=1e-6)
        np.testing.assert_array_equal(cameras.centre, 64.0)
        expected = stored[f"{split}_rgba"].astype(int)
        found = views.images.astype(int)
        np.testing.assert_array_equal(found[..., 3], expected[..., 3])
        visible = expected[..., 3] > 0
        assert np.abs(found - expected)[visible].max() <= 1
        assert (found == expected)[visible].mean() > 0.999
    assert describe(mic).splitlines()[:3] == [
        "format   blender",
        "views    100 train, 10 val, 25 test; 128x128 RGBA, pinhole lens",
        "missing  265 listed images, the first is val/r_1.png",
    ]


@needs("scene_mic")
def test_mic_in_other_layouts(mic, tmp_path):
    count = 8
    views = mic.views["train"].select(list(range(count)))
    # The poses and the angle as the Blender file has them, not as the loader gave them.
    meta = json.loads((REAL / "scene_mic" / "transforms_train.json").read_text())
    pose = np.array([frame["transform_matrix"] for frame in meta["frames"][:count]])[:, :3]
    focal = 0.5 * 128 / math.tan(0.5 * meta["camera_angle_x"])
    cameras = pinhole_cameras(pose, focal, 128, 128)
    cameras = replace(cameras, pose=pose, focal=np.full((count, 2), focal))
    truth = Truth(cameras, views.images, [Path(name).stem for name in views.names])
    write_nerfstudio(tmp_path / "nerfstudio", truth, "PINHOLE")
    write_colmap(tmp_path / "bin", truth, "PINHOLE", "bin")
    write_colmap(tmp_path / "txt", truth, "SIMPLE_PINHOLE", "txt")
    same = replace(truth, cameras=views.cameras)  # what the Blender loader says
    for name in ("nerfstudio", "bin", "txt"):
        assert_same(load(tmp_path / name), same)


@needs("scene_buddha")
def test_buddha_sees_points_where_its_projection_matrices_do():
    """P belongs to the full-size photographs, the scene to ones shrunk by 4.

    Which convention? Take K out of P: its centre is (1368.758, 774.251), the scene's file has (341.8146, 193.1877), and
    that is (c + 0.5) / 4 - 0.5 to all digits, not c / 4. So whoever shrank the images took integer coordinates for
    pixel *centres*, in P and in the file alike: a point at U in P's image is at (U + 0.5) / 4 - 0.5 in the small one,
    since corners (U + 0.5) scale and centres do not. The loader takes a centre as the file gives it and neither adds
    nor drops half a pixel, so these are the coordinates that it must give, too. (In nerfstudio's own rule, and in this
    library, (0, 0) is the corner of the first pixel; read so, this file's centre is half a small pixel off: patches
    match best between the photographs with about 0.4 added to it.)
    """
    root = REAL / "scene_buddha"
    scene = load(root)
    assert (len(scene.views["train"]), len(scene.views["test"])) == (11, 2)
    assert scene.views["train"].images.shape[1:] == (385, 684, 3)
    meta = json.loads((root / "transforms.json").read_text())
    middle = np.array(meta["focus_centre"])
    rng = np.random.default_rng(0)
    found, cameras = every_view(scene)
    for i, stem in enumerate(found):
        points = middle + rng.uniform(-0.3, 0.3, (50, 3))
        projection = np.loadtxt(root / "P" / f"{stem}_P.txt")
        u, v, w = projection @ np.vstack([points.T, np.ones(50)])
        assert (w > 0).all()
        full = np.stack([u / w, v / w], axis=-1)
        pixel, front = project_points(cameras, jnp.full(50, i), jnp.asarray(points, jnp.float32))
        assert np.asarray(front).all()
        np.testing.assert_allclose(pixel, (full + 0.5) / 4 - 0.5, atol=2e-3)


@needs("scene_buddha")
def test_buddha_halved_is_the_same_capture():
    full, half = (
        load(REAL / "scene_buddha", hold_out=0),
        load(REAL / "scene_buddha", hold_out=0, size=342),
    )
    a, b = full.views["train"], half.views["train"]
    assert b.images.shape[1:] == (193, 342, 3)  # 192.5 rounded up
    pixel = jnp.asarray(np.random.default_rng(0).uniform(0, 190, (13, 2)), jnp.float32)
    factor = jnp.array([684 / 342, 385 / 193], jnp.float32)
    rays = rays_of(b.cameras, jnp.arange(13), pixel)
    expected = rays_of(a.cameras, jnp.arange(13), pixel * factor)
    np.testing.assert_allclose(rays.direction, expected.direction, atol=1e-6)
    means = [view.images.mean(axis=(1, 2)) for view in (a, b)]
    np.testing.assert_allclose(*means, atol=0.2)  # rounding to bytes
