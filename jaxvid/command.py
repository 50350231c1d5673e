"""What the command lines of `jaxvid` and `jaxedit` share: the parser, its one-line complaints, and the exit codes.

Bad input ends with one line, `PROGRAM: error: ...`, and exit code 2; an interrupted run with 130 or 143 after it has
saved; numbers that broke, and memory that ran out, with 1.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from jaxvid.core.errors import UserError

# Fields of the training loop in which a resumed run may differ from how it began.
LOOP_MAY_DIFFER = (
    "loop.log_every",
    "loop.save_every",
    "loop.sample_every",
    "loop.keep",
    "loop.max_steps",
)
# Adds a command: (name, what it does, examples, whether configuration options may follow).
Add: TypeAlias = Callable[..., argparse.ArgumentParser]


def finite(text: str) -> float:
    """A number as an option's value, neither nan nor inf."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def count(text: str) -> int:
    """A number of things, at least 1, as an option's value."""
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of things; give 1 or more")
    return int(text)


def seed(text: str) -> int:
    """A seed of random numbers as an option's value."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no seed; give a whole number from 0 to {2**32 - 1}"
        )
    return int(text)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaints are one line like all others."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError instead of printing the usage."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def make_parser(
    program: str,
    description: str,
    options: Sequence[Callable[[Add], None]],
    run: Mapping[str, Callable[..., Any]],
) -> argparse.ArgumentParser:
    """The commands and their options; a parsed command has its function of `run` as the attribute `run`.

    Each of `options` adds one command.
    """
    parser = OneLineParser(prog=program, description=description)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, about: str, examples: str, overrides: bool = False
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(run=run[name], overrides=overrides)
        return sub

    for option in options:
        option(add)
    return parser


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed, rest = parser.parse_known_args(arguments)
        if rest and not parsed.overrides:
            raise UserError(
                f"unknown option {rest[0]}; see `{parser.prog} {parsed.command} --help`"
            )
        return parsed.run(parsed, rest) or 0
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(
            error
        ):  # XLA's word; its exception has no class of its own
            raise
        reason = str(error).splitlines()[0]
        print(
            f"{parser.prog}: error: memory ran out ({reason}); ask for less at once, a smaller picture or batch",
            file=sys.stderr,
        )
        return 1


def run_training(program: str, train: Callable[[], Any]) -> int:
    """Calls `train`; returns the exit code of a run that ends, is interrupted (saved), or breaks."""
    from jaxvid.train.loop import InterruptedRunError, NonFiniteError

    try:
        train()
    except InterruptedRunError as stopped:
        print(f"{program}: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except NonFiniteError as broken:
        print(f"{program}: {broken}", file=sys.stderr)
        return 1
    return 0


def run_plan(
    program: str, config: str, topology: str, words: Sequence[str], json: Path | None
) -> int:
    """Compiles "module:function" for a topology and prints the plan; returns 0 if it fits there, else 1.

    words: handed to the function. json: a file for the plan, checked before anything is compiled.
    """
    from jaxvid.data.writing import check_place, write_bytes
    from jaxvid.plan import plan_in_subprocess

    if json is not None:
        check_place(json)
    result = plan_in_subprocess(program, config, topology, words)
    print(result.table())
    if json is not None:
        write_bytes(json, result.to_json().encode())
    return 0 if result.fits else 1


def cache_compilations() -> None:
    """Keeps compiled programs between processes, unless the user has chosen a place for them."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path.home() / ".cache" / "jaxvid" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
