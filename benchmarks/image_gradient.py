"""Memory of the gradient of a whole image's loss: in two phases, beside plain automatic differentiation.

In two phases (`jaxedit.render.image.chunked`) a chunk of rays at a time is rendered, and rendered again when its part of
the gradient is taken; plain differentiation renders all rays at once and keeps every sample for the way back. Both are
compiled, not run, for one device. Peak memory has the field, its gradient, the true image, rays and pixels in it.

    python benchmarks/image_gradient.py cpu:1 --json cpu.json
    python benchmarks/image_gradient.py h200:1 --json h200.json           needs pip install "jaxvid[plan]"; v5e:1x1 likewise
    python benchmarks/image_gradient.py resident --json resident.json     runs: resident memory of new processes
    python benchmarks/image_gradient.py table cpu.json h200.json resident.json > table.md

`--field packed` takes one field, `--sizes 200 400` other sizes.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxedit.render.compositing import Pixels
from jaxedit.scene.cameras import Cameras, image_rays
from jaxedit.systems.reconstruct import programs
from jaxedit.systems.reconstruct.training import abstract_model, begin, look_at_cells, render
from jaxvid.core.errors import UserError
from jaxvid.core.paths import unflatten
from jaxvid.plan import Program, plan_in_subprocess
from jaxvid.train.state import Params

CHUNK = 4096
SIZES = (200, 400, 800)
# Name: what it is, the configuration, words for it.
FIELDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "packed": ("voxels, 128^3 packed", "reconstruct/voxels", ("--fit=fine",)),
    "dense": ("voxels, 64^3 dense", "reconstruct/voxels", ("--fit=coarse",)),
    "everywhere": (
        "voxels, 64^3 dense, every sample asked",
        "reconstruct/voxels",
        ("--fit=coarse", "--occupancy=None"),
    ),
    "hash": ("hash grid", "reconstruct/hash", ()),
}
WAYS = {
    "two phases": "jaxedit.systems.reconstruct.programs:gradient",
    "plain": "image_gradient:plain",
}
# What is run: every sample of 64 a ray asked, so that the work does not depend on what the field holds.
RESIDENT = ("reconstruct/voxels", ("--fit=coarse", "--occupancy=None", "--render.samples=64"))


def plain(name: str, words: Sequence[str], devices: Sequence[Any]) -> Program:
    """The gradient without chunks, everything kept (but for the passes of the sparse renderer after the first)."""
    of = programs.setting(name, words, devices)
    form = abstract_model(of.system, of.frame, of.fit)

    def draw(params: Params, level: Any, cameras: Cameras) -> Pixels:
        model, rays = unflatten(form, params), image_rays(cameras, 0)
        shape = rays.origin.shape[:-1]
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), rays)
        occupied = look_at_cells(of.system, model, level)
        pixels = render(of.system, model, flat, occupied=occupied, mesh=of.mesh)[0]
        return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), pixels)

    return programs.gradient_through(draw, of)


def planned(topology: str, fields: Sequence[str], sizes: Sequence[int]) -> dict[str, Any]:
    """{field: {size: {way: peak and argument bytes, FLOPs, and the compiler's word where it refused}}}."""
    # The compiling process looks for `image_gradient` here.
    places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    found: dict[str, Any] = {}
    for field in fields:
        _, config, words = FIELDS[field]
        for size in sizes:
            for way, program in WAYS.items():
                options = [*words, f"--size={size}", f"--chunk={CHUNK}"]
                try:
                    plan = plan_in_subprocess(program, config, topology, options)
                except UserError as error:
                    row: dict[str, Any] = {"error": str(error)}
                else:
                    row = {
                        # This machine's memory is nobody's limit.
                        "fits": plan.fits or topology.startswith("cpu"),
                        "peak": plan.peak_bytes_per_device,
                        "arguments": plan.argument_bytes,
                        "compile_s": plan.compile_seconds,
                        "error": plan.error,
                    }
                found.setdefault(field, {}).setdefault(str(size), {})[way] = row
                print(topology, "|", field, size, way, "|", row, file=sys.stderr, flush=True)
    return found


def resident(sizes: Sequence[int]) -> dict[str, Any]:
    """{size: {way: megabytes before the run and at most during it}}, each in a new process."""
    found: dict[str, Any] = {}
    for size in sizes:
        for way in WAYS:
            command = [sys.executable, __file__, "run", "--sizes", str(size), "--way", way]
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )
            # A process that is killed for want of memory says nothing.
            row = json.loads(done.stdout) if done.returncode == 0 else {"ended": done.returncode}
            found.setdefault(str(size), {})[way] = row
            print(size, way, row, file=sys.stderr, flush=True)
    return found


def run(size: int, way: str) -> dict[str, int]:
    """Takes one gradient in this process: its resident bytes before, and the most of them meanwhile."""
    config, words = RESIDENT
    words = [*words, f"--size={size}", f"--chunk={CHUNK}"]
    make = programs.gradient if way == "two phases" else plain
    of, devices = programs.setting(config, words, jax.devices()[:1]), jax.devices()[:1]
    program = make(config, words, devices)
    gradient = jax.jit(program.fn).lower(*program.args).compile()
    state = jax.jit(lambda key: begin(of.system, of.frame, of.fit, None, key))(jax.random.key(0))
    one = of.cameras.select([0])
    camera = {name: jnp.asarray(getattr(one, name)) for name in program.args[3]}
    target = jnp.zeros((size, size, 3))
    args = (state["trainable"], state["frozen"], None, camera, target)
    jax.block_until_ready(args)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    out = jax.block_until_ready(gradient(*args))
    most = status("VmHWM")
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in out.values())
    return {"before": before, "most": most}


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def table(results: dict[str, Any]) -> str:
    """Markdown: peaks by field, size and way; then bytes a pixel that the largest size adds; then what was resident."""
    targets = [name for name in results if name != "resident"]
    head = ["field", "way", *(f"{target} {size}" for target in targets for size in SIZES)]
    head += [f"{target} bytes a pixel" for target in targets]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for field, (about, _, _) in FIELDS.items():
        for way in WAYS:
            cells, slopes = [about, way], []
            for target in targets:
                by_size = results[target].get(field, {})
                rows = [by_size.get(str(size), {}).get(way, {}) for size in SIZES]
                cells += [cell(row) for row in rows]
                slopes.append(slope(rows))
            lines.append("| " + " | ".join([*cells, *slopes]) + " |")
    if "resident" in results:
        lines += [
            "",
            "| size | way | resident before, MiB | at most, MiB | more, MiB |",
            "|" + " --- |" * 5,
        ]
        for size, ways in results["resident"].items():
            for way, row in ways.items():
                if "ended" in row:
                    lines.append(f"| {size} | {way} | | ended with {row['ended']} | |")
                    continue
                numbers = (row["before"], row["most"], row["most"] - row["before"])
                cells = [f"{number / 2**20:,.0f}" for number in numbers]
                lines.append(f"| {size} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(row: dict[str, Any]) -> str:
    """MiB; a program that does not fit is marked."""
    if not row:
        return "-"
    if row.get("peak") is None:
        return "refused"
    return f"{row['peak'] / 2**20:,.0f}" + ("" if row["fits"] else " (does not fit)")


def slope(rows: Sequence[dict[str, Any]]) -> str:
    """Bytes that a further pixel takes, between the last two sizes."""
    low, high = (row.get("peak") for row in rows[-2:])
    if low is None or high is None:
        return "-"
    return f"{(high - low) / (SIZES[-1] ** 2 - SIZES[-2] ** 2):,.0f}"


def main() -> None:
    """Compiles or runs, and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", help="a topology of one device, resident, or table")
    parser.add_argument("files", nargs="*", type=Path, help="for table: the results")
    parser.add_argument("--field", choices=list(FIELDS), action="append", help="only this field")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)  # of a new process
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.target == "run":
        print(json.dumps(run(arguments.sizes[0], arguments.way)))
        return
    if arguments.target == "table":
        results: dict[str, Any] = {}
        for file in arguments.files:
            results |= json.loads(file.read_text())
    elif arguments.target == "resident":
        results = {"resident": resident(arguments.sizes)}
    else:
        fields = arguments.field or list(FIELDS)
        results = {arguments.target: planned(arguments.target, fields, arguments.sizes)}
    print(table(results))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
