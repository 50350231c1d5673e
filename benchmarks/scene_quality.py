"""Held-out quality over time of the fields that `jaxedit fit` offers: whole commands, from a shell to the last score.

    python benchmarks/scene_quality.py $JAXVID_DATA/scene_mic --out quality
    python benchmarks/scene_quality.py SCENE --config reconstruct/ngp --repeats 1 --out quality -- --data.size 800

Runs each preset `--repeats` times (with another seed each, the presets in turn, so that a change of the machine's load meets
all of them), each in a process of its own. Time counts from the start of the process: imports, loading, compiling, training,
scoring of a few views while it trains, and of all held-out views at the end.

Prints a table of medians with ranges, and writes `quality.json` and `quality.png`, PSNR over time, to the folder.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

SCORE = re.compile(
    r"PSNR (?P<psnr>[\d.]+) dB(?: \((?P<foreground>[\d.]+) dB in the foreground\))?, "
    r"SSIM (?P<ssim>[\d.]+)"
)


def main() -> None:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scene", help="as of `jaxedit fit`")
    parser.add_argument("--config", nargs="+", default=["reconstruct/voxels", "reconstruct/hash"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("options", nargs="*", help="after --: options of every configuration")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    found: dict[str, list[dict[str, Any]]] = {config: [] for config in arguments.config}
    for seed in range(arguments.repeats):
        for config in arguments.config:
            run = arguments.out / f"{config.replace('/', '_')}_{seed}"
            result = measure(arguments.scene, config, run, seed, arguments.options)
            found[config].append(result)
            print(
                f"{config} seed {seed}: {result['seconds']:.0f} s, {result['psnr']:.2f} dB",
                flush=True,
            )
    (arguments.out / "quality.json").write_text(json.dumps(found, indent=1))
    print(table(found))
    draw(found, arguments.out / "quality.png")


def measure(scene: str, config: str, run: Path, seed: int, options: list[str]) -> dict[str, Any]:
    """One command: its seconds, last scores, and curve [[seconds, PSNR of the views scored while it trains]]."""
    command = [
        sys.executable,
        "-m",
        "jaxedit.cli",
        "fit",
        scene,
        "--config",
        config,
        "--run",
        str(run),
    ]
    command += ["--loop.seed", str(seed), *options]
    log = run.with_suffix(".log")
    start, curve, seen = time.perf_counter(), [], 0
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(0.2)
            scores = scored(run / "metrics.jsonl")
            curve += [[time.perf_counter() - start, psnr] for psnr in scores[seen:]]
            seen = len(scores)
    seconds = time.perf_counter() - start
    last = SCORE.search(log.read_text())
    if process.returncode or last is None:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}; see {log}")
    values = {name: float(value) for name, value in last.groupdict("nan").items()}
    return {"seed": seed, "seconds": seconds, **values, "curve": curve}


def scored(metrics: Path) -> list[float]:
    """The PSNR of the views scored so far, in order."""
    if not metrics.exists():
        return []
    whole = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [line["test/psnr"] for line in map(json.loads, whole) if "test/psnr" in line]


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Medians over repeats, with the range."""
    names = {"psnr": "PSNR dB", "foreground": "foreground dB", "ssim": "SSIM", "seconds": "seconds"}
    rows = [["", *names.values()]]
    for config, results in found.items():
        cells = [config]
        for name in names:
            values = [result[name] for result in results]
            digits = {"seconds": 0, "ssim": 4}.get(name, 2)
            middle, low, high = (f"{f(values):.{digits}f}" for f in (statistics.median, min, max))
            cells.append(f"{middle} [{low}, {high}]")
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """PSNR over minutes, a colour a configuration, a line a repeat; a dot is the score of all held-out views."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (config, results) in enumerate(found.items()):
        for result in results:
            minutes = [seconds / 60 for seconds, _ in result["curve"]]
            label = config if result is results[0] else None
            axes.plot(minutes, [psnr for _, psnr in result["curve"]], f"C{number}", label=label)
            axes.plot(result["seconds"] / 60, result["psnr"], f"C{number}o")
    axes.set(xlabel="minutes since the command began", ylabel="PSNR of held-out views, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
