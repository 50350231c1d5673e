"""What a mesh is, fields and a fitted scene of known content, and readers of the files that exports write."""

import json
import math
import struct

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.transform import Rotation

from jaxedit.export.sampling import Lattice
from jaxedit.fields.field import Frame
from jaxedit.fields.voxel_grid import VoxelGrid, VoxelGridConfig, length
from jaxedit.render.render import RenderConfig
from jaxedit.scene.cameras import pinhole_cameras
from jaxedit.scene.load import SceneConfig
from jaxedit.scene.poses import Similarity, look_at
from jaxedit.scene.record import SceneRecord
from jaxedit.systems.reconstruct import Fit, Reconstruct
from jaxedit.systems.reconstruct.stored import Fitted

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


# --- fields --------------------------------------------------------------------------------------


def grid_points(resolution):
    axis = np.linspace(-1, 1, resolution)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)


def sphere(x):
    return 0.7 - np.linalg.norm(x, axis=-1)


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


def facing(points, directions):
    return 0.5 * (directions + 1.0)


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


# --- a fitted scene of known content -------------------------------------------------------------

SIMILARITY = Similarity(
    0.5,
    Rotation.from_rotvec([0.3, -0.5, 0.9]).as_matrix(),
    np.array([0.1, -0.2, 0.3]),
)
CONFIG = Reconstruct(
    data=SceneConfig(path="unused"),
    field=VoxelGridConfig(resolution=(20, 20, 20), gain=2.0, shift=-0.3),
    render=RenderConfig(samples=96, near=0.5, far=8.0),
    occupancy=None,
    fits=(Fit(steps=1),),
    background="black",
)


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
