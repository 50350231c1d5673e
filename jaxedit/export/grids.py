"""Fields as arrays in an .npz file that numpy alone can read.

    density     [x, y, z] float32
    colour      [x, y, z, k] float32
    box         [2, 3]: the corners (lowest, highest) in the scene's world; point i of n along an axis stands at
                (i + 1/2) / n of its side
    transform   [4, 4]: from the world of the capture's files to the scene's
    config      JSON text: {"kind": "voxels" or "samples", ...}

A voxel grid is written as it is, raw, with the constants of its law (`jaxedit.fields.voxel_grid`) in `config`:

    density = activation(gain * trilinear(density) + shift) / length      in the box, 0 outside; values beyond the
              outermost points fade to 0
    colour  = sigmoid(sum_k trilinear(colour)_k Y_k(direction)) (degree + 1)^2 harmonics of red, then green, then blue

Other fields are sampled: density in 1 / world unit, colour RGB in [0, 1] as looked at against the normal.
"""

import io
import json

import numpy as np

from jaxedit.export.sampling import Lattice, looks_on
from jaxedit.fields.field import Field
from jaxedit.fields.packed_grid import PackedGrid, unpack
from jaxedit.fields.voxel_grid import VoxelGrid, gain, length
from jaxedit.scene.poses import Similarity

NOTHING = -1e4  # a raw density that every activation makes 0
LATTICE_BYTES = 48  # for each point of the lattice: values, the file, and the file in one piece


def npz_bytes(field: Field, transform: Similarity, resolution: int) -> bytes:
    """The bytes of a file. resolution: points along the box's longest side, of a field that is no voxel grid.

    Voxels that a packed grid does not store have the raw density -1e4, which every activation makes 0.
    """
    frame = field.frame
    if isinstance(field, VoxelGrid | PackedGrid):
        grid = unpack(field, NOTHING) if isinstance(field, PackedGrid) else field
        density = np.asarray(grid.density_values[...])[..., 0]
        colour = np.asarray(grid.colour_values[...])
        law = {
            "kind": "voxels",
            "activation": grid.config.activation,
            "gain": gain(grid.config, frame),
            "shift": grid.config.shift,
            "length": length(grid.config, frame),
            "degree": grid.config.degree,
            "contraction": frame.contraction,
        }
    else:
        density, colour = looks_on(field, Lattice.of(frame, resolution))
        law = {"kind": "samples", "field": type(field).__name__}
    matrix = np.eye(4)
    matrix[:3, :3] = transform.scale * transform.rotation
    matrix[:3, 3] = transform.translation
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        density=density,
        colour=colour,
        box=np.array([frame.lowest, frame.highest]),
        transform=matrix,
        config=np.array(json.dumps(law)),
    )
    return buffer.getvalue()
