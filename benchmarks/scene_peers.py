"""Our fields and renderer against PyTorch's, on a CPU: voxels against Vox-E, hash encoding against nerfstudio.

The peers are Vox-E's dense voxel renderer (its `VolumetricModel`) and nerfstudio's hash encoding in PyTorch
(`HashEncoding(implementation="torch")`), eager as they are published, each in its own environment and process
(`scene_peers_torch.py`). Both sides are float32 and use the same number of threads. How pairs are taken: `pairs.py`.

Voxels. The scene is fitted coarsely by our preset; then both sides render the same rays of that grid (`forward`), and
train on them (`train`: a loss, gradients, Adam). Drawing pixels and making rays is left out of the peer's figures, in
its favour; so is its jitter, one random number a sample, and the second render that its trainer adds by default. Of
ours,

    same       does exactly the peer's work: all samples of all rays in a dense grid. The first losses of training must
               agree with the peer's (checked)
    occupancy  is the step of `jaxedit fit` on a dense grid: it makes rays from pixels, jitters them, and asks the field
               near matter alone
    packed     is the same on a grid that stores no other voxels, which is what the preset's second fit does

Hash encoding. Features of random points (`forward`), and the gradient of the table with it (`backward`). Not the same
numbers: nerfstudio hashes every level, where we, as instant-ngp, give the coarse ones a row a grid point and so have a
smaller table; scales and offsets of levels differ. Work is alike: the same levels, corners and features a point.

    python benchmarks/scene_peers.py --peer-python VENV/bin/python --vox-e CHECKOUT --nerfstudio CHECKOUT
        --scene SCENE --json scene_peers.json

A peer that is absent is skipped with a line that says so. `--only nerfstudio/laptop` and the like run one case.
`--profile` adds where our own training steps spend their time (`scene_profile.py`); it needs no peer, and `--only
profile` runs nothing else.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from pairs import (
    PAIRS,
    Peer,
    clock_cells,
    commit,
    lacking,
    markdown,
    milliseconds,
    pairs,
    use_cores,
)
from scene_ours import Ours, Stage, begin, dense, fitted, hash_encoding, same, same_work, shipped
from scene_profile import profile

from jaxedit.fields.hash_grid import HashGridConfig, levels_of
from jaxedit.scene.load import SceneConfig
from jaxedit.systems.reconstruct import Reconstruct
from jaxvid.core.config import load_config

IMAGE_SIZE = 128
VOXELS = ("coarse", "fine")  # the fits of the preset: a dense grid, and a finer one that is packed
COMPARED, TOLERANCE = 3, 1e-4  # so many first losses of training must agree, relative
POINTS = (2**16, 2**18)
HASH_GRIDS = {
    "paper": HashGridConfig(),
    "laptop": HashGridConfig(levels=8, table=15, finest=256),
}
CASES = [("vox-e", fit) for fit in VOXELS] + [("nerfstudio", size) for size in HASH_GRIDS]
HASH_STEPS = 300  # of training before the hash grid's profile: the occupancy has emptied by then
MODULES = {  # that the peer's files import
    "vox-e": ("torch", "numpy", "matplotlib", "tqdm", "easydict", "yaml"),
    "nerfstudio": ("torch", "numpy", "jaxtyping", "rich"),
}
WORKER = "scene_peers_torch.py"
Rows = list[dict[str, Any]]


def voxel_stages(scene: Path, steps: int) -> dict[str, Stage]:
    """The preset's grids, holding the scene: "coarse" after `steps` of training, "whole" and "packed" grown from it."""
    system: Reconstruct = load_config("reconstruct/voxels")
    system = replace(system, data=SceneConfig(path=str(scene), size=IMAGE_SIZE))
    views = system.scene()
    system = system.seeing(views)
    coarse = fitted(begin(system, views, 0), steps)
    whole, packed = (begin(s, views, 1, coarse.state) for s in (dense(system), system))
    lost = int(packed.state["extra"]["lost"])
    if lost:
        raise SystemExit(f"{lost} voxels did not fit into the packed grid; raise --fit-steps")
    return {"coarse": coarse, "whole": whole, "packed": packed}


def hash_stage(voxels: Stage) -> Stage:
    """The preset's hash grid on the same scene after a short fit."""
    system: Reconstruct = load_config("reconstruct/hash")
    system = replace(system, data=voxels.system.data).seeing(voxels.scene)
    return fitted(begin(system, voxels.scene, 0), HASH_STEPS)


@contextmanager
def asked(
    args: argparse.Namespace, name: str, request: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> Iterator[tuple[Peer, dict[str, Any]]]:
    """The peer, ready to be timed, and its description."""
    source = source_of(args, name)
    assert source is not None
    with tempfile.TemporaryDirectory() as folder, Peer(args.peer_python, WORKER) as peer:
        path = Path(folder) / "data.npz"
        np.savez(path, **cast(Any, arrays))
        common = {"peer": name, "source": source, "threads": args.threads, "data": str(path)}
        theirs = peer.ask(request | common)
        theirs["versions"] = f"jax {jax.__version__}, {theirs['versions']}{commit(source)}"
        yield peer, theirs


def timed_rows(
    ours: Ours, peer: Peer, theirs: Mapping[str, Any], about: Mapping[str, Any], count: int
) -> Rows:
    """A row a step."""
    rows = []
    for step, program in ours.programs.items():
        costs: dict[str, Any] = {
            "versions": theirs["versions"],
            "first_s": [program.compile_s, theirs["first_s"][step]],
        }
        if ours.counted:
            costs["our_gflops"] = (program.flops.total + program.flops.other) / 1e9
        rows.append({**about, **costs, **pairs(ours.steps[step], peer, step, count)})
        print(f"{about['case']} {about['variant']} {step}: {rows[-1]['wall']}", file=sys.stderr)
    return rows


def voxel_rows(args: argparse.Namespace, stages: Mapping[str, Stage], case: str) -> Rows:
    """All our variants against Vox-E, on the grid of one fit."""
    whole = stages["coarse" if case == "coarse" else "whole"]
    work = same_work(whole)
    ours = {"same": same(work, COMPARED), "occupancy": shipped(whole)}
    if case == "fine":
        ours["packed"] = shipped(stages["packed"])
    rays, side = len(work.target), work.grid.config.resolution[0]
    about = {
        "peer": "vox-e",
        "case": f"{side}^3 voxels, {rays} rays of {work.samples}",
        "items": rays,
        "threads": args.threads,
    }
    rows = []
    with asked(args, "vox-e", work.request(COMPARED), work.arrays()) as (peer, theirs):
        losses = {"losses": [ours["same"].losses, theirs["losses"]]}
        if not np.allclose(*losses["losses"], rtol=TOLERANCE, atol=0.0):
            raise SystemExit(f"vox-e {case}: losses differ, ours and theirs are {losses['losses']}")
        for variant, mine in ours.items():
            notes = losses if variant == "same" else {}
            rows += timed_rows(mine, peer, theirs, about | notes | {"variant": variant}, args.pairs)
    return rows


def hash_rows(args: argparse.Namespace, case: str) -> Rows:
    """Our hash encoding against nerfstudio's, on few and on many points."""
    config, rows = HASH_GRIDS[case], []
    width = config.levels * config.features
    arguments = {
        "num_levels": config.levels,
        "min_res": config.base,
        "max_res": config.finest,
        "log2_hashmap_size": config.table,
        "features_per_level": config.features,
    }
    table = levels_of(config)[-1]
    for points in POINTS:
        rng = np.random.default_rng(0)
        arrays = {
            "points": rng.random((points, 3), np.float32),
            "cotangent": rng.standard_normal((points, width), np.float32),
        }
        ours = hash_encoding(config, **arrays)
        with asked(args, "nerfstudio", {"arguments": arguments}, arrays) as (peer, theirs):
            if theirs["shape"][-1] != width:
                raise SystemExit(f"nerfstudio has {theirs['shape'][-1]} features, ours {width}")
            about = {
                "peer": "nerfstudio",
                "case": f"{config.levels} levels of 2^{config.table} rows, {points} points",
                "variant": "encode",
                "items": points,
                "threads": args.threads,
                "table_rows": [table.first + table.rows, theirs["rows"]],
            }
            rows += timed_rows(ours, peer, theirs, about, args.pairs)
    return rows


def table(rows: Rows) -> str:
    """The results as Markdown; figures of both sides are ours / theirs."""
    header = [
        "peer",
        "case",
        "ours",
        "step",
        "threads",
        "wall ms",
        "wall ratio (range)",
        "CPU ms",
        "CPU ratio (range)",
        "steps a second",
        "thousand rays or points a second",
        "our Gop",
        "compile / first call s",
    ]
    lines = []
    for row in rows:
        cells = [row[name] for name in ("peer", "case", "variant", "step")]
        cells += [str(row["threads"]), *clock_cells(row)]
        seconds = row["wall"]["ours_s"], row["wall"]["theirs_s"]
        cells.append(" / ".join(f"{1 / s:.3g}" for s in seconds))
        cells.append(" / ".join(f"{row['items'] / s / 1e3:.3g}" for s in seconds))
        cells.append(f"{row['our_gflops']:.3g}" if "our_gflops" in row else "")
        cells.append(" / ".join(f"{s:.1f}" for s in row["first_s"]))
        lines.append(cells)
    return markdown(header, lines)


def profile_table(rows: Rows) -> str:
    """The parts of our training steps as Markdown; the last part of a stage is the whole step."""
    header = ["fit", "part", "wall ms", "of the step", "CPU ms", "Gop of matrices", "other Gop"]
    step_s = {row["fit"]: row["wall_s"] for row in rows}
    lines = []
    for row in rows:
        share = row["wall_s"] / step_s[row["fit"]]
        cells = [row["fit"], row["part"], milliseconds(row["wall_s"]), f"{share:.0%}"]
        cells.append(milliseconds(row["cpu_s"]))
        cells += [f"{row[name]:.2g}" for name in ("matmul_gflop", "other_gflop")]
        lines.append(cells)
    return markdown(header, lines)


def source_of(args: argparse.Namespace, name: str) -> str | None:
    """The peer's checkout."""
    return {"vox-e": args.vox_e, "nerfstudio": args.nerfstudio}[name]


def absent(args: argparse.Namespace, name: str) -> str | None:
    """Why a peer cannot run, or None."""
    source = source_of(args, name)
    if source is None or not Path(source).is_dir():
        return f"no checkout at --{name}"
    if name == "vox-e" and args.scene is None:
        return "no --scene"
    return lacking(args.peer_python, *MODULES[name])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peer-python", help="Python of an environment with PyTorch and the peers")
    parser.add_argument("--vox-e", help="checkout of TAU-VAILab/Vox-E")
    parser.add_argument("--nerfstudio", help="checkout of nerfstudio-project/nerfstudio")
    parser.add_argument("--scene", type=Path, help="a folder that `jaxedit fit` takes")
    parser.add_argument("--only", choices=[*map("/".join, CASES), "profile"], help="one case")
    parser.add_argument("--profile", action="store_true", help="also the parts of our steps")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of each row, and turns of parts")
    parser.add_argument("--fit-steps", type=int, default=400, help="of the coarse fit at the start")
    parser.add_argument("--threads", type=int, default=2, help="of each side; 2 unless told")
    parser.add_argument("--json", type=Path, help="where the raw figures go")
    return parser.parse_args()


def present(args: argparse.Namespace) -> list[tuple[str, str]]:
    """The cases asked for whose peer is there; says which peers are not."""
    cases = [case for case in CASES if args.only in (None, "/".join(case))]
    reasons = {name: absent(args, name) for name in dict.fromkeys(name for name, _ in cases)}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"{name}: skipped, {reason}")
    return [(name, case) for name, case in cases if reasons[name] is None]


def main() -> None:
    args = arguments()
    use_cores(args.threads)
    cases, profiled = present(args), args.profile or args.only == "profile"
    if profiled and args.scene is None:
        raise SystemExit("the profile needs a --scene")
    stages: dict[str, Stage] = {}
    if profiled or any(name == "vox-e" for name, _ in cases):
        stages = voxel_stages(args.scene, args.fit_steps)
    found: dict[str, Rows] = {"pairs": [], "profile": []}

    def keep(kind: str, rows: Rows) -> None:
        found[kind] += rows
        if args.json is not None:
            args.json.write_text(json.dumps(found, indent=1) + "\n")

    for name, case in cases:
        voxels = name == "vox-e"
        keep("pairs", voxel_rows(args, stages, case) if voxels else hash_rows(args, case))
    if profiled:
        for name, stage in (("packed", stages["packed"]), ("hash", hash_stage(stages["coarse"]))):
            keep("profile", [{"fit": name} | row for row in profile(stage, args.pairs)])
    for rows, written in ((found["pairs"], table), (found["profile"], profile_table)):
        if rows:
            print(written(rows), end="\n\n")


if __name__ == "__main__":
    main()
