"""How factorized space-time layers are best written for XLA: measured, not believed.

The same sums over `b t h w c` can be written in several ways. Every variant of a group computes the same numbers (checked
before anything is timed), and is timed forward and backward on this CPU, alternating with the others, and compiled ahead of
time for a TPU v5e and an H200. `docs/factorized.md` holds the table. Decisions:

    1x3x3 convolution      frames folded into the batch, 2-D convolution
    its gradients          written out as convolutions in the forward layout (`jax.custom_vjp`): inside a loop a CPU runs
                           the ones that differentiation makes on a path tens of times slower; nothing is lost elsewhere
    3x1x1 convolution      one matrix product a tap on shifted frames
    attention              over space and over time with einsum on folded tokens
    repeated blocks        `lax.scan`

    python benchmarks/factorized.py cpu --out cpu.json       about 5 minutes on 2 cores
    python benchmarks/factorized.py v5e:1x1 --out v5e.json   needs pip install "jaxvid[plan]"; h200:1 likewise
    python benchmarks/factorized.py frames --out frames.json eight simulated devices, frames split over two
    python benchmarks/factorized.py table cpu.json v5e.json h200.json frames.json > table.md
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax

from jaxvid.core.flops import count_flops
from jaxvid.core.mesh import MeshConfig, active, batch_sharding, make_mesh
from jaxvid.plan.compile import count_collectives
from jaxvid.plan.topology import parse_topology, prepare, topology_devices

Variant = Callable[[Any, jax.Array], jax.Array]
HEAD, ROUNDS, LAYERS = 64, 7, 4
SHAPES = {"cpu": (2, 8, 16, 16, 64), "device": (4, 8, 32, 32, 128), "frames": (4, 8, 16, 16, 64)}


# Space


def fold(conv: Callable[[jax.Array, jax.Array], jax.Array]) -> Variant:
    def apply(kernel, x):
        return conv(x.reshape(-1, *x.shape[2:]), kernel).reshape(x.shape)

    return apply


def conv2d(x, kernel, padding="SAME"):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def conv_rank5(kernel, x):
    layouts = ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(x, kernel[None], (1, 1, 1), "SAME", dimension_numbers=layouts)


def conv_vmap(kernel, x):
    return jax.vmap(lambda frame: conv2d(frame, kernel), in_axes=1, out_axes=1)(x)


@jax.custom_vjp
def conv2d_own_gradients(x, kernel):
    return conv2d(x, kernel)


def _forward(x, kernel):
    return conv2d(x, kernel), (x, kernel)


def _backward(saved, g):
    """Both gradients as NHWC convolutions: of g with the flipped kernel, and of x with g (batch as channels)."""
    x, kernel = saved
    pads = [((n - 1) // 2, n - 1 - (n - 1) // 2) for n in kernel.shape[:2]]
    dx = conv2d(
        g, jnp.swapaxes(jnp.flip(kernel, (0, 1)), 2, 3), [(high, low) for low, high in pads]
    )
    dkernel = conv2d(jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(g, (1, 2, 0, 3)), pads)
    return dx, jnp.transpose(dkernel, (1, 2, 0, 3))


conv2d_own_gradients.defvjp(_forward, _backward)


# Time


def time_rank5(kernel, x):
    layouts = ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(
        x, kernel[:, None, None], (1, 1, 1), "SAME", dimension_numbers=layouts
    )


def time_conv1d(kernel, x):
    b, _, h, w, _ = x.shape
    rows = rearrange(x, "b t h w c -> (b h w) t c")
    y = lax.conv_general_dilated(
        rows, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return rearrange(y, "(b h w) t c -> b t h w c", b=b, h=h, w=w)


def time_conv2d(kernel, x):
    b, t, h, w, c = x.shape
    return conv2d(x.reshape(b, t, h * w, c), kernel[:, None]).reshape(x.shape)


def time_shifts(kernel, x, segment=None):
    """One product a tap; with `segment[b, t]`, taps that enter another segment are masked (outside is segment -1)."""
    frames, half = x.shape[1], kernel.shape[0] // 2
    padded = jnp.pad(x, [(0, 0), (half, half)] + [(0, 0)] * 3)
    taps = [padded[:, i : i + frames] for i in range(kernel.shape[0])]
    if segment is not None:
        around = jnp.pad(segment, [(0, 0), (half, half)], constant_values=-1)
        same = [around[:, i : i + frames] == segment for i in range(kernel.shape[0])]
        zero = jnp.zeros((), x.dtype)
        taps = [
            jnp.where(keep[:, :, None, None, None], tap, zero)
            for keep, tap in zip(same, taps, strict=True)
        ]
    products = [tap @ kernel[i] for i, tap in enumerate(taps)]
    return sum(products[1:], products[0])


def time_shifts_masked(kernel, x):
    return time_shifts(kernel, x, jnp.zeros(x.shape[:2], jnp.int32))


def time_gather_masked(kernel, x):
    """The same by indexing: the compiler cannot see that neighbours are near, and gathers frames split over devices."""
    frames, y = x.shape[1], jnp.zeros_like(x)
    for tap in range(kernel.shape[0]):
        source = jnp.arange(frames) + tap - kernel.shape[0] // 2
        inside = ((source >= 0) & (source < frames))[None, :, None, None, None]
        neighbour = x[:, jnp.clip(source, 0, frames - 1)]
        y = y + jnp.where(inside, neighbour, jnp.zeros((), x.dtype)) @ kernel[tap]
    return y


# Attention: params [4, c, c] are query, key, value, out


def heads(kernels, tokens):
    return [(tokens @ kernel).reshape(*tokens.shape[:-1], -1, HEAD) for kernel in kernels[:3]]


def attend_einsum(kernels, tokens, axes="bind,bjnd->bnij,bind"):
    """Softmax attention by two einsums; `axes` names query, key, scores and output."""
    scored, rest = axes.split("->")
    scores_axes, output_axes = rest.split(",")
    q, k, v = heads(kernels, tokens)
    scores = jnp.einsum(f"{scored}->{scores_axes}", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * HEAD**-0.5, axis=-1).astype(tokens.dtype)
    y = jnp.einsum(f"{scores_axes},{scored.split(',')[1]}->{output_axes}", weights, v)
    return y.reshape(tokens.shape) @ kernels[3]


def attend_library(kernels, tokens):
    return jax.nn.dot_product_attention(*heads(kernels, tokens)).reshape(tokens.shape) @ kernels[3]


def over_space(attend) -> Variant:
    def apply(kernels, x):
        b, t, h, w, c = x.shape
        return attend(kernels, x.reshape(b * t, h * w, c)).reshape(x.shape)

    return apply


def over_time(attend) -> Variant:
    def apply(kernels, x):
        b, _, h, w, _ = x.shape
        y = attend(kernels, rearrange(x, "b t h w c -> (b h w) t c"))
        return rearrange(y, "(b h w) t c -> b t h w c", b=b, h=h, w=w)

    return apply


def direct(axes: str) -> Variant:
    def apply(kernels, x):
        b, t, h, w, c = x.shape
        return attend_einsum(kernels, x.reshape(b, t, h * w, c), axes).reshape(x.shape)

    return apply


# Blocks


def blocks(conv, unroll: int, remat: bool = False) -> Variant:
    """LAYERS residual blocks of two convolutions: stacked parameters, scanned or unrolled."""

    def block(x, kernels):
        h = fold(conv)(kernels[0], jax.nn.silu(x))
        return x + fold(conv)(kernels[1], jax.nn.silu(h)), None

    def apply(stack, x):
        body = jax.checkpoint(block) if remat else block
        return lax.scan(body, x, stack, unroll=unroll)[0]

    return apply


GROUPS: dict[str, tuple[tuple[str, ...], dict[str, Variant]]] = {
    "1x3x3 convolution": (
        ("3", "3", "c", "c"),
        {
            "frames in the batch": fold(conv2d),
            "rank 5": conv_rank5,
            "vmap over frames": conv_vmap,
            "frames in the batch, own gradients": fold(conv2d_own_gradients),
        },
    ),
    "3x1x1 convolution": (
        ("3", "c", "c"),
        {
            "shifted products": time_shifts,
            "shifted products, masked": time_shifts_masked,
            "indexed products, masked": time_gather_masked,
            "rank 5": time_rank5,
            "pixels in the batch, 1-D": time_conv1d,
            "pixels as one side, 2-D": time_conv2d,
        },
    ),
    "spatial attention": (
        ("4", "c", "c"),
        {
            "folded, einsum": over_space(attend_einsum),
            "folded, dot_product_attention": over_space(attend_library),
            "not folded, einsum": direct("btind,btjnd->btnij,btind"),
        },
    ),
    "temporal attention": (
        ("4", "c", "c"),
        {
            "folded, einsum": over_time(attend_einsum),
            "folded, dot_product_attention": over_time(attend_library),
            "not folded, einsum": direct("bipnd,bjpnd->bpnij,bipnd"),
        },
    ),
    "4 blocks": (
        ("L", "2", "3", "3", "c", "c"),
        {
            "unrolled": blocks(conv2d, LAYERS),
            "scan": blocks(conv2d, 1),
            "scan, own gradients": blocks(conv2d_own_gradients, 1),
            "unrolled, remat": blocks(conv2d, LAYERS, remat=True),
            "scan, remat": blocks(conv2d, 1, remat=True),
            "scan, remat, own gradients": blocks(conv2d_own_gradients, 1, remat=True),
        },
    ),
}


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
    memory, cost = program.memory_analysis(), program.cost_analysis() or {}
    return program, {
        "compile_s": time.perf_counter() - started,
        "gflops": count_flops(training(variant), *args).total / 1e9,
        "temp_mib": memory.temp_size_in_bytes / 2**20,
        "peak_mib": memory.peak_memory_in_bytes / 2**20,
        "accessed_mib": cost["bytes accessed"] / 2**20 if "bytes accessed" in cost else None,
    }


def measure_cpu(group: str) -> dict[str, dict[str, Any]]:
    """Compiles all variants, checks that they agree, and times them in alternation."""
    params, x = inputs(group, SHAPES["cpu"], jnp.float32)
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.normal(size=a.shape, scale=0.05), jnp.float32) for a in (params, x)]
    programs, rows = {}, {}
    for name, variant in GROUPS[group][1].items():
        programs[name], rows[name] = compiled(variant, *args)
    results = {name: jax.tree.leaves(program(*args)) for name, program in programs.items()}
    first = next(iter(results.values()))
    for name, leaves in results.items():
        for ours, theirs in zip(leaves, first, strict=True):
            error = jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs)
            assert error < 1e-4, (group, name, error)
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, program in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(program(*args))
            times[name].append(time.perf_counter() - started)
    reference = next(iter(times.values()))
    for name, spent in times.items():
        ratios = [a / b for a, b in zip(spent, reference, strict=True)]
        rows[name] |= {"ms": 1e3 * statistics.median(spent), "ratio": statistics.median(ratios)}
        rows[name] |= {"ratio_range": [min(ratios), max(ratios)]}
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
    targets = [target for target in results if target != "frames"]
    for group, (_, variants) in GROUPS.items():
        head = ["variant", "GFLOPs", "CPU ms", "ratio (range)", "CPU temp MiB", "CPU compile s"]
        for target in targets[1:]:
            head += [f"{target} temp MiB", f"{target} accessed MiB", f"{target} compile s"]
        head.append("collectives, frames split")
        lines += [f"\n### {group}\n", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        for name in variants:
            cpu = results["cpu"][group][name]
            low, high = cpu["ratio_range"]
            row = [
                name,
                f"{cpu['gflops']:.2f}",
                f"{cpu['ms']:.1f}",
                f"{cpu['ratio']:.2f} ({low:.2f}-{high:.2f})",
            ]
            row += [f"{cpu['temp_mib']:.0f}", f"{cpu['compile_s']:.1f}"]
            for target in targets[1:]:
                device = results[target][group][name]
                accessed = device["accessed_mib"]
                row += [
                    f"{device['temp_mib']:.0f}",
                    "not reported" if accessed is None else f"{accessed:.0f}",
                ]
                row.append(f"{device['compile_s']:.1f}")
            used = results["frames"][group][name]["collectives"] if "frames" in results else {}
            row.append(", ".join(f"{n} {kind}" for kind, n in used.items()) or "none")
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", help="cpu, frames, a topology of one device, or table")
    parser.add_argument("files", nargs="*", type=Path, help="for table: results, the CPU's first")
    parser.add_argument("--group", choices=list(GROUPS), help="only this group")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.target == "table":
        print(
            table(
                {k: v for file in arguments.files for k, v in json.loads(file.read_text()).items()}
            )
        )
        return
    topology = {"cpu": "cpu:1", "frames": "cpu:8"}.get(arguments.target, arguments.target)
    prepare(parse_topology(topology))
    devices, rows = topology_devices(topology), {}
    for group in [arguments.group] if arguments.group else GROUPS:
        if arguments.target == "cpu":
            rows[group] = measure_cpu(group)
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
