"""Compile a function for a machine that is not here, and read off what it needs.

    devices = topology_devices("v5e:4x4")
    mesh = make_mesh(MeshConfig(fsdp=4), devices)
    state = with_sharding(abstract_state, tree_sharding(mesh, abstract_state))
    print(plan(train_step, (state, batch, key), topology="v5e:4x4", donate=(0,)).table())

Nothing is allocated: arguments are ShapeDtypeStructs, and those that carry a sharding decide the mesh. Compile seconds
are this machine's; speed on the target is not predicted.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvid.core.flops import Flops, jaxpr_flops
from jaxvid.core.mesh import AXES, active, explain
from jaxvid.plan.report import Plan
from jaxvid.plan.topology import Topology, parse_topology, topology_devices

COLLECTIVES = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all|collective-broadcast|ragged-all-to-all"
# Autotuning times kernels on the device, which is not here; without it some products find no tiling as generated kernels,
# so they are library calls.
CUDA_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Program:
    """A function with its abstract arguments, ready to compile.

    `args` are trees of ShapeDtypeStructs (with shardings of one mesh, or none). `parameters` is the tree whose elements
    are counted as parameters (the first argument by default). `donate` are argument numbers whose buffers are reused
    (a train step's state). `loop_turns` is what a loop of a length that only run time knows counts as in FLOPs.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    donate: tuple[int, ...] = ()
    out_shardings: Any = None
    parameters: Any = None
    loop_turns: int | None = None

    def plan(self, topology: str | Topology) -> Plan:
        """`plan` of this program."""
        return plan(
            self.fn,
            self.args,
            topology=topology,
            donate=self.donate,
            out_shardings=self.out_shardings,
            parameters=self.parameters,
            loop_turns=self.loop_turns,
        )


def plan(
    fn: Callable[..., Any],
    abstract_args: Sequence[Any],
    *,
    topology: str | Topology,
    donate: tuple[int, ...] = (),
    out_shardings: Any = None,
    parameters: Any = None,
    loop_turns: int | None = None,
) -> Plan:
    """Compiles `fn(*abstract_args)` for `topology` in this process and reports memory, FLOPs and collectives.

    Shardings come from the arguments; one without a sharding is held whole by every device. A program that does not fit
    is a result (`fits=False`), not an exception. Raises UserError for an unknown topology or a missing compiler,
    ValueError for arguments whose mesh belongs to another machine and for a loop of unknown length around a matmul
    without `loop_turns`.
    """
    topology = parse_topology(topology) if isinstance(topology, str) else topology
    mesh, args = _place(topology, tuple(abstract_args))
    parameters = args[0] if parameters is None else parameters
    jaxpr = jax.make_jaxpr(fn)(*args)
    flops, without_loops = jaxpr_flops(jaxpr, loop_turns), jaxpr_flops(jaxpr, 0)
    with active(mesh):
        started = time.perf_counter()
        jitted = jax.jit(fn, donate_argnums=donate, **_out(out_shardings))
        lowered = jitted.lower(*args)
        lowering = time.perf_counter() - started
        started = time.perf_counter()
        compiled, error = _compile(lowered, topology)
        compiling = time.perf_counter() - started
    memory = compiled.memory_analysis() if compiled is not None else None
    peak = stated_need(error or "") if memory is None else _peak(memory, topology)
    return Plan(
        topology=topology.name,
        devices=topology.device_count,
        mesh=dict(mesh.shape),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(parameters)),
        fits=compiled is not None and (peak is None or peak <= topology.usable_bytes),
        peak_bytes_per_device=peak,
        argument_bytes=None if memory is None else memory.argument_size_in_bytes,
        output_bytes=None if memory is None else memory.output_size_in_bytes,
        temp_bytes=None if memory is None else memory.temp_size_in_bytes,
        device_memory_bytes=topology.memory_bytes,
        usable_bytes=topology.usable_bytes,
        flops=_flops(flops, topology.device_count),
        flops_uncounted=tuple(sorted(flops.uncounted)),
        loop_turns=None if flops == without_loops else loop_turns or 1,
        collectives=None if compiled is None else _collectives(compiled),
        whole=tuple(explain(mesh, parameters)) if set(mesh.shape) >= set(AXES) else (),
        lower_seconds=lowering,
        compile_seconds=compiling,
        error=error,
    )


def _place(topology: Topology, args: tuple[Any, ...]) -> tuple[Mesh, tuple[Any, ...]]:
    """The mesh that the arguments carry (or a plain one), and the arguments, each with a sharding of that mesh."""
    meshes = {
        leaf.sharding.mesh
        for leaf in jax.tree.leaves(args)
        if isinstance(getattr(leaf, "sharding", None), NamedSharding)
    }
    if len(meshes) > 1:
        raise ValueError(
            f"arguments carry {len(meshes)} different meshes; shard all of them over one"
        )
    if meshes:
        mesh = meshes.pop()
        if mesh.size != topology.device_count:
            raise ValueError(
                f"arguments are sharded over {mesh.size} devices, {topology.name} has {topology.device_count}; "
                "build their mesh from topology_devices(...)"
            )
    else:
        mesh = Mesh(np.array(topology_devices(topology)), ("data",))
    whole = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None)
        sharding = sharding if isinstance(sharding, NamedSharding) else whole
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return mesh, jax.tree.map(place, args)


def _out(out_shardings: Any) -> dict[str, Any]:
    return {} if out_shardings is None else {"out_shardings": out_shardings}


def _compile(lowered: Any, topology: Topology) -> tuple[Any, str | None]:
    """The executable, or None with the compiler's line when it ran out of the target's memory."""
    options = CUDA_OPTIONS if topology.platform == "cuda" else None
    try:
        return lowered.compile(compiler_options=options), None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error).splitlines()[0]


def _peak(memory: Any, topology: Topology) -> int:
    if topology.platform == "cpu":  # whose own peak leaves the temporaries out
        kept = (
            memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        )
        return kept + memory.temp_size_in_bytes
    return memory.peak_memory_in_bytes


def stated_need(error: str) -> int | None:
    """The bytes that a compiler's out-of-memory line says the program needs, or None if it says nothing."""
    match = re.search(r"\(([\d.]+)([KMGT]?)B?\) exceeds available HBM", error)
    match = match or re.search(r"Used ([\d.]+)([KMGT]?)i?B? of", error)
    return None if match is None else int(float(match[1]) * UNITS[match[2]])


def _flops(flops: Flops, devices: int) -> Mapping[str, int]:
    return {
        "total": flops.total,
        "per_device": flops.total // devices,
        "matmul": flops.matmul,
        "conv": flops.conv,
        "other": flops.other,
    }


def _collectives(compiled: Any) -> dict[str, int] | None:
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        # A compiler newer than jaxlib's parser of its text (seen for tpu7x); the other figures stand.
        return None
    return count_collectives(text)


def count_collectives(text: str) -> dict[str, int]:
    """Collective instructions in HLO text; an asynchronous pair (-start, -done) is one."""
    return dict(sorted(Counter(re.findall(rf" ({COLLECTIVES})(?:-start)?\(", text)).items()))
