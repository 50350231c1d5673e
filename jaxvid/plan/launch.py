"""Compile for an absent machine from a process in which jax already runs (a notebook, the command line)."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jaxvid.core.errors import UserError
from jaxvid.plan.report import Plan
from jaxvid.plan.topology import parse_topology


def plan_in_subprocess(
    program: str,
    config: str,
    topology: str,
    overrides: Sequence[str] = (),
    timeout: float | None = None,
) -> Plan:
    """Compiles a named program in a process that is prepared for `topology`; works from a process where jax runs.

    Args:
      program: "module:function", see `jaxvid.plan.worker`.
      config: the configuration's name or path, handed to the function.
      topology: for example "v5e:4x4", "2*v5p:4x4x4", "h200:8", "cpu:8".
      overrides: command line words handed to the function.
      timeout: seconds after which the compilation is given up (UserError).

    Raises UserError for whatever the function or the topology refuses, and when the process dies.
    """
    parse_topology(topology)
    with tempfile.TemporaryDirectory(prefix="jaxvid-plan-") as folder:
        out = Path(folder) / "plan.json"
        command = [
            sys.executable,
            "-m",
            "jaxvid.plan.worker",
            f"--program={program}",
            f"--config={config}",
        ]
        command += [f"--topology={topology}", f"--json={out}", "--quiet", "--", *overrides]
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"plan for {topology}: not compiled after {timeout:.0f} s; raise the timeout or reduce the program"
            ) from error
        if not out.exists():
            raise UserError(
                f"plan for {topology}: the compiling process ended with {done.returncode}: {last_words(done.stdout)}"
            )
        text = out.read_text()
    answer = json.loads(text)
    if "user_error" in answer:
        raise UserError(answer["user_error"])
    return Plan.from_json(text)


def last_words(output: str) -> str:
    """The line of a dead process's output that says why it died.

    A compiler that fails one of its own checks says so first, and then reports at length how it crashes.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    failed = [line for line in lines if "Check failed:" in line]
    if failed:
        check = failed[0][failed[0].index("Check failed:") :]
        return f"{check} (an error inside the compiler; try another mesh or batch, or another version of it)"
    return lines[-1] if lines else "killed, perhaps for lack of memory"
