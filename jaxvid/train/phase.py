"""A run is a sequence of phases, each with its own state, step and data.

A phase is five functions and a name; nothing in it depends on the loop, so a notebook can call them one by one:

    state = phase.init(None, key)
    batches = phase.batches(None)
    state, sums = jax.jit(phase.step)(state, next(batches), key)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from jaxvid.core.run import RunDirectory
from jaxvid.train.state import State
from jaxvid.train.step import Step


@runtime_checkable
class Batches(Protocol):
    """An iterator over host batches that knows where it is; grain's iterators are such.

    `get_state` gives a JSON value or bytes, the same on every process: the position after the batch last given.
    """

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> Any: ...


Report: TypeAlias = Callable[[State, int, RunDirectory], None]


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    name: unique in the run; part of every key, so that renaming a phase changes its random numbers.
    steps: how many steps it takes.
    init: `init(previous, key) -> state` from the last state of the phase before (None for the first, unless `fit` is
        given one to start from). Pure: it is jitted with the state's shardings; values move by path (`state.carry`).
    step: pure `step(state, batch, key) -> (state, sums)`, see `jaxvid.train.step`; it may not change "frozen".
    batches: `batches(data_state) -> Batches` positioned at `data_state`, or at the beginning for None; each batch is
        this process's part (`jaxvid.core.mesh.process_shard`) of the global one.
    report: `report(state, step, run)` draws samples and logs held-out scores; called at LoopConfig.sample_every and
        after the last step, on every process.
    check: `check(state)` looks at the state before the first step, on the host, and raises UserError for one that cannot
        be trained; the run then stands where the phase before ended.
    external: which frozen paths no checkpoint holds: those of `fit`'s `start`, which gives them at every start (weights that
        lie in a folder already, and are large).
    flops_per_step: counted floating-point operations of one global step; adds "flops_per_second" to the log.
    """

    name: str
    steps: int
    init: Callable[[State | None, Any], State]
    step: Step
    batches: Callable[[Any], Batches]
    report: Report | None = None
    check: Callable[[State], None] | None = None
    external: Callable[[str], bool] = lambda path: False
    flops_per_step: float | None = None
