"""The command line: `jaxedit COMMAND ...`. Every command is a short call of the library; exit codes are jaxvid's."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxedit.options import DESCRIPTION, OPTIONS
from jaxvid.command import (
    LOOP_MAY_DIFFER,
    cache_compilations,
    make_parser,
    run_command,
    run_plan,
    run_training,
)
from jaxvid.core.errors import UserError

# Fields in which a resumed run may differ from how it began.
MAY_DIFFER = (*LOOP_MAY_DIFFER, "mesh", "heldout", "lpips", "chunk")
FIT_MAY_DIFFER = ("steps", "rows", "keep")  # rows and keep matter where their fit begins only


def fit(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`jaxedit fit`."""
    import jax

    from jaxedit.scene.load import describe
    from jaxedit.scene.record import FILE, SceneRecord, write_record
    from jaxedit.systems.reconstruct import Reconstruct
    from jaxvid.core.config import load_config, parse_overrides, replace
    from jaxvid.core.mesh import check_batch, make_mesh
    from jaxvid.core.run import RunDirectory
    from jaxvid.train import loop

    cache_compilations()
    system = load_config(arguments.config)
    if not isinstance(system, Reconstruct):
        raise UserError(
            f"config {arguments.config} is a {type(system).__name__}, which cannot be fitted; return a Reconstruct"
        )
    system = replace(system, {"data.path": arguments.scene})
    prog = f"jaxedit fit {arguments.scene}"
    system = parse_overrides(system, ["--help"] if arguments.options else rest, prog=prog)
    mesh = make_mesh(system.mesh)
    for stage in system.fits:
        check_batch(mesh, stage.rays)
    system.lpips_network()  # missing weights are refused before a scene is read
    scene = system.scene()
    system = system.seeing(scene)
    print(describe(scene), file=sys.stderr)
    print(system.estimate(scene), file=sys.stderr)
    phases = system.phases(scene, with_reports=True)
    loop.check_phases(phases, system.loop)
    directory = arguments.directory or Path("runs") / Path(arguments.scene).resolve().name
    may_differ = (
        *MAY_DIFFER,
        *(f"fits.{i}.{name}" for i in range(len(system.fits)) for name in FIT_MAY_DIFFER),
    )
    run = RunDirectory.open(directory, system, may_differ)
    if jax.process_index() == 0:
        write_record(SceneRecord.of(scene), run.path / FILE)

    def go() -> None:
        state = loop.fit(run, phases, system.loop, mesh=mesh)
        total = sum(stage.steps for stage in system.fits)
        step = min(total, total if system.loop.max_steps is None else system.loop.max_steps)
        split, scores = system.scores(state, scene, system.fit_reached(step))
        print(f"{split}: {scores}")
        print(f"done: {directory} (views in {run.samples})")

    return run_training("jaxedit", go)


def train(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`jaxedit train`."""
    from jaxedit.systems.instruct_pix2pix import InstructPix2Pix
    from jaxvid.core.config import load_config, parse_overrides
    from jaxvid.core.mesh import check_batch, make_mesh
    from jaxvid.core.run import RunDirectory
    from jaxvid.data.writing import check_place
    from jaxvid.train import loop

    cache_compilations()
    system = load_config(arguments.config)
    if not isinstance(system, InstructPix2Pix):
        raise UserError(
            f"config {arguments.config} is a {type(system).__name__}, which is no editing model; return an InstructPix2Pix"
        )
    prog = f"jaxedit train {arguments.config}"
    system = parse_overrides(system, ["--help"] if arguments.options else rest, prog=prog)
    mesh = make_mesh(system.mesh)
    for teaching in (system.reading, system.editing):
        check_batch(mesh, teaching.batch)
    if arguments.save is not None:
        system.check_new(arguments.save)
        check_place(arguments.save)
    phases, start = system.phases(with_reports=True), None
    if arguments.init is not None:  # it reads already
        phases, start = phases[1:], system.start_from(arguments.init)
    loop.check_phases(phases, system.loop)
    directory = arguments.directory or Path("runs") / Path(arguments.config).name
    may_differ = (*LOOP_MAY_DIFFER, "mesh", "shown", "reading.steps", "editing.steps")
    run = RunDirectory.open(directory, system, may_differ)

    def go() -> None:
        state = loop.fit(run, phases, system.loop, mesh=mesh, start=start)
        if arguments.save is not None:
            system.save(state, arguments.save, "bfloat16")
            print(f"saved {arguments.save}, for `jaxedit edit RUN --editor {arguments.save}`")
        print(f"done: {directory} (held-out edits in {run.samples})")

    return run_training("jaxedit", go)


def render(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxedit render`."""
    from jaxedit.systems.reconstruct.videos import render_to_files

    cache_compilations()
    print(render_to_files(arguments))
    return 0


def export(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxedit export`."""
    from jaxedit.export.commands import export_to_file

    cache_compilations()
    print(export_to_file(arguments))
    return 0


def view(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxedit view`."""
    from jaxedit.viewer.server import serve_run

    cache_compilations()
    serve_run(arguments)
    return 0


def evaluate(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxedit eval`."""
    from jaxedit.scoring import eval_command

    cache_compilations()
    print(eval_command(arguments))
    return 0


def plan(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`jaxedit plan`."""
    program = f"jaxedit.systems.reconstruct.programs:{arguments.program}"
    words = [f"--size={arguments.size}", *rest]
    if arguments.fit is not None:
        words = [f"--fit={arguments.fit}", *words]
    return run_plan(program, arguments.config, arguments.topology, words, arguments.json)


def edit(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`jaxedit edit`."""
    from jaxedit.editing import edit_command

    cache_compilations()
    return run_training("jaxedit", lambda: edit_command(arguments, rest))


def history(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxedit history`."""
    from jaxedit.editing import history_command

    print(history_command(arguments))
    return 0


def demo(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxedit demo`."""
    from jaxedit.demo import run_demo

    cache_compilations()
    return run_training("jaxedit", lambda: print("\n".join(run_demo(arguments.out))))


COMMANDS = {
    "demo": demo,
    "fit": fit,
    "train": train,
    "edit": edit,
    "history": history,
    "render": render,
    "export": export,
    "view": view,
    "eval": evaluate,
    "plan": plan,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    return run_command(make_parser("jaxedit", DESCRIPTION, OPTIONS, COMMANDS), argv)


if __name__ == "__main__":
    sys.exit(main())
