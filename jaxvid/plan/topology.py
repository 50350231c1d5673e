"""Machines that a program can be compiled for from any machine.

A topology is written as

    v5e:4x4          TPU chips in a slice, by the kind's own dimensions (2 or 3)
    2*v5p:4x4x4      two such slices, joined by the data centre network
    h200:8           GPUs; more than one host (8 GPUs each) as h200:2x8
    cpu:8            simulated devices of this machine, for tests

TPUs need the package libtpu, GPUs need jax-cuda13-plugin and jax-cuda13-pjrt; neither needs the hardware. Memory is per
device in bytes. A TPU's is the limit that its compiler enforces; a GPU's is the total that its driver reports, of which
a process can use about nine tenths.
"""

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import jax

from jaxvid.core.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Tpu:
    """A TPU generation: `memory` as the compiler states it when a program does not fit (libtpu 0.0.52)."""

    dimensions: int
    memory: int
    chips: int  # in the largest slice
    example: str
    devices_per_chip: int = 1
    chip_config: str | None = None


TPUS = {
    "v2": Tpu(2, int(7.48 * GIB), 256, "v2:4x4", devices_per_chip=2),
    "v3": Tpu(2, int(15.48 * GIB), 1024, "v3:4x4", devices_per_chip=2),
    # Both cores of a v4 chip as one device, as jax runs it ("megacore").
    "v4": Tpu(3, int(30.75 * GIB), 4096, "v4:2x2x4", chip_config="megacore"),
    "v5e": Tpu(2, int(15.75 * GIB), 256, "v5e:4x4"),
    "v5p": Tpu(3, int(95.73 * GIB), 8960, "v5p:4x4x4"),
    "v6e": Tpu(2, int(31.24 * GIB), 256, "v6e:4x4"),
    "tpu7x": Tpu(3, int(94.74 * GIB), 9216, "tpu7x:2x2x2", devices_per_chip=2),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU model: what the compiler must know of a chip that is not there."""

    memory: int
    bandwidth: int  # bytes per second
    name: str


# H100: device_memory_size of an H100 80GB HBM3. H200: 143771 MiB, the driver's total; otherwise the same chip.
GPUS = {
    "h100": Gpu(84_929_347_584, 3_352_320_000_000, "NVIDIA H100 80GB HBM3"),
    "h200": Gpu(150_754_820_096, 4_800_000_000_000, "NVIDIA H200"),
}
GPUS_PER_HOST = 8
GPU_USABLE = 0.9  # of the memory: the rest is context, libraries and fragmentation

# The compiler's description of a Hopper chip (its fields: xla/stream_executor/device_description.proto).
HOPPER = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""

# Read when a compiler is loaded: there is no cloud metadata to ask and no cuDNN to check; no TPU is touched, so another
# process may hold one, or compile at the same time.
COMPILE_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

REMEDY = 'pip install "jaxvid[plan]"'
WORKS = f"{', '.join(row.example for row in TPUS.values())}, 2*v5p:4x4x4 (two slices), h100:8, h200:8, h200:2x8, cpu:8"


@dataclass(frozen=True)
class Topology:
    """A parsed topology. `usable_bytes` is what a program may take of a device's `memory_bytes`."""

    name: str
    platform: str  # "tpu", "cuda" or "cpu"
    kind: str
    shape: tuple[int, ...]
    slices: int
    device_count: int
    memory_bytes: int
    usable_bytes: int


def parse_topology(name: str) -> Topology:
    """Reads a topology's name; starts nothing. Raises UserError that lists what works."""
    match = re.fullmatch(
        r"(?:([1-9]\d*)\*)?([a-z][a-z0-9]*):([1-9]\d*(?:x[1-9]\d*)*)", name.strip().lower()
    )
    if match is None or match[2] not in {*TPUS, *GPUS, "cpu"}:
        raise UserError(f"topology {name!r} is not known; these forms work: {WORKS}")
    slices, kind = int(match[1] or 1), match[2]
    shape = tuple(int(size) for size in match[3].split("x"))
    if kind in TPUS:
        return _tpu(name, kind, shape, slices)
    if slices > 1:
        raise UserError(
            f"topology {name!r}: only TPUs have slices; write hosts x GPUs, for example h200:2x8"
        )
    return _gpu(name, kind, shape) if kind in GPUS else _cpu(name, shape)


def _tpu(name: str, kind: str, shape: tuple[int, ...], slices: int) -> Topology:
    row = TPUS[kind]
    if len(shape) != row.dimensions:
        raise UserError(
            f"topology {name!r}: a {kind} slice has {row.dimensions} dimensions, {len(shape)} given; for example {row.example}"
        )
    if math.prod(shape) > row.chips:
        raise UserError(
            f"topology {name!r}: {math.prod(shape)} chips, a {kind} slice has at most {row.chips}; join slices as 2*{row.example}"
        )
    count = slices * math.prod(shape) * row.devices_per_chip
    return Topology(name, "tpu", kind, shape, slices, count, row.memory, row.memory)


def _gpu(name: str, kind: str, shape: tuple[int, ...]) -> Topology:
    hosts, gpus = (1, *shape)[-2:]
    if len(shape) > 2 or gpus > GPUS_PER_HOST:
        raise UserError(
            f"topology {name!r}: a host has at most {GPUS_PER_HOST} GPUs; write hosts x GPUs, for example {kind}:2x8"
        )
    memory = GPUS[kind].memory
    return Topology(
        name, "cuda", kind, (hosts, gpus), 1, hosts * gpus, memory, int(GPU_USABLE * memory)
    )


def _cpu(name: str, shape: tuple[int, ...]) -> Topology:
    if len(shape) > 1:
        raise UserError(
            f"topology {name!r}: simulated devices are a plain number, for example cpu:8"
        )
    count = math.prod(shape)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // count
    return Topology(name, "cpu", "cpu", shape, 1, count, memory, memory)


def prepare(topology: Topology) -> None:
    """Readies this process to compile for `topology`; only before jax has started (made a device or an array)."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    if topology.platform == "cpu":
        name = "--xla_force_host_platform_device_count"
        flags = [flag for flag in flags if not flag.startswith(name)]
        flags.append(f"{name}={topology.device_count}")
    os.environ["XLA_FLAGS"] = " ".join(flags)
    os.environ.update(COMPILE_ONLY)
    jax.config.update("jax_platforms", "cpu")
    # A program for another machine cannot be loaded from the cache, and the compile time is wanted.
    jax.config.update("jax_enable_compilation_cache", False)


def topology_devices(topology: Topology | str) -> list[Any]:
    """The devices to build a mesh of (`jaxvid.core.mesh.make_mesh(config, devices)`); they can only be compiled for.

    Raises UserError when the compiler for them is not installed, when it refuses the shape, or when this process was
    started in a way that cannot reach it.
    """
    topology = parse_topology(topology) if isinstance(topology, str) else topology
    if topology.platform == "cpu":
        devices = jax.devices("cpu")
        if len(devices) < topology.device_count:
            raise UserError(
                f"topology {topology.name!r}: this process simulates {len(devices)} devices; start it with "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={topology.device_count} or use plan_in_subprocess"
            )
        return devices[: topology.device_count]
    _require(topology)
    for name, value in COMPILE_ONLY.items():
        os.environ.setdefault(name, value)
    try:
        return list(_describe(topology).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"topology {topology.name!r} was refused by its compiler: {reason}; these forms work: {WORKS}"
            if topology.platform == "tpu"
            else f"topology {topology.name!r}: {reason}; use plan_in_subprocess, which prepares jax for it"
        ) from error


def _require(topology: Topology) -> None:
    modules = {"tpu": ["libtpu"], "cuda": ["jax_cuda13_plugin", "jax_plugins.xla_cuda13"]}
    for module in modules[topology.platform]:
        try:
            found = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # the parent package of a dotted name
            found = False
        if not found:
            raise UserError(f"topology {topology.name!r} needs the package {module}; {REMEDY}")


def _describe(topology: Topology) -> Any:
    from jax.experimental import topologies

    shape = "x".join(map(str, topology.shape))
    if topology.platform == "cuda":
        gpu = GPUS[topology.kind]
        target = HOPPER.format(bandwidth=gpu.bandwidth, memory=gpu.memory, name=gpu.name)
        return topologies.get_topology_desc("", "cuda", target_config=target, topology=f"1x{shape}")
    options: dict[str, Any] = {}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if TPUS[topology.kind].chip_config is not None:
        options["chip_config_name"] = TPUS[topology.kind].chip_config
    return topologies.get_topology_desc(f"{topology.kind}:{shape}", "tpu", **options)
