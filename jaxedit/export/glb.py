"""GLB files: one triangle mesh with vertex colours in binary glTF 2.0 (Khronos, ISO/IEC 12113).

glTF's worlds have +y upwards, ours +z. The arrays keep our coordinates; the node that shows the mesh turns z to y
(and y to -z), so a reader that applies nodes sees it upright, and one that does not finds the numbers of the other
exports. Vertex colours are linear in glTF, ours are sRGB: they are converted (IEC 61966-2-1). Our colours are light as
it was seen, hence the material is unlit where readers know the extension for it.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxedit.export.mesh import Mesh

_FLOAT, _UNSIGNED_BYTE, _UNSIGNED_INT = 5126, 5121, 5125
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_TURN = [-(0.5**0.5), 0.0, 0.0, 0.5**0.5]  # -90 degrees about x, as a quaternion x, y, z, w


def glb_bytes(mesh: Mesh, extras: Mapping[str, Any]) -> bytes:
    """The bytes of a file; `extras` are kept beside its version, for people and programs that look for them."""
    position = mesh.points.astype("<f4")
    normal = mesh.normals.astype("<f4")
    opaque = np.full((len(position), 1), 255, np.uint8)
    colour = np.concatenate([_linear(mesh.colours), opaque], axis=1)
    index = mesh.triangles.astype("<u4").reshape(-1)
    arrays = (position, normal, colour, index)
    views, start = [], 0
    for array, target in zip(arrays, (*[_ARRAY_BUFFER] * 3, _ELEMENT_ARRAY_BUFFER), strict=True):
        views.append(
            {"buffer": 0, "byteOffset": start, "byteLength": array.nbytes, "target": target}
        )
        start += array.nbytes  # rows of all four are multiples of 4 bytes: everything stays aligned
    count = len(position)
    accessors = [
        {
            "bufferView": 0,
            "componentType": _FLOAT,
            "count": count,
            "type": "VEC3",
            "min": position.min(axis=0).tolist(),
            "max": position.max(axis=0).tolist(),
        },
        {"bufferView": 1, "componentType": _FLOAT, "count": count, "type": "VEC3"},
        {
            "bufferView": 2,
            "componentType": _UNSIGNED_BYTE,
            "normalized": True,
            "count": count,
            "type": "VEC4",
        },
        {"bufferView": 3, "componentType": _UNSIGNED_INT, "count": len(index), "type": "SCALAR"},
    ]
    primitive = {
        "attributes": {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2},
        "indices": 3,
        "material": 0,
        "mode": 4,  # triangles
    }
    scene = {
        "asset": {"version": "2.0", "generator": "jaxedit", "extras": dict(extras)},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "rotation": _TURN}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [
            {
                "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
                "extensions": {"KHR_materials_unlit": {}},
            }
        ],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": start}],
    }
    text = json.dumps(scene, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", start, b"BIN\0") + b"".join(array.tobytes() for array in arrays)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _linear(colours: np.ndarray) -> np.ndarray:
    """Bytes of linear light of sRGB bytes."""
    c = np.arange(256) / 255.0
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return np.round(255.0 * linear).astype(np.uint8)[colours]
