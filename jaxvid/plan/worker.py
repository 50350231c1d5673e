"""The process that compiles: `python -m jaxvid.plan.worker --program MODULE:FUNCTION --config NAME --topology v5e:4x4`.

Compilers for absent machines must be configured before jax starts, so `plan_in_subprocess` starts this module in a
process of its own. A program is named as "module:function"; the function is called as

    function(config, overrides, devices) -> jaxvid.plan.Program

with the configuration's name, the remaining command line words ("--model.width", "64", ...) and the target's devices,
over which it shards its abstract arguments.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from jaxvid.core.errors import UserError
from jaxvid.plan.compile import Program
from jaxvid.plan.report import Plan
from jaxvid.plan.topology import parse_topology, prepare, topology_devices

ProgramFactory = Callable[[str, Sequence[str], Sequence[Any]], Program]


def load_program(name: str) -> ProgramFactory:
    """The function that "module:function" names. Raises UserError when there is none."""
    module, colon, function = name.partition(":")
    if not (
        colon and function.isidentifier() and all(part.isidentifier() for part in module.split("."))
    ):
        raise UserError(f"program {name!r} is not of the form module:function")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        found = None
    if not callable(found):
        raise UserError(
            f"program {name!r} does not exist; name a function of a module, as module:function"
        )
    return cast("ProgramFactory", found)


def plan_program(program: str, config: str, overrides: Sequence[str], topology: str) -> Plan:
    """Compiles a named program in this process, in which jax must not have started."""
    target = parse_topology(topology)
    prepare(target)
    factory = load_program(program)
    return factory(config, overrides, topology_devices(target)).plan(target)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, or one line and exit code 2; `--json` also receives the plan or the line."""
    parser = argparse.ArgumentParser(prog="python -m jaxvid.plan.worker", description=__doc__)
    parser.add_argument("--program", required=True, help="module:function that returns a Program")
    parser.add_argument("--config", required=True)
    parser.add_argument("--topology", required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quiet", action="store_true", help="print no table")
    parser.add_argument("overrides", nargs="*", help="words for the program, after --")
    arguments = parser.parse_args(argv)
    try:
        result = plan_program(
            arguments.program, arguments.config, arguments.overrides, arguments.topology
        )
    except UserError as error:
        if arguments.json is not None:
            arguments.json.write_text(json.dumps({"user_error": str(error)}))
        print(f"jaxvid: error: {error}", file=sys.stderr)
        return 2
    if arguments.json is not None:
        arguments.json.write_text(result.to_json())
    if not arguments.quiet:
        print(result.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
