"""How factorized space-time layers are best written for XLA: measured, not believed.

The same sums over `b t h w c` can be written in several ways (`factorized_variants.py`). All variants of a group agree to
1e-4 in loss and gradients, checked before anything is timed; each is timed forward and backward on this CPU (in float32) or
GPU (bfloat16, agreeing to 3%), in alternation with the others, and compiled ahead of time in bfloat16 for a TPU v5e and an
H200. `docs/factorized.md` holds the tables.
Decisions:

    1x3x3 convolution    frames folded into the batch, 2-D convolution; at stride 1 its two gradients written out as
                         convolutions in the forward layout (`jax.custom_vjp`): those that differentiation makes take a
                         slow path on a CPU inside a loop, 39 times the work; on v5e and H200 nothing changes
    3x1x1 convolution    one matrix product a tap on padded, sliced frames: masks by segment, and exchanges single frames
                         where they are split over devices (indexing gathers them all)
    attention            over space on folded frames (each device's own where they are split), over time on folded pixels
    norms                sums over pixels, then over groups, with the gradient written out
    repeated blocks      `lax.scan`, with the gradients above also on a CPU

    python benchmarks/factorized.py cpu --out cpu.json       about a minute on 2 idle cores
    python benchmarks/factorized.py gpu --out gpu.json       on the first GPU of this machine
    python benchmarks/factorized.py v5e:1x1 --out v5e.json   needs pip install "jaxvid[plan]"; h200:1 likewise
    python benchmarks/factorized.py frames --out frames.json eight simulated devices, frames split over two
    python benchmarks/factorized.py table cpu.json v5e.json h200.json frames.json > table.md
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from factorized_variants import GROUPS, LAYERS, Variant

from jaxvid.core.flops import count_flops
from jaxvid.core.mesh import MeshConfig, active, batch_sharding, make_mesh
from jaxvid.plan.compile import count_collectives
from jaxvid.plan.topology import parse_topology, prepare, topology_devices

ROUNDS = 7
SHAPES = {"cpu": (2, 8, 16, 16, 64), "device": (4, 8, 32, 32, 128), "frames": (8, 8, 16, 16, 64)}


def inputs(
    group: str, shape: tuple[int, ...], dtype: Any
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    sizes = {"c": shape[-1], "L": LAYERS}
    params = tuple(sizes.get(name) or int(name) for name in GROUPS[group][0])
    return jax.ShapeDtypeStruct(params, dtype), jax.ShapeDtypeStruct(shape, dtype)


def training(variant: Variant):
    """Loss and both gradients: what a train step makes of a layer."""

    def loss(params, x):
        return jnp.mean(jnp.square(variant(params, x).astype(jnp.float32)))

    return jax.value_and_grad(loss, (0, 1))


def compiled(variant: Variant, *args, options=None) -> tuple[Any, dict[str, Any]]:
    """The executable of the train step and what the compiler says of it."""
    lowered = jax.jit(training(variant)).lower(*args)
    started = time.perf_counter()
    program = lowered.compile(compiler_options=options)
    memory = program.memory_analysis()
    accessed = (program.cost_analysis() or {}).get("bytes accessed")
    return program, {
        "compile_s": time.perf_counter() - started,
        "gflops": count_flops(training(variant), *args).total / 1e9,
        "temp_mib": memory.temp_size_in_bytes / 2**20,
        "peak_mib": memory.peak_memory_in_bytes / 2**20,
        # The compiler counts a loop's body once, so its traffic is not the program's.
        "accessed_mib": accessed / 2**20
        if accessed and " while(" not in program.as_text()
        else None,
    }


def measure_here(
    group: str, shape: tuple[int, ...], dtype: Any, tolerance: float, calls: int
) -> dict[str, dict[str, Any]]:
    """Compiles all variants, checks that they agree, and times them in alternation, `calls` one after the other."""
    rng = np.random.default_rng(0)
    args = [
        jnp.asarray(rng.normal(size=a.shape, scale=0.05), dtype)
        for a in inputs(group, shape, dtype)
    ]
    programs, rows = {}, {}
    for name, variant in GROUPS[group][1].items():
        programs[name], rows[name] = compiled(variant, *args)
    results = {name: jax.tree.leaves(program(*args)) for name, program in programs.items()}
    first = next(iter(results.values()))
    for name, leaves in results.items():
        for ours, theirs in zip(leaves, first, strict=True):
            ours, theirs = ours.astype(jnp.float32), theirs.astype(jnp.float32)
            error = jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs)
            assert error < tolerance, (group, name, error)
    wall: dict[str, list[float]] = {name: [] for name in programs}
    work: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, program in programs.items():
            started = time.perf_counter(), time.process_time()
            jax.block_until_ready([program(*args) for _ in range(calls)])
            wall[name].append((time.perf_counter() - started[0]) / calls)
            work[name].append((time.process_time() - started[1]) / calls)
    for name in programs:
        ratios = [a / b for a, b in zip(wall[name], next(iter(wall.values())), strict=True)]
        rows[name] |= {
            "ms": 1e3 * statistics.median(wall[name]),
            "ratio": statistics.median(ratios),
        }
        rows[name] |= {"ratio_range": [min(ratios), max(ratios)]}
        rows[name] |= {"cpu_ms": 1e3 * statistics.median(work[name])}
    return rows


def measure_device(group: str, topology: str, devices: list[Any]) -> dict[str, dict[str, Any]]:
    """Compiles each variant in bfloat16 for one absent device."""
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    options = {"xla_gpu_autotune_level": 0} if topology.startswith("h") else None
    rows = {}
    for name, variant in GROUPS[group][1].items():
        args = [
            jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
            for a in inputs(group, SHAPES["device"], jnp.bfloat16)
        ]
        rows[name] = compiled(variant, *args, options=options)[1]
    return rows


def measure_frames(group: str, devices: list[Any]) -> dict[str, dict[str, Any]]:
    """Collectives of each variant with examples split over four devices and frames over two."""
    mesh = make_mesh(MeshConfig(data=4, frames=2), devices)
    rows = {}
    for name, variant in GROUPS[group][1].items():
        params, x = inputs(group, SHAPES["frames"], jnp.float32)
        x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh, "b t"))
        with active(mesh):
            program, rows[name] = compiled(variant, params, x)
        rows[name]["collectives"] = count_collectives(program.as_text())
    return rows


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: one table a group, columns from every target."""
    lines = []
    absent = [target for target in results if target not in ("cpu", "gpu", "frames")]
    for group, (_, variants) in GROUPS.items():
        head = ["variant", "GFLOPs", "wall ms", "ratio (range)", "CPU ms", "temp MiB", "compile s"]
        if "gpu" in results:
            head += ["GPU ms", "ratio (range)"]
        for target in absent:
            head += [f"{target} peak MiB", "accessed MiB", "compile s"]
        head.append("collectives, frames split")
        lines += [f"\n### {group}\n", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        for name in variants:
            cpu = results["cpu"][group][name]
            low, high = cpu["ratio_range"]
            row = [name, f"{cpu['gflops']:.2f}", f"{cpu['ms']:.1f}"]
            row += [f"{cpu['ratio']:.2f} ({low:.2f}-{high:.2f})", f"{cpu['cpu_ms']:.1f}"]
            row += [f"{cpu['temp_mib']:.0f}", f"{cpu['compile_s']:.1f}"]
            if "gpu" in results:
                seen = results["gpu"][group][name]
                low, high = seen["ratio_range"]
                row += [f"{seen['ms']:.2f}", f"{seen['ratio']:.2f} ({low:.2f}-{high:.2f})"]
            for target in absent:
                told = results[target].get(group, {}).get(name)
                keys = ("peak_mib", "accessed_mib", "compile_s")
                row += [
                    "-" if told is None or told[key] is None else f"{told[key]:.0f}" for key in keys
                ]
            used = results.get("frames", {}).get(group, {}).get(name, {}).get("collectives", {})
            row.append(", ".join(f"{n} {kind}" for kind, n in used.items()) or "-")
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", help="cpu, gpu, frames, a topology of one device, or table")
    parser.add_argument("files", nargs="*", type=Path, help="for table: the results")
    parser.add_argument("--group", choices=list(GROUPS), help="only this group")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.target == "table":
        results: dict[str, dict[str, Any]] = {}
        for file in arguments.files:
            for target, groups in json.loads(file.read_text()).items():
                results.setdefault(target, {}).update(groups)
        print(table(results))
        return
    topology = {"cpu": "cpu:1", "frames": "cpu:8"}.get(arguments.target, arguments.target)
    devices, rows = [], {}
    if arguments.target != "gpu":
        prepare(parse_topology(topology))
        devices = topology_devices(topology)
    for group in [arguments.group] if arguments.group else GROUPS:
        if arguments.target == "cpu":
            rows[group] = measure_here(group, SHAPES["cpu"], jnp.float32, 1e-4, calls=1)
        elif arguments.target == "gpu":
            rows[group] = measure_here(group, SHAPES["device"], jnp.bfloat16, 3e-2, calls=20)
        elif arguments.target == "frames":
            rows[group] = measure_frames(group, devices)
        else:
            rows[group] = measure_device(group, topology, devices)
        for name, row in rows[group].items():
            print(group, "|", name, "|", row, file=sys.stderr, flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({arguments.target: rows}, indent=1))


if __name__ == "__main__":
    main()
