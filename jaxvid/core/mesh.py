"""Where every array lives: one mesh, one table of rules.

A mesh has four axes, always all of them, all of type Auto (the compiler propagates, we pin a few places):

    data      examples; parameters are copies                    (between slices this is the slow network)
    fsdp      examples again; parameters, EMA and optimizer slots are split along one dimension each
    tensor    channels inside a block: the first kernel by output, the second by input (Megatron-LM, arXiv:1909.08053)
    frames    the time axis of a video, for clips too long for one device

Parameters are addressed by path (`jaxvid.core.paths`). Dimensions are counted from the end, because blocks of equal
shape are stacked along a leading layer axis: a convolution is [..., kh, kw, in, out], a dense kernel [..., in, out].
EMA and optimizer slots hold their parameter's path, so the same rows match them.

An axis that does not divide its dimension is left out and the array stays whole along it: a program that runs on one
device runs on every mesh, and `explain` lists what stayed whole. Everything here accepts `mesh=None`: one device, no rules.
"""

import contextlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.core import Tracer
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten, path_of

Tree = TypeVar("Tree")

AXES = ("data", "fsdp", "tensor", "frames")

# Names of array dimensions -> mesh axes; every other name stays whole.
DIMENSIONS: dict[str, tuple[str, ...]] = {
    "b": ("data", "fsdp"),
    "t": ("frames",),
    "heads": ("tensor",),  # attention heads
    "hidden": ("tensor",),  # channels between the two kernels of a block
}

# Entries of a batch whose second dimension is time; every other entry is split by example only.
BATCH_LAYOUT = {"video": "b t h w c", "segment": "b t"}


class Rule(NamedTuple):
    """One row: parameters whose path matches `pattern` (re.search) ..."""

    pattern: str
    tensor: int | None  # ... split this dimension (from the end) over `tensor`,
    fsdp: bool  # ... and are split over `fsdp`.


# Kernels that produce a block's hidden channels, and kernels that consume them; between the two of a pair no message is
# needed. The temporal half of a (2+1)D convolution consumes what its spatial half gives.
PRODUCES = r"(^|/)(conv1|condition|query|key|value)"
CONSUMES = r"(^|/)(conv2|conv[12]/temporal|out)"

# First match wins. Vectors stay whole over `fsdp`: gathering one costs a message and saves kilobytes.
RULES: tuple[Rule, ...] = (
    Rule(PRODUCES + r"/kernel$", tensor=-1, fsdp=True),
    Rule(PRODUCES + r"/bias$", tensor=-1, fsdp=False),
    Rule(CONSUMES + r"/kernel$", tensor=-2, fsdp=True),
    Rule(r"(^|/)(bias|scale)$", tensor=None, fsdp=False),
    Rule(r"", tensor=None, fsdp=True),
)


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; at most one may be -1, which takes all that remain."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    frames: int = 1


def mesh_shape(config: MeshConfig, count: int) -> tuple[int, int, int, int]:
    """The four axis sizes on `count` devices. Raises UserError unless they multiply to `count` exactly."""
    sizes = asdict(config)
    text = " ".join(f"{name}={size}" for name, size in sizes.items())
    if any(size == 0 or size < -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise UserError(f"mesh {text}: each axis must be positive; one may be -1 (all that remain)")
    fixed = math.prod(size for size in sizes.values() if size > 0)
    if -1 not in sizes.values() and fixed != count:
        raise UserError(
            f"mesh {text} needs {fixed} devices but there are {count}; set mesh.data=-1 to use all"
        )
    if count % fixed:
        raise UserError(
            f"mesh {text}: {count} devices are not a multiple of {fixed}; choose sizes whose product divides {count}"
        )
    data, fsdp, tensor, frames = (count // fixed if size == -1 else size for size in sizes.values())
    return data, fsdp, tensor, frames


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh | None:
    """The mesh over `devices` (all devices by default), or None where one device needs no mesh.

    Devices are ordered for the machine's network. Over several TPU slices `data` runs across the slices, so their
    number must divide it. Raises UserError when the sizes do not fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(config, len(devices))
    if len(devices) == 1:
        return None
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices > 1:
        if shape[0] % slices:
            raise UserError(
                f"mesh.data={shape[0]} is not a multiple of the {slices} slices; `data` runs across slices, raise it"
            )
        grid = mesh_utils.create_hybrid_device_mesh(
            (shape[0] // slices, *shape[1:]),
            (slices, 1, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def active(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Context in which `constrain` sees `mesh`: wrap the calls of jitted functions (never inside one)."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """The sharding of a value that every device holds whole."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


# Parameters


def _place(mesh: Any, path: str, shape: tuple[int, ...]) -> tuple[PartitionSpec, list[str]]:
    """The spec of one parameter, and the axes that a rule asked for but that do not divide it."""
    rule = next(rule for rule in RULES if re.search(rule.pattern, path))
    spec: list[str | None] = [None] * len(shape)
    whole = []
    if rule.tensor is not None and mesh.shape["tensor"] > 1:
        if len(shape) >= -rule.tensor and shape[rule.tensor] % mesh.shape["tensor"] == 0:
            spec[rule.tensor] = "tensor"
        else:
            whole.append("tensor")
    if rule.fsdp and len(shape) >= 2 and mesh.shape["fsdp"] > 1:
        # Only the last two dimensions: taps are few, and splitting a stacked layer axis would make every
        # iteration of the scan gather the whole stack.
        free = [dim for dim in (-1, -2) if spec[dim] is None]
        free = [dim for dim in free if shape[dim] % mesh.shape["fsdp"] == 0]
        if free:
            spec[max(free, key=lambda dim: shape[dim])] = "fsdp"
        else:
            whole.append("fsdp")
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec), whole


def parameter_sharding(mesh: Mesh | None, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """`{path: NamedSharding}` for `{path: array or ShapeDtypeStruct}`; the values are None without a mesh."""
    return tree_sharding(mesh, dict(abstract))


def tree_sharding(mesh: Mesh | None, tree: Tree) -> Tree:
    """The shardings of any tree of arrays (a whole state with its optimizer) in the tree's own structure.

    Pass the result as `out_shardings` of the jitted initialiser: `jax.jit(init, out_shardings=tree_sharding(mesh,
    jax.eval_shape(init, key)))(key)` never holds an unsharded copy.
    """
    if mesh is None:
        return jax.tree.map(lambda leaf: None, tree)
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: NamedSharding(mesh, _place(mesh, path_of(keys), leaf.shape)[0]), tree
    )


def with_sharding(tree: Tree, shardings: Tree) -> Tree:
    """`tree` as ShapeDtypeStructs that carry `shardings`: the abstract arguments of `jaxvid.plan.plan`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def explain(mesh: Mesh | None, tree: Any) -> list[str]:
    """One line for every array that a rule wanted to split over an axis whose size does not divide it."""
    if mesh is None:
        return []
    return [
        f"{path} {list(leaf.shape)}: whole over {axis}={mesh.shape[axis]}, which does not divide it"
        for path, leaf in flatten(tree).items()
        for axis in _place(mesh, path, leaf.shape)[1]
    ]


# Batches and activations


def _axes(mesh: Any, name: str) -> tuple[str, ...]:
    """The axes of more than one device that a named dimension is split over."""
    return tuple(axis for axis in DIMENSIONS.get(name, ()) if mesh.shape.get(axis, 1) > 1)


def _spec(mesh: Any, layout: str, shape: tuple[int, ...] | None = None) -> PartitionSpec:
    """The spec of named dimensions; with `shape`, dimensions that do not divide stay whole."""
    names = layout.split()
    if shape is not None and len(names) != len(shape):
        raise ValueError(
            f"layout {layout!r} names {len(names)} dimensions, array has shape {shape}"
        )
    spec: list[tuple[str, ...] | None] = []
    for position, name in enumerate(names):
        axes = _axes(mesh, name)
        ways = math.prod(mesh.shape[axis] for axis in axes)
        divides = shape is None or shape[position] % ways == 0
        spec.append(axes if axes and divides else None)
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def batch_sharding(mesh: Mesh | None, layout: str = "b") -> NamedSharding | None:
    """The sharding of a batch array whose leading dimensions are `layout`: "b", or "b t" to split frames as well."""
    return None if mesh is None else NamedSharding(mesh, _spec(mesh, layout))


def process_shard(mesh: Mesh | None) -> tuple[int, int]:
    """`(index, count)`: this process loads the index-th of `count` equal parts of every global batch.

    Processes whose devices differ only along `tensor` or `frames` load the same examples.
    """
    if mesh is None:
        return 0, 1
    rows = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    held: dict[int, set[int]] = {}
    for row, devices in enumerate(rows):
        for device in devices:
            held.setdefault(device.process_index, set()).add(row)
    groups = sorted({tuple(sorted(group)) for group in held.values()})
    if sum(map(len, groups)) != len(rows) or len({len(group) for group in groups}) > 1:
        raise UserError(
            f"mesh data x fsdp = {len(rows)} rows cannot be dealt to {len(held)} processes evenly; "
            "make data x fsdp a multiple or a divisor of the number of processes"
        )
    return groups.index(tuple(sorted(held[jax.process_index()]))), len(groups)


def to_global(mesh: Mesh | None, host_batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's part of a batch (`process_shard`) on its devices; the arrays are the global batch.

    Entries of `BATCH_LAYOUT` are split over `frames` too where it divides their frames.
    """
    if mesh is None:
        return {name: jax.device_put(value) for name, value in host_batch.items()}
    count = process_shard(mesh)[1]
    batch = {}
    for name, value in host_batch.items():
        shape = (value.shape[0] * count, *value.shape[1:])
        layout = BATCH_LAYOUT.get(name) or " ".join(
            "b" if dim == 0 else "_" for dim in range(len(shape))
        )
        sharding = NamedSharding(mesh, _spec(mesh, layout, shape))
        batch[name] = jax.make_array_from_process_local_data(sharding, value, shape)
    return batch


def check_batch(mesh: Mesh | None, batch_size: int) -> None:
    """Raises UserError unless a global batch of `batch_size` divides evenly over data x fsdp."""
    ways = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size < 1 or batch_size % ways:
        raise UserError(
            f"batch size {batch_size} is not a positive multiple of data x fsdp = {ways}; "
            f"use {max(ways, batch_size // ways * ways)} or change the mesh"
        )


def constrain(x: jax.Array, layout: str) -> jax.Array:
    """Pins an activation to the mesh of the enclosing `active` context: `constrain(x, "b t h w c")`.

    Dimension names are those of `DIMENSIONS`; any other name stays whole. Returns `x` itself when no mesh is active,
    outside a trace, and inside `shard_map` (where axes are already manual).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not isinstance(x, Tracer):
        return x
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        return x
    return jax.lax.with_sharding_constraint(x, _spec(mesh, layout, x.shape))


def per_frame(fn: Callable[..., jax.Array], x: jax.Array, *whole: Any) -> jax.Array:
    """`fn(x, *whole)` for a function that treats every frame of `x[b, t, ...]` on its own.

    Folding frames into the batch, `(b t)`, has no layout where both are split and a device holds several examples: the
    compiler would gather all frames and compute them everywhere. So where frames are split this runs `fn` on each
    device's own examples and frames (`shard_map` over data, fsdp and frames; `tensor` is left to the compiler). `whole`
    are parameters, arrays or trees of them. Without an active mesh, or with frames=1, or where the axes do not divide x, it is `fn` itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("frames", 1) == 1 or not isinstance(x, Tracer):
        return fn(x, *whole)
    spec = _spec(mesh, "b t")
    divides = spec == _spec(mesh, "b t", x.shape[:2])
    if not divides or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return fn(x, *whole)
    axes = _axes(mesh, "b") + _axes(mesh, "t")

    def local(x: jax.Array, *whole: Any) -> jax.Array:
        # Every device has its own use of the parameters; differentiated, this sums their gradients.
        return fn(x, *jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axes, to="varying"), whole))

    return jax.shard_map(
        local,
        in_specs=(spec, *(PartitionSpec() for _ in whole)),
        out_specs=spec,
        axis_names={"data", "fsdp", "frames"},
    )(x, *whole)
