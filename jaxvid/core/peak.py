"""How much memory a JAX program works in, told from its jaxpr in seconds, before anything is compiled.

A value is held from the operation that makes it to the last that reads it, in the order in which the program was written. Not every
value is: compilers fuse, and here

    arithmetic and moves   (reshapes, broadcasts, slices, ...) are held only where something that cannot compute them on the way reads
                           them, or where they are results; else what they were made of is held for longer
    reductions             compute what they read on the way
    calls                  are what they hold; loops hold their results and one round, a branch as much as its costliest

This is an estimate: a compiler may order differently, fuse less, or need room to work in. Of the programs of
`tests/core/test_peak.py` it is within a factor of 2 of what XLA sets aside on a CPU. `jaxedit plan` and `jaxvid plan` ask a compiler.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from jaxvid.core.flops import ELEMENTWISE, REDUCTIONS, bodies

MOVES = frozenset(
    [
        "broadcast_in_dim",
        "convert_element_type",
        "copy",
        "expand_dims",
        "iota",
        "reshape",
        "rev",
        "select_n",
        "slice",
        "squeeze",
        "stop_gradient",
        "transpose",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "and",
        "or",
        "not",
        "is_finite",
        "clamp",
    ]
)
FUSED = ELEMENTWISE | MOVES
VIEWS = frozenset(["reshape", "squeeze", "expand_dims", "transpose", "stop_gradient", "copy"])
CALLS = frozenset(
    [
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "custom_jvp_call",
        "custom_vjp_call",
        "remat2",
        "checkpoint",
        "remat",
        "custom_vjp_call_jaxpr",
    ]
)

Name: TypeAlias = int


class Operation(NamedTuple):
    """An equation with its values by number; None for constants written into the program."""

    equation: JaxprEqn
    reads: list[Name | None]
    makes: list[Name]


def peak_bytes(fn: Callable[..., Any], *args: Any) -> int:
    """The most that `fn(*args)` holds at a time besides its arguments, its results included.

    args: arrays, or `jax.ShapeDtypeStruct`s.
    """
    return jaxpr_peak(jax.make_jaxpr(fn)(*args).jaxpr)


def jaxpr_peak(jaxpr: Jaxpr) -> int:
    """The same of a traced program."""
    names: dict[Any, Name] = {}
    sizes: list[int] = []
    operations = list(_inlined(jaxpr, names, sizes))
    results = {_name(v, names, sizes) for v in jaxpr.outvars if not isinstance(v, Literal)}
    roots = _roots(operations, results)
    last: dict[Name, int] = {}
    for i, operation in enumerate(operations):
        for value in operation.reads:
            last |= dict.fromkeys(roots.get(value, ()) if value is not None else (), i)
    for result in results:
        last |= dict.fromkeys(roots.get(result, ()), len(operations))
    held: set[Name] = set()
    alive = most = 0
    for i, operation in enumerate(operations):
        made = {name for name in operation.makes if roots.get(name) == {name}} - held
        if operation.equation.primitive.name in FUSED:  # writes over what it is the last to read
            held, alive = _without(held, alive, sizes, last, i)
        held = held | made
        alive += sum(sizes[name] for name in made)
        most = max(most, alive + _inside(operation.equation))
        held, alive = _without(held, alive, sizes, last, i)
    return most


def _without(
    held: set[Name], alive: int, sizes: Sequence[int], last: Mapping[Name, int], i: int
) -> tuple[set[Name], int]:
    """What is held after operation i, and its bytes."""
    done = {name for name in held if last.get(name, i) <= i}
    return held - done, alive - sum(sizes[name] for name in done)


def _name(variable: Any, names: dict[Any, Name], sizes: list[int]) -> Name:
    """A number of its own for a variable, with its size in bytes."""
    if variable not in names:
        names[variable] = len(sizes)
        kind = variable.aval
        each = getattr(getattr(kind, "dtype", None), "itemsize", 4)
        sizes.append(math.prod(getattr(kind, "shape", ())) * each)
    return names[variable]


def _inlined(jaxpr: Jaxpr, names: dict[Any, Name], sizes: list[int]) -> Iterator[Operation]:
    """All operations, those of calls in their place."""
    for equation in jaxpr.eqns:
        reads = [
            None if isinstance(v, Literal) else _name(v, names, sizes) for v in equation.invars
        ]
        body = _called(equation)
        if body is None:
            makes = [_name(v, names, sizes) for v in equation.outvars]
            yield Operation(equation, reads, makes)
            continue
        inner: dict[Any, Name] = {}
        for variable, read in zip(body.invars, reads, strict=True):
            if read is None:
                _name(variable, inner, sizes)
            else:
                inner[variable] = read
        yield from _inlined(body, inner, sizes)
        for outer, variable in zip(equation.outvars, body.outvars, strict=True):
            if isinstance(variable, Literal):
                _name(outer, names, sizes)
            else:
                names[outer] = _name(variable, inner, sizes)


def _called(equation: JaxprEqn) -> Jaxpr | None:
    """What a call calls; None for other equations."""
    if equation.primitive.name not in CALLS:
        return None
    found = next(bodies(equation.params), None)
    body = found.jaxpr if isinstance(found, ClosedJaxpr) else found
    return body if body is not None and len(body.invars) == len(equation.invars) else None


def _roots(operations: Sequence[Operation], results: set[Name]) -> dict[Name, set[Name]]:
    """What is held for each value: itself, or what it is computed from on the way. What is given has none."""
    needed = set(results)
    for operation in reversed(operations):
        kind = operation.equation.primitive.name
        looks = kind in VIEWS and needed.intersection(operation.makes)
        if kind not in FUSED | REDUCTIONS or looks:
            needed |= {name for name in operation.reads if name is not None}
    roots: dict[Name, set[Name]] = {}
    for operation in operations:
        kind = operation.equation.primitive.name
        below = {
            root for name in operation.reads if name is not None for root in roots.get(name, ())
        }
        for name in operation.makes:
            held = kind not in FUSED or (kind not in VIEWS and name in needed)
            roots[name] = {name} if held else below
    return roots


def _inside(equation: JaxprEqn) -> int:
    """What an equation holds besides its results: a round of a loop, the costliest branch."""
    return max(
        (
            jaxpr_peak(body.jaxpr if isinstance(body, ClosedJaxpr) else body)
            for body in bodies(equation.params)
        ),
        default=0,
    )
