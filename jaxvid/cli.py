"""The command line: `jaxvid COMMAND ...`. Every command is a short call of the library.

Exit codes are those of `jaxvid.command`; a plan that does not fit ends with 1.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jaxvid.command import (
    LOOP_MAY_DIFFER,
    cache_compilations,
    make_parser,
    run_command,
    run_plan,
    run_training,
)
from jaxvid.core.errors import UserError
from jaxvid.options import DESCRIPTION, OPTIONS

# Fields in which a resumed run may differ from how it began: how often, where, what is shown. The number of steps may too
# (below), and with it the rest of a decaying learning rate.
MAY_DIFFER = (*LOOP_MAY_DIFFER, "mesh", "sampling", "threads", "heldout")


def demo(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxvid demo`."""
    from jaxvid.evaluate.demo import run_demo

    return run_demo(arguments.out, seed=arguments.seed, steps=arguments.steps)


def train(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`jaxvid train`."""
    import jax

    from jaxvid.core.config import load_config, parse_overrides
    from jaxvid.core.mesh import check_batch, make_mesh
    from jaxvid.core.run import RunDirectory
    from jaxvid.systems.vdm import VDM
    from jaxvid.train.loop import check_phases, fit

    if arguments.distributed:
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as error:
            cause = str(error).splitlines()[0]
            raise UserError(
                f"--distributed: {cause}; start it on every host of a pod or a cluster, or leave it out"
            ) from None
    cache_compilations()
    system = load_config(arguments.config)
    if not isinstance(system, VDM):
        raise UserError(
            f"config {arguments.config} is a {type(system).__name__}, which cannot be trained; return a VDM"
        )
    prog = f"jaxvid train {arguments.config}"
    system = parse_overrides(system, ["--help"] if arguments.options else rest, prog=prog)
    directory = arguments.directory or Path("runs") / Path(arguments.config).stem
    mesh = make_mesh(system.mesh)
    for stage in system.stages:
        check_batch(mesh, stage.batch)
    # All that can be wrong is found before the run directory is made.
    system.check()
    phases, start = system.phases(with_reports=True), system.start()
    check_phases(phases, system.loop)
    may_differ = (*MAY_DIFFER, *(f"stages.{i}.steps" for i in range(len(system.stages))))
    run = RunDirectory.open(directory, system, may_differ)

    def go() -> None:
        fit(run, phases, system.loop, mesh=mesh, start=start)
        print(f"done: {directory} (samples in {run.samples})")

    return run_training("jaxvid", go)


def sample(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxvid sample`."""
    from jaxvid.evaluate.published import is_published, sample_published
    from jaxvid.evaluate.sampling import sample_to_files
    from jaxvid.weights.origin import read_origin

    prompts = list(arguments.prompt)
    if arguments.prompt_file is not None:
        prompts += read_prompts(arguments.prompt_file)
    cache_compilations()
    published = is_published(arguments.source)
    if published and (origin := read_origin(arguments.source)).non_commercial:
        print(f"note: {origin.notice()}", file=sys.stderr)
    to_files = sample_published if published else sample_to_files
    for path in to_files(arguments, prompts):
        print(path)
    return 0


def import_weights(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxvid import`."""
    return convert(arguments, "native")


def export_weights(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxvid export`."""
    return convert(arguments, "published")


def convert(arguments: argparse.Namespace, target: Literal["native", "published"]) -> int:
    """Converts a folder of weights, and says what was written and under which licence it stands."""
    import jax.numpy as jnp
    from tqdm import tqdm

    from jaxvid.weights.convert import convert_folder

    with tqdm(unit="", unit_scale=True, desc="numbers", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        made = convert_folder(
            arguments.source,
            arguments.out,
            target,
            dtype=None if arguments.dtype is None else getattr(jnp, arguments.dtype),
            variant=arguments.variant,
            license_name=arguments.license,
            url=arguments.url,
            progress=progress,
        )
    for name, kind in made.left_out.items():
        print(f"left out: {name} ({kind})", file=sys.stderr)
    print(f"note: {made.origin.notice()}", file=sys.stderr)
    for name, size in made.networks.items():
        print(f"{arguments.out / name}: {size:,} numbers")
    return 0


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not blank."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--prompt-file {path}: {error.strerror}; check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"--prompt-file {path} is not UTF-8 text; save it as such") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompt-file {path} has no prompt; write one a line")
    return prompts


def evaluate(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxvid eval`."""
    from jaxvid.data.writing import check_place, write_bytes
    from jaxvid.evaluate.captions import captions_file, evaluate_captions, table

    if arguments.json is not None:
        check_place(arguments.json)
    cache_compilations()
    scores = evaluate_captions(
        arguments.source,
        arguments.captions or captions_file(),
        seeds=arguments.seeds,
        limit=arguments.limit,
        steps=arguments.steps,
        guidance=arguments.guidance,
        batch=arguments.batch,
    )
    print(table(scores))
    if arguments.json is not None:
        write_bytes(arguments.json, (json.dumps(scores, indent=1) + "\n").encode())
    return 0


def ablate(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`jaxvid ablate`."""
    from jaxvid.evaluate.ablate import load_experiment
    from jaxvid.evaluate.ablate_report import ablate, preview, table

    if arguments.seeds < 1:
        raise UserError(f"--seeds is {arguments.seeds}; it must be 1 or more")
    cache_compilations()
    experiment = load_experiment(arguments.experiment, rest)
    if arguments.dry_run:
        print(preview(experiment, arguments.seeds))
        return 0
    return run_training(
        "jaxvid", lambda: print(table(ablate(experiment, arguments.directory, arguments.seeds)))
    )


def plan(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`jaxvid plan`."""
    return run_plan(
        program_of(arguments.config, arguments.program),
        arguments.config,
        arguments.topology,
        rest,
        arguments.json,
    )


def program_of(config: str, name: str | None) -> str:
    """Which program `jaxvid plan` compiles, as module:function. Raises UserError for one that `config` does not have."""
    from jaxvid.core.config import config_names
    from jaxvid.evaluate.published import is_published

    published = is_published(config)
    if not published and Path(config).is_dir() and config not in config_names():
        raise UserError(
            f"{config} holds no model_index.json; give the folder of a published pipeline, or a configuration"
        )
    known = ("sample", "forward") if published else ("train", "sample")
    if name is not None and name not in known:
        what = "published pipeline" if published else "configuration"
        raise UserError(f"--program {name} is not for a {what}; choose {' or '.join(known)}")
    module = "jaxvid.pipelines" if published else "jaxvid.systems.vdm"
    return f"{module}.programs:{name or known[0]}_program"


def data(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxvid data prepare`."""
    from jaxvid.data.prepare import prepare

    made = prepare(
        arguments.source, arguments.out, name=arguments.name, held_out=arguments.held_out
    )
    for fault in made.skipped:
        print(f"skipped {fault}", file=sys.stderr)
    clips = ", ".join(f"{count} clips for {split}" for split, count in made.clips.items())
    print(f"{made.folder}: {clips}; {len(made.skipped)} skipped")
    return 0


COMMANDS = {
    "demo": demo,
    "train": train,
    "sample": sample,
    "import": import_weights,
    "export": export_weights,
    "eval": evaluate,
    "ablate": ablate,
    "plan": plan,
    "data": data,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    return run_command(make_parser("jaxvid", DESCRIPTION, OPTIONS, COMMANDS), argv)


if __name__ == "__main__":
    sys.exit(main())
