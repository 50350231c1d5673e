"""PLY files (Turk 1994): binary, little-endian; a point cloud or a triangle mesh."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

_TYPES = {np.dtype("<f4"): "float", np.dtype("u1"): "uchar"}


def vertex_columns(
    points: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    colours: UInt8[np.ndarray, "n 3"],
) -> dict[str, np.ndarray]:
    """The properties of vertices under the names that other programs look for."""
    columns: dict[str, np.ndarray] = {}
    for names, values in (("x y z", points), ("nx ny nz", normals)):
        columns |= zip(names.split(), values.astype("<f4").T, strict=True)
    return columns | dict(zip(("red", "green", "blue"), colours.T, strict=True))


def ply_bytes(
    columns: Mapping[str, Shaped[np.ndarray, "n"]],
    triangles: Int[np.ndarray, "t 3"] | None = None,
    comments: Sequence[str] = (),
) -> bytes:
    """The bytes of a file. columns: properties of vertices, float32 or uint8. comments: lines of ASCII text."""
    count = len(next(iter(columns.values())))
    vertices = np.empty(count, [(name, values.dtype) for name, values in columns.items()])
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment {comment}" for comment in comments]
    lines.append(f"element vertex {count}")
    for name, values in columns.items():
        vertices[name] = values
        lines.append(f"property {_TYPES[values.dtype]} {name}")
    data = vertices.tobytes()
    if triangles is not None:
        lines += [f"element face {len(triangles)}", "property list uchar int vertex_indices"]
        faces = np.empty(len(triangles), [("count", "u1"), ("vertices", "<i4", 3)])
        faces["count"], faces["vertices"] = 3, triangles
        data += faces.tobytes()
    return "\n".join([*lines, "end_header", ""]).encode("ascii") + data
