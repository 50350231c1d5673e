"""Files of exports read back: ply, glb, npz and cameras."""

import io
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from small_exports import (
    SIMILARITY,
    Solid,
    ball,
    columns_of,
    facing,
    filled_grid,
    grid_points,
    orbit,
    read_glb,
    read_ply,
    record_of,
    sphere,
)

from jaxedit.export.cameras import transforms_json
from jaxedit.export.glb import glb_bytes
from jaxedit.export.grids import npz_bytes
from jaxedit.export.mesh import Mesh, marching_cubes
from jaxedit.export.ply import ply_bytes, vertex_columns
from jaxedit.fields.field import Frame
from jaxedit.fields.packed_grid import pack
from jaxedit.scene.cameras import Cameras, pixel_rays
from jaxedit.scene.load import SceneConfig, load_scene
from jaxedit.scene.poses import Similarity
from jaxedit.systems.reconstruct.model import matter


def toy_mesh():
    surface = marching_cubes(sphere(grid_points(12)), 0.0)
    points = surface.points * 2 / 11 - 1
    normals = points / np.linalg.norm(points, axis=-1, keepdims=True)
    colours = np.random.default_rng(0).integers(0, 256, points.shape).astype(np.uint8)
    return Mesh(points, normals, colours, surface.triangles)


def test_ply_meshes_are_read_back():
    mesh = toy_mesh()
    columns = vertex_columns(mesh.points, mesh.normals, mesh.colours)
    found, comments = read_ply(ply_bytes(columns, mesh.triangles, ["made here", "world: one"]))
    assert comments == ["made here", "world: one"]
    np.testing.assert_allclose(columns_of(found["vertex"], "x y z"), mesh.points, atol=1e-7)
    np.testing.assert_allclose(columns_of(found["vertex"], "nx ny nz"), mesh.normals, atol=1e-7)
    np.testing.assert_array_equal(columns_of(found["vertex"], "red green blue"), mesh.colours)
    np.testing.assert_array_equal(found["face"], mesh.triangles)


def test_glb_meshes_are_read_back():
    mesh = toy_mesh()
    scene, node, found = read_glb(glb_bytes(mesh, {"world": "one"}))
    assert scene["asset"]["extras"] == {"world": "one"}
    position, accessor = found["POSITION"]
    np.testing.assert_allclose(position, mesh.points, atol=1e-7)
    np.testing.assert_array_equal(np.float32(accessor["min"]), position.min(0))
    np.testing.assert_array_equal(np.float32(accessor["max"]), position.max(0))
    normal, _ = found["NORMAL"]
    np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(normal, mesh.normals, atol=1e-7)
    colour, accessor = found["COLOR_0"]
    assert accessor["normalized"] is True
    assert (colour[:, 3] == 255).all()
    # Back to sRGB, within half a step of linear light.
    linear = (colour[:, :3] + np.array([[[-0.5]], [[0.0]], [[0.5]]])).clip(0, 255) / 255
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert (mesh.colours >= srgb[0] - 0.01).all()
    assert (mesh.colours <= srgb[2] + 0.01).all()
    index, accessor = found["indices"]
    assert accessor["componentType"] == 5125
    np.testing.assert_array_equal(index.reshape(-1, 3), mesh.triangles)
    turned = Rotation.from_quat(node["rotation"]).apply(np.eye(3))
    np.testing.assert_allclose(turned, [[1, 0, 0], [0, 0, -1], [0, 1, 0]], atol=1e-7)


@pytest.mark.parametrize(("packed", "per"), [(False, "unit"), (True, "diagonal")])
def test_voxel_grids_are_read_back_by_numpy_alone(packed, per):
    frame = Frame((-1.0, -0.8, -1.0), (1.0, 1.2, 0.9))
    grid = field = filled_grid((12, 14, 13), degree=1, frame=frame, per=per)
    if packed:
        field, lost = jax.jit(lambda grid: pack(grid, matter(grid, 0.01), 12 * 14 * 13))(grid)
        assert int(lost) == 0
    found = np.load(io.BytesIO(npz_bytes(field, SIMILARITY, 128)))
    law = json.loads(str(found["config"]))
    density, box = found["density"], found["box"]
    assert density.shape == (12, 14, 13)
    assert found["colour"].shape == (12, 14, 13, 12)
    if not packed:
        np.testing.assert_array_equal(found["colour"], grid.colour_values[...])
    points = np.random.default_rng(0).uniform(box[0], box[1], (4000, 3)).astype(np.float32)
    place = (points - box[0]) / (box[1] - box[0]) * density.shape - 0.5
    raw = map_coordinates(
        np.pad(density, 1).astype(np.float64), place.T + 1, order=1, mode="constant"
    )
    assert law["activation"] == "softplus"
    expected = np.logaddexp(0.0, law["gain"] * raw + law["shift"]) / law["length"]
    there = jax.jit(lambda field, points: field.density(points))(field, points)
    np.testing.assert_allclose(there, expected, rtol=1e-3, atol=2e-2)
    x = np.array([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(
        SIMILARITY.points(x)[0], (found["transform"] @ [1, 2, 3, 1])[:3], atol=1e-12
    )


def test_other_fields_are_sampled():
    field = Solid(ball, facing)
    found = np.load(io.BytesIO(npz_bytes(field, SIMILARITY, 12)))
    assert json.loads(str(found["config"])) == {"kind": "samples", "field": "Solid"}
    x = (np.stack(np.meshgrid(*[np.arange(12)] * 3, indexing="ij"), -1) + 0.5) / 6 - 1
    np.testing.assert_allclose(found["density"], 100 / (1 + np.exp(50 * (np.linalg.norm(x, axis=-1) - 0.6))), rtol=1e-3)  # fmt: skip
    near = np.abs(np.linalg.norm(x, axis=-1) - 0.6) < 0.1
    outwards = x / np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(found["colour"][near], 0.5 * (1 - outwards[near]), atol=1e-3)


rays_of = jax.jit(pixel_rays)


@pytest.mark.parametrize("lens", ["pinhole", "opencv", "fisheye"])
@pytest.mark.parametrize("shared", [True, False])
def test_cameras_are_read_back_by_the_loader(tmp_path, lens, shared):
    """The same rays in the file's world, split by split, through poses, lens and splits."""
    mild = {
        "pinhole": [],
        "opencv": [-0.1, 0.02, 0.001, 0.0, 0.0007, -0.001],
        "fisheye": [-0.04, 0.01, 0.0, 0.0005],
    }[lens]
    cameras = {}
    for split, views in (("train", orbit(5)), ("test", orbit(3, 0.4))):
        n = len(views)
        focal = views.focal if shared else views.focal + np.arange(n)[:, None].astype(np.float32)
        cameras[split] = Cameras(
            views.pose, focal, views.centre + np.float32(0.3), np.tile(np.float32(mild), (n, 1)).reshape(n, -1),
            lens, views.width, views.height,
        )  # fmt: skip
    applied = Similarity(2.0, SIMILARITY.rotation.T, np.array([1.0, -2.0, 0.5]))
    record = replace(record_of(cameras), applied=applied)
    to_file = SIMILARITY.inverse()
    (tmp_path / "transforms.json").write_bytes(transforms_json(record, to_file))
    assert ("fl_x" in json.loads((tmp_path / "transforms.json").read_text())) == shared
    (tmp_path / "images").mkdir()
    for names in record.names.values():
        for name in names:
            Image.new("RGB", (20, 24)).save(tmp_path / name)
    scene = load_scene(SceneConfig(path=str(tmp_path)))
    assert scene.format == "nerfstudio"
    assert set(scene.views) == {"train", "test"}
    x = np.array([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(scene.applied.points(x), applied.points(x), atol=1e-9)
    for split, views in scene.views.items():
        assert views.names == record.names[split]
        found = scene.transform.inverse().cameras(views.cameras)
        expected = to_file.cameras(cameras[split])
        view = np.repeat(np.arange(len(views)), 12)
        pixel = np.random.default_rng(0).uniform([0, 0], [20, 24], (len(view), 2))
        a, b = (rays_of(c, view, pixel.astype(np.float32)) for c in (found, expected))
        np.testing.assert_allclose(a.origin, b.origin, atol=1e-5)
        np.testing.assert_allclose(a.direction, b.direction, atol=1e-5)
