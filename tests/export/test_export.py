"""Exports: marching cubes against closed forms, meshes and clouds of known fields, files read back, the command line."""

import io
import json
import math
import struct
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scipy.ndimage import map_coordinates
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.transform import Rotation

from jaxedit import cli
from jaxedit.export.cameras import transforms_json
from jaxedit.export.glb import glb_bytes
from jaxedit.export.grids import npz_bytes
from jaxedit.export.mesh import Mesh, large_parts, marching_cubes, mean_normals
from jaxedit.export.ply import ply_bytes, vertex_columns
from jaxedit.export.points import cloud_of
from jaxedit.export.sampling import Lattice, check_resolution, density_on
from jaxedit.export.surface import REACH, chosen_level, mesh_of
from jaxedit.fields.field import Frame
from jaxedit.fields.hash_grid import HashGrid, HashGridConfig
from jaxedit.fields.packed_grid import pack
from jaxedit.fields.voxel_grid import VoxelGrid, VoxelGridConfig, length
from jaxedit.render.render import RenderConfig
from jaxedit.scene.cameras import Cameras, pinhole_cameras, pixel_rays
from jaxedit.scene.load import SceneConfig, load_scene
from jaxedit.scene.poses import Similarity, look_at
from jaxedit.scene.record import SceneRecord, write_record
from jaxedit.systems.reconstruct import Fit, Reconstruct
from jaxedit.systems.reconstruct.model import matter
from jaxedit.systems.reconstruct.stored import Fitted
from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten
from jaxvid.core.run import RunDirectory

# --- what a mesh is ------------------------------------------------------------------------------


def edges_of(triangles):
    return np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])


def assert_closed_manifold(triangles, count):
    """Every directed edge once, and once the other way; every vertex used, in one ring of triangles."""
    assert triangles.min() >= 0
    assert triangles.max() < count
    edges = edges_of(triangles)
    there, times = np.unique(edges @ [count, 1], return_counts=True)
    assert (times == 1).all()
    np.testing.assert_array_equal(there, np.unique(edges[:, ::-1] @ [count, 1]))
    # Around each vertex, triangles link its neighbours: as many linked groups as vertices.
    around = np.concatenate([triangles, triangles[:, [1, 2, 0]], triangles[:, [2, 0, 1]]])
    first = np.searchsorted(there, around[:, [0, 1]] @ [count, 1])
    second = np.searchsorted(there, around[:, [0, 2]] @ [count, 1])
    links = coo_array((np.ones(len(first)), (first, second)), shape=(len(there), len(there)))
    assert connected_components(links, directed=False)[0] == count


def euler(triangles, count):
    edges = np.unique(np.sort(edges_of(triangles), axis=1), axis=0)
    return count - len(edges) + len(triangles)


def area_and_volume(points, triangles):
    """By the divergence theorem the volume is positive only if triangles face outwards."""
    a, b, c = np.moveaxis(points[triangles], 1, 0)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=-1).sum() / 2
    return area, np.sum(a * np.cross(b, c)) / 6


def winding(points, triangles, at):
    """How often the mesh goes around each place: signed solid angles / 4 pi (van Oosterom and Strackee 1983)."""
    found = []
    for place in at:
        a, b, c = np.moveaxis(points[triangles] - place, 1, 0)
        la, lb, lc = (np.linalg.norm(v, axis=-1) for v in (a, b, c))
        top = np.sum(a * np.cross(b, c), axis=-1)
        bottom = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
        found.append(2 * np.arctan2(top, bottom).sum() / (4 * math.pi))
    return np.array(found)


# --- marching cubes ------------------------------------------------------------------------------


def grid_points(resolution):
    axis = np.linspace(-1, 1, resolution)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)


def sphere(x):
    return 0.7 - np.linalg.norm(x, axis=-1)


def torus(x):
    ring = np.hypot(x[..., 0], x[..., 1]) - 0.6
    return 0.25 - np.hypot(ring, x[..., 2])


@pytest.mark.parametrize(("inside", "area", "volume", "characteristic"), [
    (sphere, 4 * math.pi * 0.7**2, 4 / 3 * math.pi * 0.7**3, 2),
    (torus, 4 * math.pi**2 * 0.6 * 0.25, 2 * math.pi**2 * 0.6 * 0.25**2, 0),
])  # fmt: skip
def test_solids_have_their_area_volume_and_genus(inside, area, volume, characteristic):
    surface = marching_cubes(inside(grid_points(64)), 0.0)
    points = surface.points * 2 / 63 - 1
    assert_closed_manifold(surface.triangles, len(points))
    assert euler(surface.triangles, len(points)) == characteristic
    found = area_and_volume(points, surface.triangles)
    np.testing.assert_allclose(found, [area, volume], rtol=0.01)
    assert found[1] > 0
    np.testing.assert_allclose(inside(points), 0.0, atol=1e-3)


def test_all_cases_fit_together():
    """Random signs make every case meet every other; the surface is a closed manifold all the same."""
    values = np.pad(np.random.default_rng(0).normal(size=(20, 21, 22)), 1, constant_values=-3.0)
    inside = (values > 0.25).astype(int)
    case = sum(
        inside[i : 21 + i, j : 22 + j, k : 23 + k] << (4 * i + 2 * j + k)
        for i in (0, 1)
        for j in (0, 1)
        for k in (0, 1)
    )
    assert len(np.unique(case)) == 256
    surface = marching_cubes(values, 0.25)
    assert_closed_manifold(surface.triangles, len(surface.axis))


def test_the_mesh_parts_what_is_inside_from_what_is_not():
    """Also in ambiguous cases: each point of the grid is wound around once if inside, else never."""
    values = np.pad(np.random.default_rng(1).normal(size=(6, 6, 6)), 1, constant_values=-3.0)
    surface = marching_cubes(values, 0.1)
    at = np.argwhere(np.ones(values.shape))
    found = winding(surface.points, surface.triangles, at.astype(float))
    np.testing.assert_allclose(found, (values > 0.1).reshape(-1), atol=1e-9)


def test_opposite_corners_of_a_face_hold_together():
    values = np.full((4, 4, 4), -1.0)
    values[1, 1, 1] = values[2, 2, 1] = 1.0
    surface = marching_cubes(values, 0.0)
    assert_closed_manifold(surface.triangles, len(surface.axis))
    assert euler(surface.triangles, len(surface.axis)) == 2, "one sphere"
    values[2, 2, 1], values[2, 2, 2] = -1.0, 1.0  # opposite corners of the cell do not
    surface = marching_cubes(values, 0.0)
    assert euler(surface.triangles, len(surface.axis)) == 4, "two spheres"


def test_vertices_are_interpolated_linearly():
    normal, level = np.array([0.3, -0.5, 0.81]), 0.123
    surface = marching_cubes((grid_points(12) @ normal).astype(np.float64), level)
    points = surface.points * 2 / 11 - 1
    np.testing.assert_allclose(points @ normal, level, atol=1e-12)
    a, b, c = np.moveaxis(points[surface.triangles], 1, 0)
    area = np.cross(b - a, c - a)
    big = np.linalg.norm(area, axis=-1) > 1e-6
    np.testing.assert_allclose(
        area[big] / np.linalg.norm(area[big], axis=-1, keepdims=True),
        np.broadcast_to(-normal / np.linalg.norm(normal), area[big].shape),
        atol=1e-6,
    )
    values = np.random.default_rng(2).normal(size=(5, 6, 7))
    surface = marching_cubes(values, 0.3)
    found = map_coordinates(values, surface.points.T, order=1)
    np.testing.assert_allclose(found, 0.3, atol=1e-9)


def test_values_equal_to_the_level_leave_no_hole():
    values = np.random.default_rng(3).integers(-1, 2, (9, 9, 9)).astype(np.float32)
    surface = marching_cubes(np.pad(values, 1, constant_values=-1), 0.0)
    assert np.isfinite(surface.points).all()
    assert_closed_manifold(surface.triangles, len(surface.axis))


def test_small_parts_are_left_out():
    x = grid_points(40)
    values = np.maximum.reduce([
        0.45 - np.linalg.norm(x - [-0.4, 0, 0], axis=-1),
        0.25 - np.linalg.norm(x - [0.5, 0, 0], axis=-1),
        0.08 - np.linalg.norm(x - [0.5, 0.6, 0.6], axis=-1),
    ])  # fmt: skip
    whole = marching_cubes(values, 0.0)
    assert euler(whole.triangles, len(whole.axis)) == 6
    for share, parts in ((0.001, 3), (0.1, 2), (1.0, 1)):
        kept = large_parts(whole, share)
        assert_closed_manifold(kept.triangles, len(kept.axis))
        assert euler(kept.triangles, len(kept.axis)) == 2 * parts
    np.testing.assert_allclose(kept.points.mean(0) * 2 / 39 - 1, [-0.4, 0, 0], atol=0.01)


# --- meshes of fields ----------------------------------------------------------------------------


class Solid(nnx.Module):
    """A field of a signed distance: `top` deep inside, half of that at distance 0, with an edge of width 1/50."""

    def __init__(self, distance, colour, frame=None, top=100.0):
        self.distance, self.colour, self.top = distance, colour, top
        self.frame = Frame((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)) if frame is None else frame

    def density(self, points):
        return self.top * jax.nn.sigmoid(-50.0 * self.distance(points))

    def query(self, points, directions):
        return self.density(points), self.colour(points, jnp.broadcast_to(directions, points.shape))


def ball(points):
    return jnp.sqrt(jnp.sum(points * points, axis=-1)) - 0.6


def halves(points, directions):
    return jnp.where(points[..., :1] > 0, jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 1.0]))


def facing(points, directions):
    return 0.5 * (directions + 1.0)


def test_a_ball_becomes_a_round_mesh():
    mesh, level = mesh_of(Solid(ball, facing), 24, level=50.0)
    assert level == 50.0
    assert_closed_manifold(mesh.triangles, len(mesh.points))
    radius = np.linalg.norm(mesh.points, axis=-1)
    # Ten times nearer than where straight lines between points 1/12 apart meet the level.
    np.testing.assert_allclose(radius, 0.6, atol=2e-4)
    lattice = Lattice.of(Frame(), 24)
    straight = marching_cubes(density_on(Solid(ball, facing), lattice), 50.0)
    straight = np.linalg.norm(lattice.world(straight.points), axis=-1)
    assert np.abs(straight - 0.6).max() > 2e-3
    outwards = mesh.points / radius[:, None]
    np.testing.assert_allclose(mesh.normals, outwards, atol=1e-3)
    np.testing.assert_allclose(mesh.colours / 255, 0.5 * (1 - outwards), atol=3 / 255)
    area, volume = area_and_volume(mesh.points, mesh.triangles)
    np.testing.assert_allclose([area, volume], [4 * math.pi * 0.36, 4 / 3 * math.pi * 0.216], rtol=0.02)  # fmt: skip
    assert (mean_normals(mesh.points, mesh.triangles) * outwards).sum(-1).min() > 0.9


def test_colours_are_those_of_their_side():
    mesh, _ = mesh_of(Solid(ball, halves), 16)
    right = mesh.points[:, 0] > 0.02
    left = mesh.points[:, 0] < -0.02
    np.testing.assert_array_equal(mesh.colours[right], np.tile([255, 0, 0], (right.sum(), 1)))
    np.testing.assert_array_equal(mesh.colours[left], np.tile([0, 0, 255], (left.sum(), 1)))


@pytest.mark.parametrize("top", [15.0, 40.0, 1000.0])
def test_colours_are_what_light_brings_from_the_matter(top):
    """A green skin over white: how much white comes through follows from the skin's optical thickness."""

    def skin(points, directions):
        return jnp.where(ball(points)[..., None] > -0.02, jnp.array([0.0, 1.0, 0.0]), jnp.ones(3))

    mesh, _ = mesh_of(Solid(ball, skin, top=top), 24, level=0.05 * top)
    through = math.exp(-top / 50 * math.log(1 + math.exp(50 * 0.02)))
    np.testing.assert_allclose(mesh.colours[:, 0] / 255, through, atol=0.1)
    np.testing.assert_array_equal(mesh.colours[:, 1], 255)


def test_matter_at_the_box_is_closed_at_the_box():
    frame = Frame((-0.5, -1.0, -1.0), (0.3, 1.0, 1.0))
    mesh, _ = mesh_of(Solid(ball, facing, frame), 20, level=50.0)
    assert_closed_manifold(mesh.triangles, len(mesh.points))
    low, high = mesh.points.min(0), mesh.points.max(0)
    np.testing.assert_allclose([low[0], high[0]], [-0.5, 0.3], atol=1e-12)
    np.testing.assert_allclose([low[1:], high[1:]], [[-0.6, -0.6], [0.6, 0.6]], atol=1e-2)
    flat = np.isclose(mesh.points[:, 0], 0.3, atol=1e-12)
    inner = flat & (np.hypot(*mesh.points[:, 1:].T) < 0.4)
    assert inner.sum() > 20
    np.testing.assert_allclose(mesh.normals[inner], np.tile([1.0, 0, 0], (inner.sum(), 1)), atol=0.02)  # fmt: skip
    # Ball between the planes: pi (r^2 x - x^3 / 3).
    volume = math.pi * (0.36 * 0.8 - (0.3**3 + 0.5**3) / 3)
    np.testing.assert_allclose(area_and_volume(mesh.points, mesh.triangles)[1], volume, rtol=0.02)


def test_the_lattice_follows_the_box():
    frame = Frame((0.0, 0.0, 0.0), (2.0, 1.0, 0.5))
    lattice = Lattice.of(frame, 16)
    assert lattice.shape == (16, 8, 4)
    np.testing.assert_allclose(lattice.world(np.array([[0.0, 0.0, 3.0]])), [[1 / 16, 1 / 16, 7 / 16]])  # fmt: skip

    def linear(points):
        return -jnp.log(jnp.sum(points * jnp.array([1.0, 10.0, 0.1]), axis=-1)) / 50.0

    # top sigmoid(log s) = top s / (1 + s)
    found = density_on(Solid(linear, facing, frame), lattice)
    index = np.stack(np.meshgrid(*map(np.arange, lattice.shape), indexing="ij"), -1)
    s = (index + 0.5) / 8 @ [1.0, 10.0, 0.1]
    np.testing.assert_allclose(found, 100 * s / (1 + s), rtol=1e-4)


def test_the_level_is_chosen_between_empty_and_full():
    rng = np.random.default_rng(0)
    density = np.zeros((20, 20, 20), np.float32)
    density[5:15, 5:15, 5:15] = 1e6
    np.testing.assert_allclose(chosen_level(density, 0.02), math.log(2) / 0.02, rtol=1e-2)
    density = rng.exponential(0.1, density.shape).astype(np.float32)
    density[5:15, 5:15, 5:15] = rng.uniform(80, 2000, (10, 10, 10))
    level = chosen_level(density, 0.02)
    assert density[:5].max() < level < 80
    # Otsu's definition: no other threshold parts the opacities into classes of less spread.
    opacity = np.floor(256 * (1 - np.exp(-0.02 * density.astype(np.float64).reshape(-1)))) / 256
    spread = [
        sum(len(part) * part.var() for part in (opacity[opacity < t], opacity[opacity >= t]) if len(part))
        for t in np.arange(1, 256) / 256
    ]  # fmt: skip
    at = round(256 * (1 - math.exp(-0.02 * level))) - 1
    np.testing.assert_allclose(spread[at], min(spread), rtol=1e-6)
    with pytest.raises(UserError, match="too alike to choose a level"):
        chosen_level(np.full((4, 4, 4), 3.0, np.float32), 0.02)
    mesh, level = mesh_of(Solid(ball, facing), 16)
    full = 1 - math.exp(-100 * REACH * 2)
    assert 0 < level < -math.log(1 - full) / (REACH * 2)
    np.testing.assert_allclose(np.linalg.norm(mesh.points, axis=-1), 0.6, atol=0.05)


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (1e4, "empty at level 10000; densities reach from .* to 100; choose --level"),
        (100.0 * (1 - 1e-12), "empty at level 100;"),
        (1e-30, "full at level"),
    ],
)
def test_levels_that_no_cell_crosses(level, message):
    def wide(points):
        return 0.5 * ball(points) - 0.5

    with pytest.raises(UserError, match=message):
        mesh_of(Solid(wide, facing), 8, level=level)


@pytest.mark.parametrize("resolution", [-3, 0, 1, 1025])
def test_resolutions_are_bounded(resolution):
    with pytest.raises(UserError, match=f"--resolution is {resolution}; give 2 to 1024 .*GiB"):
        check_resolution(resolution, 16)
    with pytest.raises(UserError, match=r"may need .* GiB, this machine has .*; give .* or less"):
        check_resolution(1024, 1 << 20)


# --- files ---------------------------------------------------------------------------------------

PLY_TYPES = {"float": "<f4", "uchar": "u1", "int": "<i4"}


def read_ply(data):
    """A reader by the format's description: header lines, then rows of each element."""
    head, body = data.split(b"end_header\n", 1)
    lines = [line.split() for line in head.decode("ascii").splitlines()]
    assert lines[:2] == [["ply"], ["format", "binary_little_endian", "1.0"]]
    comments = [" ".join(words[1:]) for words in lines if words[0] == "comment"]
    elements = []
    for words in lines[2:]:
        if words[0] == "element":
            elements.append((words[1], int(words[2]), []))
        elif words[0] == "property":
            elements[-1][2].append(words[1:])
    found = {}
    for name, count, properties in elements:
        if properties[0][0] == "list":
            _, size, kind, _ = properties[0]
            row = np.dtype([("n", PLY_TYPES[size]), ("v", PLY_TYPES[kind], 3)])
            rows = np.frombuffer(body, row, count)
            assert (rows["n"] == 3).all()
            found[name] = rows["v"]
        else:
            row = np.dtype([(label, PLY_TYPES[kind]) for kind, label in properties])
            rows = np.frombuffer(body, row, count)
            found[name] = rows
        body = body[count * row.itemsize :]
    assert not body
    return found, comments


def columns_of(rows, names):
    return np.stack([rows[name] for name in names.split()], axis=-1)


def read_glb(data):
    """Header, chunks and accessors by the specification, with its rules asserted."""
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    assert len(data) % 4 == 0
    chunks, at = [], 12
    while at < len(data):
        size, kind = struct.unpack_from("<I4s", data, at)
        assert size % 4 == 0
        chunks.append((kind, data[at + 8 : at + 8 + size]))
        at += 8 + size
    assert [kind for kind, _ in chunks] == [b"JSON", b"BIN\0"]
    scene, binary = json.loads(chunks[0][1]), chunks[1][1]
    assert scene["asset"]["version"] == "2.0"
    assert scene["buffers"][0]["byteLength"] == len(binary)
    (node,) = [scene["nodes"][i] for i in scene["scenes"][scene["scene"]]["nodes"]]
    (primitive,) = scene["meshes"][node["mesh"]]["primitives"]
    assert primitive["mode"] == 4
    assert set(scene["extensionsUsed"]) == {"KHR_materials_unlit"}
    assert scene["materials"][primitive["material"]]["extensions"] == {"KHR_materials_unlit": {}}

    def values(index, target):
        accessor = scene["accessors"][index]
        view = scene["bufferViews"][accessor["bufferView"]]
        kind = {5126: "<f4", 5121: "u1", 5125: "<u4"}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        row = width * np.dtype(kind).itemsize
        assert view["target"] == target
        assert view["byteOffset"] % 4 == 0
        assert row % 4 == 0, "rows of vertex attributes start at multiples of 4"
        assert view["byteLength"] == accessor["count"] * row
        part = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        return np.frombuffer(part, kind).reshape(-1, width), accessor

    found = {name: values(i, 34962) for name, i in primitive["attributes"].items()}
    found["indices"] = values(primitive["indices"], 34963)
    return scene, node, found


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


def filled_grid(resolution=(20, 20, 20), degree=0, frame=None, per="unit"):
    """A ball of radius 0.6, red where x > 0 and blue elsewhere."""
    frame = Frame() if frame is None else frame
    config = VoxelGridConfig(resolution=resolution, degree=degree, gain=2.0, shift=-0.3, per=per)
    grid = VoxelGrid(config, frame, jax.random.key(0))
    at = Lattice(frame.lowest, frame.size, resolution)
    index = np.stack(np.meshgrid(*map(np.arange, resolution), indexing="ij"), -1).reshape(-1, 3)
    x = at.world(index.astype(float)).reshape(*resolution, 3)
    raw = 2000.0 * length(config, frame) * np.clip(0.6 - np.linalg.norm(x, axis=-1), -0.2, 0.2)
    grid.density_values = nnx.Param(jnp.asarray(raw[..., None], jnp.float32))
    colour = np.where(x[..., :1] > 0, [20.0, -20.0, -20.0], [-20.0, -20.0, 20.0])
    values = np.zeros((*resolution, 3, (degree + 1) ** 2), np.float32)
    values[..., 0] = colour
    grid.colour_values = nnx.Param(jnp.asarray(values.reshape(*resolution, -1)))
    return grid


SIMILARITY = Similarity(
    0.5,
    Rotation.from_rotvec([0.3, -0.5, 0.9]).as_matrix(),
    np.array([0.1, -0.2, 0.3]),
)


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


# --- a fitted scene of known content --------------------------------------------------------------

CONFIG = Reconstruct(
    data=SceneConfig(path="unused"),
    field=VoxelGridConfig(resolution=(20, 20, 20), gain=2.0, shift=-0.3),
    render=RenderConfig(samples=96, near=0.5, far=8.0),
    occupancy=None,
    fits=(Fit(steps=1),),
    background="black",
)


rays_of = jax.jit(pixel_rays)


def orbit(count, phase=0.0, size=20):
    angle = 2 * math.pi * (np.arange(count) + phase) / count
    up = np.linspace(-0.8, 0.8, count)
    position = np.stack([np.cos(angle), np.sin(angle), up], -1)
    position = 4 * position / np.linalg.norm(position, axis=-1, keepdims=True)
    pose = look_at(position, np.zeros(3), np.array([0.0, 0.0, 1.0]))
    return pinhole_cameras(pose, 1.8 * size, size, size + 4)


def record_of(cameras, box=None):
    return SceneRecord(
        format="toy",
        box=np.array([[-1.0, -1, -1], [1, 1, 1]]) if box is None else box,
        near=0.5,
        far=8.0,
        transform=SIMILARITY,
        applied=Similarity.identity(),
        cameras=cameras,
        names={
            split: tuple(f"images/{split}_{i}.png" for i in range(len(views)))
            for split, views in cameras.items()
        },
    )


def fitted():
    grid = filled_grid()
    values = {
        "field/density_values": grid.density_values[...],
        "field/colour_values": grid.colour_values[...],
    }
    record = record_of({"train": orbit(10), "test": orbit(3, 0.3)})
    return Fitted(CONFIG, record, {"trainable": values, "frozen": {}, "extra": {}}, 0)


def test_points_lie_where_the_surface_is():
    scene = fitted()
    cloud = cloud_of(scene, 100_000, seed=0)
    assert len(cloud.points) > 500
    radius = np.linalg.norm(cloud.points, axis=-1)
    # Half of the light is gone 0.02 below the surface.
    assert np.abs(np.median(radius) - 0.6) < 0.05
    assert np.percentile(np.abs(radius - 0.6), 95) < 0.1
    outwards = cloud.points / radius[:, None]
    assert np.median((outwards * cloud.normals).sum(-1)) > 0.97
    np.testing.assert_allclose(np.linalg.norm(cloud.normals, axis=-1), 1.0, atol=1e-6)
    assert cloud.opacity.min() > 0.5
    # Not darkened by the black behind half transparent edges.
    right = cloud.points[:, 0] > 0.15
    assert cloud.colours[right, 0].min() > 240
    assert cloud.colours[right, 2].max() < 15
    few = cloud_of(scene, 200, seed=1)
    assert len(few.points) == 200
    assert len(np.unique(few.points, axis=0)) == 200
    assert (few.points != cloud_of(scene, 200, seed=2).points).any()


def test_points_between_two_surfaces_are_left_out():
    """A thin half transparent sheet before a wall: the mean depth of many rays lies in the empty space between."""
    scene = fitted()
    raw = np.full((20, 20, 20, 1), -50.0, np.float32)
    raw[2] = 50.0  # the wall, at x = -0.75
    raw[13:17] = 1.0  # the sheet, around x = 0.5
    scene.state["trainable"]["field/density_values"] = jnp.asarray(raw)
    pose = look_at(np.array([[4.0, 0.1, 0.1]]), np.zeros(3), np.array([0.0, 0.0, 1.0]))
    record = record_of({"train": pinhole_cameras(pose, 60.0, 20, 24)})
    scene = scene._replace(record=record)
    pixels = CONFIG.render_image(scene.frame, scene.state, record.cameras["train"], 0)
    seen = np.asarray(pixels.opacity) > 0.9
    where = 4.0 - np.asarray(pixels.depth)[seen]
    assert ((where > -0.5) & (where < 0.4)).mean() > 0.9, "the test's premise"
    with pytest.raises(UserError, match="no ray of the training views"):
        cloud_of(scene, 1000, seed=0)


def test_clouds_of_nothing_are_refused():
    scene = fitted()
    scene.state["trainable"]["field/density_values"] = jnp.full((20, 20, 20, 1), -50.0)
    with pytest.raises(
        UserError, match="no ray of the training views ends in matter, more than 50% opaque"
    ):
        cloud_of(scene, 100, seed=0)


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


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory as `jaxedit fit` leaves it, of the scene that is known."""
    folder = tmp_path_factory.mktemp("export") / "run"
    scene = fitted()
    directory = RunDirectory.open(folder, CONFIG)
    write_record(scene.record, folder / "scene.json")
    with directory.checkpointer() as checkpoints:
        tree = {f"trainable/{name}": values for name, values in scene.state["trainable"].items()}
        checkpoints.save(1, tree, meta={"phase": "fit"})
    return folder


def export(run, out, *options):
    return cli.main(["export", str(run), "--out", str(out), *map(str, options)])


def test_points_are_written_in_the_files_world(run, tmp_path, capsys):
    clouds = {}
    for world in ("file", "scene"):
        out = tmp_path / f"{world}.ply"
        assert export(run, out, "--format", "ply", "--points", 200, "--world", world) == 0
        assert capsys.readouterr().out.strip() == str(out)
        found, comments = read_ply(out.read_bytes())
        assert any(line.startswith("world: of the") for line in comments)
        clouds[world] = found["vertex"]
    assert clouds["file"].dtype.names == (*"xyz", "nx", "ny", "nz", "red", "green", "blue", "opacity")  # fmt: skip
    there = columns_of(clouds["scene"], "x y z").astype(np.float64)
    back = SIMILARITY.points(columns_of(clouds["file"], "x y z").astype(np.float64))
    np.testing.assert_allclose(back, there, atol=1e-5)
    normals = columns_of(clouds["file"], "nx ny nz") @ SIMILARITY.rotation.T
    np.testing.assert_allclose(normals, columns_of(clouds["scene"], "nx ny nz"), atol=1e-5)
    assert np.percentile(np.abs(np.linalg.norm(there, axis=-1) - 0.6), 90) < 0.1
    assert len(there) == 200


def test_meshes_are_written_as_ply_and_glb(run, tmp_path, capsys):
    options = ["--format", "mesh", "--resolution", 20]
    assert export(run, tmp_path / "a.ply", *options) == 0
    assert "chosen by Otsu's threshold" in capsys.readouterr().err
    found, comments = read_ply((tmp_path / "a.ply").read_bytes())
    assert any("level: density" in line for line in comments)
    points = columns_of(found["vertex"], "x y z").astype(np.float64)
    assert_closed_manifold(found["face"].astype(int), len(points))
    np.testing.assert_allclose(np.linalg.norm(SIMILARITY.points(points), axis=-1), 0.6, atol=0.06)
    assert area_and_volume(points, found["face"])[1] > 0
    assert export(run, tmp_path / "a.GLB", *options, "--keep-largest") == 0
    _, _, arrays = read_glb((tmp_path / "a.GLB").read_bytes())
    np.testing.assert_allclose(arrays["POSITION"][0], points, atol=1e-6)
    colour = arrays["COLOR_0"][0]
    right = SIMILARITY.points(points)[:, 0] > 0.1
    assert colour[right, 0].min() > 230
    assert colour[right, 2].max() < 5


def test_grids_and_cameras_are_written(run, tmp_path):
    assert export(run, tmp_path / "a.npz", "--format", "npz") == 0
    found = np.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(found["density"], filled_grid().density_values[...][..., 0])
    assert export(run, tmp_path / "new" / "transforms.json", "--format", "cameras") == 0
    meta = json.loads((tmp_path / "new" / "transforms.json").read_text())
    assert len(meta["frames"]) == 13
    assert meta["test_filenames"] == [f"images/test_{i}.png" for i in range(3)]
    pose = np.array(meta["frames"][0]["transform_matrix"])
    np.testing.assert_allclose(SIMILARITY.poses(pose[None, :3])[0], orbit(10).pose[0], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--format ply --out x.glb", "--out is x.glb; give a name that ends in .ply for"),
        ("--format mesh --out x.obj", "ends in .ply or .glb"),
        ("--format npz --out x", "ends in .npz"),
        ("--format obj --out x.obj", "invalid choice: 'obj'"),
        ("--format mesh --out x.ply --resolution 1", "--resolution is 1; give 2 to 1024"),
        ("--format mesh --out x.ply --resolution 2000", "--resolution is 2000; give 2 to 1024"),
        ("--format mesh --out x.ply --resolution 8 --level 1e9", "surface is empty at level 1e+09; densities reach"),
        ("--format mesh --out x.ply --level 0", "--level is 0; give a density above 0"),
        ("--format mesh --out x.ply --level nan", "--level is nan"),
        ("--format mesh --out x.ply --keep-largest 2", "--keep-largest is 2"),
        ("--format mesh --out x.ply --points 10", "--points belongs to --format ply, not mesh"),
        ("--format ply --out x.ply --level 3", "--level belongs to --format mesh, not ply"),
        ("--format npz --out x.npz --world file", "--world belongs to --format ply or mesh or cameras"),
        ("--format npz --out x.npz --resolution 32", "a voxel grid is exported as it is (20x20x20)"),
        ("--format ply --out x.ply --points 0", "--points is 0"),
        ("--format ply --out x.ply --seed -1", "--seed is -1"),
        ("--format ply --out folder.ply", "folder.ply is a folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(run, options, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.ply").mkdir()
    assert cli.main(["export", str(run), *options.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.ply"]
    assert not list((tmp_path / "folder.ply").iterdir())


def test_a_run_without_a_checkpoint_is_refused(tmp_path, capsys):
    RunDirectory.open(tmp_path / "run", CONFIG)
    write_record(fitted().record, tmp_path / "run" / "scene.json")
    assert export(tmp_path / "run", tmp_path / "x.ply", "--format", "ply") == 2
    error = capsys.readouterr().err
    assert "has no checkpoint yet" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.ply").exists()


def test_sampled_fields_take_a_resolution(tmp_path):
    """A run of another field, through the command line."""
    kind = HashGridConfig(levels=2, table=8, base=4, finest=8, width=8, geometry=4)
    config = replace(CONFIG, field=kind)
    scene = fitted()
    make = jax.jit(HashGrid, static_argnums=(0, 1))
    field = make(kind, config.frame(scene.record.box), jax.random.key(0))
    folder = tmp_path / "run"
    directory = RunDirectory.open(folder, config)
    write_record(scene.record, folder / "scene.json")
    with directory.checkpointer() as checkpoints:
        tree = {f"trainable/field/{name}": values for name, values in flatten(field).items()}
        checkpoints.save(1, tree, meta={"phase": "fit"})
    assert export(folder, tmp_path / "a.npz", "--format", "npz", "--resolution", 5) == 0
    x = (np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), -1) + 0.5) / 2.5 - 1
    density = jax.jit(lambda field, x: field.density(x))(field, x.astype(np.float32))
    found = np.load(tmp_path / "a.npz")
    np.testing.assert_allclose(found["density"], density, rtol=1e-5)
    assert found["colour"].shape == (5, 5, 5, 3)
