"""The command line: `jaxvid COMMAND ...`. Every command is a short call of the library.

Bad input ends with one line, `jaxvid: error: ...`, and exit code 2; an interrupted run with 130 or 143 after it has
saved; numbers that broke with 1.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxvid.core.errors import UserError

DESCRIPTION = "Text-to-video diffusion with factorized space-time U-Nets."
# Fields in which a resumed run may differ from how it began: how long, how often, where; never what is computed.
MAY_DIFFER = (
    "loop.log_every",
    "loop.save_every",
    "loop.sample_every",
    "loop.keep",
    "loop.max_steps",
)
MAY_DIFFER += ("mesh", "sampling", "threads", "heldout")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed, rest = make_parser().parse_known_args(arguments)
        if rest and not parsed.overrides:
            raise UserError(f"unknown option {rest[0]}; see `jaxvid {parsed.command} --help`")
        return parsed.run(parsed, rest) or 0
    except UserError as error:
        print(f"jaxvid: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxvid: interrupted", file=sys.stderr)
        return 130


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaints are one line like all others."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError instead of printing the usage."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = OneLineParser(prog="jaxvid", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[..., Any], about: str, examples: str, overrides: bool = False
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(run=run, overrides=overrides)
        return sub

    sub = command(
        "demo",
        demo,
        "Make videos of eight sentences with the shipped model and say what an analyser sees in them.",
        "  jaxvid demo\n  jaxvid demo --out /tmp/demo --seed 1",
    )
    sub.add_argument(
        "--out", type=Path, default=Path("out/demo"), help="folder for videos and the sheet"
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--steps", type=int, help="sampling steps (the model's own by default)")

    sub = command(
        "train",
        train,
        "Start a run, or go on with the one in the run directory.",
        "  jaxvid train vdm/smoke\n"
        "  jaxvid train vdm/shapes --run runs/shapes --loop.save-every 500\n"
        "  jaxvid train configs/vdm/clips.py --data.path my_videos --run runs/clips\n"
        "  jaxvid train vdm/shapes --options      (every option that may follow)",
        overrides=True,
    )
    sub.add_argument("config", help="a preset such as vdm/shapes, or a Python file with config()")
    sub.add_argument(
        "--run", type=Path, dest="directory", help="run directory (default runs/CONFIG)"
    )
    sub.add_argument("--options", action="store_true", help="list the configuration's options")
    sub.add_argument(
        "--distributed", action="store_true", help="one of several processes, as on a pod"
    )

    sub = command(
        "sample",
        sample,
        "Draw videos from a run or a shipped model.",
        '  jaxvid sample vdm/shapes --prompt "a red circle moves right" --out red.mp4\n'
        "  jaxvid sample runs/shapes --prompt-file prompts.txt --out samples --steps 50 --guidance 3\n"
        '  jaxvid sample vdm/shapes --prompt "a blue ring bounces" --frames 64 --out long.mp4\n'
        "  jaxvid sample runs/clips --extend start.mp4 --frames 32 --out longer.mp4",
    )
    sub.add_argument("source", help="a run directory or a shipped model")
    sub.add_argument("--prompt", action="append", default=[], help="may be given several times")
    sub.add_argument("--prompt-file", type=Path, help="one prompt a line")
    sub.add_argument("--out", type=Path, required=True, help="an .mp4, .gif or .png, or a folder")
    sub.add_argument("--count", type=int, default=1, help="videos, for a model without text")
    sub.add_argument("--frames", type=int, help="length; longer than the model's is made in blocks")
    sub.add_argument("--extend", type=Path, help="a video to go on from")
    sub.add_argument(
        "--method", choices=("reconstruction", "replacement"), default="reconstruction"
    )
    sub.add_argument("--overlap", type=int, help="frames that blocks share (half a block)")
    sub.add_argument("--steps", type=int)
    sub.add_argument("--guidance", type=float, help="scale of classifier-free guidance; 1 is none")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--fps", type=float, default=8.0)

    sub = command(
        "eval",
        evaluate,
        "Score a run or a shipped model by a protocol.",
        "  jaxvid eval vdm/shapes --protocol captions\n"
        "  jaxvid eval runs/shapes --protocol captions --seeds 1 --limit 64",
    )
    sub.add_argument("source", help="a run directory or a shipped model")
    sub.add_argument("--protocol", choices=("captions",), required=True)
    sub.add_argument("--captions", type=Path, default=Path("benchmarks/captions.json"))
    sub.add_argument("--seeds", type=int, default=3)
    sub.add_argument("--limit", type=int, help="only the first so many captions of each kind")
    sub.add_argument("--steps", type=int)
    sub.add_argument("--guidance", type=float)
    sub.add_argument("--batch", type=int, default=16)
    sub.add_argument("--json", type=Path, help="also write the scores here")

    sub = command(
        "ablate",
        ablate,
        "Run an experiment's arms with several seeds and say whether the claim reproduces; the same command goes on.",
        "  jaxvid ablate experiments/joint_images.py --dry-run\n"
        "  jaxvid ablate experiments/joint_images.py --seeds 3 --run runs/ablations\n"
        "  jaxvid ablate experiments/joint_images.py --run runs/longer --stages.0.steps 20000",
        overrides=True,
    )
    sub.add_argument("experiment", type=Path, help="a Python file; see jaxvid/evaluate/ablate.py")
    sub.add_argument("--seeds", type=int, default=3)
    sub.add_argument(
        "--run", type=Path, dest="directory", default=Path("runs/ablations"), help="run directory"
    )
    sub.add_argument(
        "--dry-run", action="store_true", help="list arms, counted FLOPs and cost; write nothing"
    )

    sub = command(
        "plan",
        plan,
        "Compile a configuration's real program for a machine that is not here: does it fit?",
        "  jaxvid plan vdm/ucf101 --topology v5p:4x4x4\n"
        "  jaxvid plan vdm/text_small --topology h200:8 --program sample --json plan.json\n"
        "  jaxvid plan vdm/ucf101 --topology v5e:4x4 --mesh.fsdp 16",
        overrides=True,
    )
    sub.add_argument("config")
    sub.add_argument("--topology", required=True, help="v5e:4x4, v5p:4x4x4, h200:8, cpu:8, ...")
    sub.add_argument("--program", choices=("train", "sample"), default="train")
    sub.add_argument("--json", type=Path)

    sub = command(
        "data",
        data,
        "Make an ArrayRecord data set of a folder of videos.",
        "  jaxvid data prepare my_videos data --name my_videos\n"
        "  jaxvid train my_config.py --data.name data/my_videos",
    )
    sub.add_argument("action", choices=("prepare",))
    sub.add_argument(
        "source", type=Path, help="a folder of videos with captions.json or .txt files"
    )
    sub.add_argument("out", type=Path)
    sub.add_argument("--name", default="clips", help="of the data set (default clips)")
    sub.add_argument(
        "--held-out", type=float, default=0, help='share or number of clips for the split "test"'
    )
    return parser


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
    from jaxvid.train.loop import InterruptedRunError, NonFiniteError, fit

    if arguments.distributed:
        jax.distributed.initialize()
    cache_compilations()
    system = load_config(arguments.config)
    prog = f"jaxvid train {arguments.config}"
    system = parse_overrides(system, ["--help"] if arguments.options else rest, prog=prog)
    directory = arguments.directory or Path("runs") / Path(arguments.config).stem
    mesh = make_mesh(system.mesh)
    for stage in system.stages:
        check_batch(mesh, stage.batch)
    # All that can be wrong is found before the run directory is made.
    system.check()
    phases, start = system.phases(with_reports=True), system.start()
    may_differ = (*MAY_DIFFER, *(f"stages.{i}.steps" for i in range(len(system.stages))))
    run = RunDirectory.open(directory, system, may_differ)
    try:
        fit(run, phases, system.loop, mesh=mesh, start=start)
    except InterruptedRunError as stopped:
        print(f"jaxvid: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except NonFiniteError as broken:
        print(f"jaxvid: {broken}", file=sys.stderr)
        return 1
    print(f"done: {directory} (samples in {run.samples})")
    return 0


def sample(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxvid sample`."""
    from jaxvid.evaluate.sampling import sample_to_files

    prompts = list(arguments.prompt)
    if arguments.prompt_file is not None:
        if not arguments.prompt_file.is_file():
            raise UserError(f"--prompt-file {arguments.prompt_file} does not exist; check the path")
        prompts += [line for line in arguments.prompt_file.read_text().splitlines() if line.strip()]
    cache_compilations()
    for path in sample_to_files(arguments, prompts):
        print(path)
    return 0


def evaluate(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxvid eval`."""
    from jaxvid.evaluate.captions import evaluate_captions, table

    cache_compilations()
    scores = evaluate_captions(
        arguments.source,
        arguments.captions,
        seeds=arguments.seeds,
        limit=arguments.limit,
        steps=arguments.steps,
        guidance=arguments.guidance,
        batch=arguments.batch,
    )
    print(table(scores))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(scores, indent=1) + "\n")
    return 0


def ablate(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`jaxvid ablate`."""
    from jaxvid.evaluate.ablate import load_experiment
    from jaxvid.evaluate.ablate_report import ablate, preview, table
    from jaxvid.train.loop import InterruptedRunError, NonFiniteError

    if arguments.seeds < 1:
        raise UserError(f"--seeds is {arguments.seeds}; it must be 1 or more")
    cache_compilations()
    experiment = load_experiment(arguments.experiment, rest)
    if arguments.dry_run:
        print(preview(experiment, arguments.seeds))
        return 0
    try:
        print(table(ablate(experiment, arguments.directory, arguments.seeds)))
    except InterruptedRunError as stopped:
        print(f"jaxvid: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except NonFiniteError as broken:
        print(f"jaxvid: {broken}", file=sys.stderr)
        return 1
    return 0


def plan(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`jaxvid plan`."""
    from jaxvid.plan import plan_in_subprocess

    program = f"jaxvid.systems.vdm.programs:{arguments.program}_program"
    result = plan_in_subprocess(program, arguments.config, arguments.topology, rest)
    print(result.table())
    if arguments.json is not None:
        arguments.json.write_text(result.to_json())
    return 0 if result.fits else 1


def data(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`jaxvid data prepare`."""
    from jaxvid.data.prepare import prepare

    held_out = arguments.held_out
    made = prepare(
        arguments.source,
        arguments.out,
        name=arguments.name,
        held_out=int(held_out) if held_out >= 1 else held_out,
    )
    for fault in made.skipped:
        print(f"skipped {fault}", file=sys.stderr)
    clips = ", ".join(f"{count} clips for {split}" for split, count in made.clips.items())
    print(f"{made.folder}: {clips}; {len(made.skipped)} skipped")
    return 0


def cache_compilations() -> None:
    """Keeps compiled programs between processes, unless the user has chosen a place for them."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path.home() / ".cache" / "jaxvid" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))


if __name__ == "__main__":
    sys.exit(main())
