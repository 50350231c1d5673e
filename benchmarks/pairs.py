"""Two programs timed in turn: ours in this process, a peer's in a process of its own, asked over pipes.

Both processes stay alive and take turns, so that a pair meets the same load; a ratio is their time over ours in one
pair, and above 1 we are faster. The figure is the median of the pairs, its spread their range.

Both sides import this module, in different environments: it needs the standard library alone. Standard input and
output of the peer carry one JSON value a line. The first line in is a request, the answer a description. Each line
after it names a step; the answer is `{"wall": seconds, "cpu": seconds}` of one such step. A closed input ends the
process.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PAIRS = 7
CLOCKS = ("wall", "cpu")


class Peer:
    """The peer's process, running the file `worker` beside this one; `ask` sends one JSON value and awaits the answer."""

    def __init__(self, python: str, worker: str):
        # Threads that wait must sleep: spinning would count as CPU time where other programs hold the cores.
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name(worker))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, value: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(value), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer's process ended with {self.process.wait()}")
        return json.loads(line)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(build: Callable[[Any], tuple[Mapping[str, Callable[[], Any]], Any]]) -> None:
    """The peer's side: `build(request)` gives its steps by name and its description."""
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not enter the answers

    def answer(value: Any) -> None:
        print(json.dumps(value), file=out, flush=True)

    steps, description = build(json.loads(sys.stdin.readline()))
    answer(description)
    for line in sys.stdin:
        answer(timed(steps[json.loads(line)]))


def timed(function: Callable[[], Any]) -> dict[str, float]:
    """Seconds on the clock, and of all threads of this process."""
    started = time.perf_counter(), time.process_time()
    function()
    return {"wall": time.perf_counter() - started[0], "cpu": time.process_time() - started[1]}


def pairs(ours: Callable[[], Any], peer: Peer, step: str, count: int = PAIRS) -> dict[str, Any]:
    """`count` times ours, then the peer's `step`, after one of each to warm up."""
    timed(ours)
    peer.ask(step)
    mine, theirs = [], []
    for _ in range(count):
        mine.append(timed(ours))
        theirs.append(peer.ask(step))
    row: dict[str, Any] = {"step": step, "ours": mine, "theirs": theirs}
    for clock in CLOCKS:
        ratios = [b[clock] / a[clock] for a, b in zip(mine, theirs, strict=True)]
        row[clock] = {
            "ours_s": statistics.median(a[clock] for a in mine),
            "theirs_s": statistics.median(b[clock] for b in theirs),
            "ratio": statistics.median(ratios),
            "range": [min(ratios), max(ratios)],
        }
    return row


def use_cores(count: int) -> None:
    """Keeps this process and those that it starts to `count` cores, and so XLA to as many threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def commit(source: str) -> str:
    """The checkout's commit, for the record; nothing where the peer is a package."""
    if not source:
        return ""
    command = ["git", "-C", source, "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return f", commit {found.stdout.strip() or 'unknown'}"


def lacking(python: str | None, *modules: str) -> str | None:
    """Why that Python cannot run a peer that needs those modules, or None."""
    if python is None or not Path(python).exists():
        return "no --peer-python"
    command = [python, "-c", f"import {', '.join(modules)}"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return f"{python} cannot import {' and '.join(modules)}"
    return None


def clock_cells(row: Mapping[str, Any]) -> list[str]:
    """For each clock the milliseconds of both sides and the ratio with its range, for a table."""
    cells = []
    for clock in CLOCKS:
        figures = row[clock]
        cells.append(f"{milliseconds(figures['ours_s'])} / {milliseconds(figures['theirs_s'])}")
        low, high = figures["range"]
        cells.append(f"{figures['ratio']:.2f} ({low:.2f}-{high:.2f})")
    return cells


def milliseconds(seconds: float) -> str:
    """To three digits, or to the millisecond."""
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
