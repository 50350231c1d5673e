"""`jaxedit export`: a fitted scene as files that other programs read."""

import math
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from jaxedit.export import grids, surface
from jaxedit.export.cameras import transforms_json
from jaxedit.export.glb import glb_bytes
from jaxedit.export.grids import npz_bytes
from jaxedit.export.mesh import Mesh
from jaxedit.export.ply import ply_bytes, vertex_columns
from jaxedit.export.points import cloud_of
from jaxedit.export.sampling import check_resolution
from jaxedit.export.surface import mesh_of
from jaxedit.fields.packed_grid import PackedGrid
from jaxedit.fields.voxel_grid import VoxelGrid
from jaxedit.history import load_current
from jaxedit.scene.poses import Similarity
from jaxedit.systems.reconstruct.stored import Fitted
from jaxvid.core.errors import UserError
from jaxvid.data.writing import check_place, write_bytes

POINTS, SEED, RESOLUTION = 200_000, 0, 128

SUFFIXES = {"ply": (".ply",), "mesh": (".ply", ".glb"), "npz": (".npz",), "cameras": (".json",)}
# The formats that an option belongs to; without the option it is None.
BELONGS = {
    "points": ("ply",),
    "seed": ("ply",),
    "world": ("ply", "mesh", "cameras"),
    "resolution": ("mesh", "npz"),
    "level": ("mesh",),
    "keep_largest": ("mesh",),
}
WORLDS = {
    "file": "of the capture's files (their axes and units)",
    "scene": "of the fitted scene (turned upright and scaled where it was loaded so)",
}


def export_to_file(arguments: Namespace) -> Path:
    """Exports as the options say; returns what was written. Nothing is written for bad input."""
    _check(arguments)
    fitted = load_current(arguments.source)
    return write_bytes(arguments.out, MAKERS[arguments.format](fitted, arguments))


def _check(arguments: Namespace) -> None:
    """Raises UserError for options that contradict each other or the format."""
    kind, out = arguments.format, arguments.out
    if out.suffix.lower() not in SUFFIXES[kind]:
        raise UserError(
            f"--out is {out}; give a name that ends in {' or '.join(SUFFIXES[kind])} for --format {kind}"
        )
    for name, kinds in BELONGS.items():
        if getattr(arguments, name) is not None and kind not in kinds:
            raise UserError(
                f"--{name.replace('_', '-')} belongs to --format {' or '.join(kinds)}, not {kind}; leave it out"
            )
    if arguments.points is not None and arguments.points < 1:
        raise UserError(f"--points is {arguments.points}; give 1 or more")
    if arguments.seed is not None and arguments.seed < 0:
        raise UserError(f"--seed is {arguments.seed}; give 0 or more")
    level, keep = arguments.level, arguments.keep_largest
    if level is not None and not 0.0 < level < math.inf:
        raise UserError(f"--level is {level:g}; give a density above 0")
    if keep is not None and not 0.0 < keep <= 1.0:
        raise UserError(f"--keep-largest is {keep:g}; give a share above 0, at most 1")
    if arguments.resolution is not None or kind == "mesh":
        bytes_a_point = grids.LATTICE_BYTES if kind == "npz" else surface.LATTICE_BYTES
        check_resolution(_or(arguments.resolution, RESOLUTION), bytes_a_point)
    check_place(out)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _world(fitted: Fitted, arguments: Namespace) -> tuple[Similarity, str]:
    """From the scene's world to the one asked for, and a line on it."""
    name = arguments.world or "file"
    moved = fitted.record.transform.inverse() if name == "file" else Similarity.identity()
    return moved, f"world: {WORLDS[name]}"


def _ply(fitted: Fitted, arguments: Namespace) -> bytes:
    cloud = cloud_of(fitted, _or(arguments.points, POINTS), _or(arguments.seed, SEED))
    to_world, line = _world(fitted, arguments)
    columns = vertex_columns(
        to_world.points(cloud.points), cloud.normals @ to_world.rotation.T, cloud.colours
    )
    columns["opacity"] = cloud.opacity.astype("<f4")
    print(f"points   {len(cloud.points)}", file=sys.stderr)
    return ply_bytes(columns, comments=["made by jaxedit", line])


def _mesh(fitted: Fitted, arguments: Namespace) -> bytes:
    resolution = _or(arguments.resolution, RESOLUTION)
    mesh, level = mesh_of(fitted.model.field, resolution, arguments.level, arguments.keep_largest)
    to_world, line = _world(fitted, arguments)
    mesh = Mesh(
        to_world.points(mesh.points),
        mesh.normals @ to_world.rotation.T,
        mesh.colours,
        mesh.triangles,
    )
    chosen = "" if arguments.level else ", chosen by Otsu's threshold"
    surface = f"level: density {level:.6g} a unit of the fitted scene{chosen}"
    print(
        f"mesh     {len(mesh.points)} vertices, {len(mesh.triangles)} triangles; {surface}",
        file=sys.stderr,
    )
    if arguments.out.suffix.lower() == ".glb":
        return glb_bytes(mesh, {"world": line, "surface": surface})
    columns = vertex_columns(mesh.points, mesh.normals, mesh.colours)
    return ply_bytes(columns, mesh.triangles, ["made by jaxedit", line, surface])


def _npz(fitted: Fitted, arguments: Namespace) -> bytes:
    field = fitted.model.field
    if isinstance(field, VoxelGrid | PackedGrid):
        if arguments.resolution is not None:
            shape = "x".join(map(str, field.config.resolution))
            raise UserError(
                f"--resolution is {arguments.resolution}, but a voxel grid is exported as it is ({shape}); leave it out"
            )
    elif arguments.resolution is None:
        check_resolution(RESOLUTION, grids.LATTICE_BYTES)
    return npz_bytes(field, fitted.record.transform, _or(arguments.resolution, RESOLUTION))


def _cameras(fitted: Fitted, arguments: Namespace) -> bytes:
    return transforms_json(fitted.record, _world(fitted, arguments)[0])


MAKERS: dict[str, Callable[[Fitted, Namespace], bytes]] = {
    "ply": _ply,
    "mesh": _mesh,
    "npz": _npz,
    "cameras": _cameras,
}
