"""A JAX function compiled for its arguments, with what that took and the operations that it does."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxvid.core.flops import Flops, count_flops


class Program(NamedTuple):
    """`call` takes arguments of the shapes that it was compiled for; the flops are those of `jaxvid.core.flops`."""

    call: Callable[..., Any]
    compile_s: float
    flops: Flops


def compiled(
    function: Callable[..., Any],
    *args: Any,
    donate: tuple[int, ...] = (),
    while_iterations: int | None = None,
) -> Program:
    """`donate` are the arguments that are given away; `while_iterations` is for the counter of operations."""
    started = time.perf_counter()
    call = jax.jit(function, donate_argnums=donate).lower(*args).compile()
    seconds = time.perf_counter() - started
    return Program(call, seconds, count_flops(function, *args, while_iterations=while_iterations))
