"""Where a run is, and how that is saved and found again.

A checkpoint holds the state by path, the phase and the step in it, the state of the data iterator after the last
step's batch, and the metrics summed since the last log line: all that the next step and the next log line depend on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxvid.core.checkpoint import Checkpointer
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import tree_sharding
from jaxvid.core.paths import flatten, unflatten
from jaxvid.core.rng import named
from jaxvid.core.run import RunDirectory
from jaxvid.train.phase import Phase
from jaxvid.train.state import State, abstract
from jaxvid.train.stop import StopRequest


@dataclass(frozen=True)
class LoopConfig:
    """Intervals are in steps, counted from the beginning of the run.

    log_every: a line of metrics. save_every: a checkpoint (also after each phase and when stopped). keep: checkpoints.
    sample_every: the phases' reports (also before the first step and after each phase); 0 reports after the phases only.
    max_steps: leave after this step of the run, saved; a later start goes on from there.
    """

    seed: int = 0
    log_every: int = 100
    save_every: int = 1000
    sample_every: int = 0
    keep: int = 3
    max_steps: int | None = None


@dataclass(frozen=True)
class Session:
    """What stays the same while `fit` runs."""

    run: RunDirectory
    phases: Sequence[Phase]
    config: LoopConfig
    mesh: Mesh | None
    checkpoints: Checkpointer
    stop: StopRequest


@dataclass(frozen=True)
class Position:
    """Where a run is.

    index, phase_step: the phase, and how many of its steps are done. step: how many of the run's steps are done.
    data_state: of the phase's iterator, after the batch of the last step. sums: {name: [sum, count]} since the last
    log line, steps_in_sums: how many steps they cover. report_due: the run stopped where a report belongs.
    """

    index: int
    phase_step: int
    step: int
    state: State
    data_state: Any = None
    sums: Mapping[str, Any] | None = None
    steps_in_sums: int = 0
    report_due: bool = False


def begin_phase(session: Session, index: int, step: int, previous: State | None) -> Position:
    """The position before the first step of a phase; its state is created on the devices where it will live."""
    init, root = partial(_init, session, index), root_of(session.config.seed)
    if session.mesh is None:
        state = jax.jit(init)(previous, root)
    else:
        shardings = tree_sharding(session.mesh, jax.eval_shape(init, previous, root))
        state = jax.jit(init, out_shardings=shardings)(previous, root)
    check = session.phases[index].check
    if check is not None:
        check(state)
    return Position(index, 0, step, state)


def _init(session: Session, index: int, previous: State | None, root: Any) -> State:
    phase = session.phases[index]
    key = named(jax.random.wrap_key_data(root), phase.name, "init")
    return strong(phase.init(previous, key))


def root_of(seed: int) -> np.ndarray:
    """The data of the run's key, an argument of compiled programs: runs that differ in their seed share them."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


def strong(tree: Any) -> Any:
    """Without weak types: a state that gains or loses one makes the step compile twice."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), tree)


def save(session: Session, at: Position) -> None:
    """Saves a checkpoint of the position in the background."""
    flat, external = flatten(at.state), _external(session.phases[at.index])
    session.checkpoints.save(
        at.step,
        {path: leaf for path, leaf in flat.items() if not path.startswith("frozen/")},
        constants={
            path: leaf
            for path, leaf in flat.items()
            if path.startswith("frozen/") and not external(path)
        },
        meta={
            "phase": session.phases[at.index].name,
            "phase_step": at.phase_step,
            "sums": at.sums,
            "steps_in_sums": at.steps_in_sums,
            "report_due": at.report_due,
        },
        data_state=at.data_state,
    )


def resume(session: Session, start: State | None) -> Position | None:
    """The position of the newest good checkpoint, or None when the run has none yet.

    Raises UserError when the checkpoint is of other phases or of another model.
    """
    names = [phase.name for phase in session.phases]
    template: State = {}
    given: dict[str, Any] = {}

    def place(meta: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal template, given
        if meta["phase"] not in names:
            raise UserError(
                f"{session.run.path} was saved in phase {meta['phase']!r}, but the phases are {names}; restore its name"
            )
        index = names.index(meta["phase"])
        template = _abstract_state(session, index, start)
        external = _external(session.phases[index])
        whole = flatten(template)
        stored = {path: leaf for path, leaf in whole.items() if not external(path)}
        _check_same_arrays(session, stored, found)
        placed = dict.fromkeys(whole)
        if session.mesh is not None:
            leaves = jax.tree.leaves(tree_sharding(session.mesh, template))
            placed = dict(zip(whole, leaves, strict=True))
        given = _given(start, {path: placed[path] for path in whole if external(path)})
        return {path: placed[path] for path in stored} if session.mesh else {}

    restored = session.checkpoints.restore(place)
    if restored is None:
        session.run.rewind(-1)  # what a run logged that was killed before its first checkpoint
        return None
    meta = restored.meta
    session.run.rewind(restored.step)
    return Position(
        index=names.index(meta["phase"]),
        phase_step=meta["phase_step"],
        step=restored.step,
        state=unflatten(template, {**restored.tree, **given}),
        data_state=restored.data_state,
        sums=meta["sums"],
        steps_in_sums=meta["steps_in_sums"],
        report_due=meta["report_due"],
    )


def _abstract_state(session: Session, index: int, start: State | None) -> State:
    previous = abstract(start)
    for earlier in range(index + 1):
        init = partial(_init, session, earlier)
        previous = jax.eval_shape(init, previous, root_of(session.config.seed))
    return previous


def _external(phase: Phase) -> Callable[[str], bool]:
    """Which paths of the state no checkpoint of the phase holds."""
    return lambda path: path.startswith("frozen/") and phase.external(path.removeprefix("frozen/"))


def _given(start: State | None, places: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of those paths from `start`, each where it belongs (None: on the default device)."""
    held = flatten({"frozen": (start or {}).get("frozen", {})})
    absent = sorted(path for path in places if path not in held)
    if absent:
        raise ValueError(f"start lacks {absent[:5]}, which the checkpoint leaves out")
    return {path: jax.device_put(held[path], place) for path, place in places.items()}


def _check_same_arrays(
    session: Session, expected: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
    kinds = [
        {path: (leaf.shape, str(leaf.dtype)) for path, leaf in tree.items()}
        for tree in (expected, found)
    ]
    differing = sorted(
        path
        for path in kinds[0].keys() | kinds[1].keys()
        if kinds[0].get(path) != kinds[1].get(path)
    )
    if differing:
        path = differing[0]
        raise UserError(
            f"{session.run.path} holds the checkpoint of another model: {len(differing)} arrays differ, first {path} "
            f"(saved {kinds[1].get(path, 'absent')}, expected {kinds[0].get(path, 'absent')}); choose another --run"
        )
