"""The training loop: phases, one after the other, resumable at any step to the same bits.

What a step computes depends only on (seed, phase's name, step in the phase, state, batch). So a run that was stopped,
killed or moved to another machine of the same kind continues exactly where its last checkpoint was.

The host never waits for the step just dispatched: it prepares the next batch, then waits for the step before. Numbers
come from the device at log points and before a checkpoint; a step that gave one that is not finite is named exactly,
and nothing is saved after it.
"""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxvid.core.errors import UserError
from jaxvid.core.mesh import active, replicated, tree_sharding
from jaxvid.core.paths import flatten
from jaxvid.core.progress import Progress
from jaxvid.core.rng import named
from jaxvid.core.run import RunDirectory
from jaxvid.train.feed import Feed
from jaxvid.train.meter import NEVER, Meter, NonFiniteError
from jaxvid.train.phase import Phase
from jaxvid.train.session import (
    LoopConfig,
    Position,
    Session,
    begin_phase,
    resume,
    root_of,
    save,
    strong,
)
from jaxvid.train.state import State
from jaxvid.train.stop import InterruptedRunError, StopRequest

SHOWN = ("loss", "psnr")  # endings of the metrics that stand beside the progress bar

__all__ = ["InterruptedRunError", "LoopConfig", "NonFiniteError", "fit"]


def fit(
    run: RunDirectory,
    phases: Sequence[Phase],
    config: LoopConfig,
    *,
    mesh: Mesh | None = None,
    start: State | None = None,
    stop: StopRequest | None = None,
) -> State:
    """Trains through `phases`, from the run's newest good checkpoint if there is one; returns the last state.

    start: what the first phase's `init` gets as the previous state, such as {"trainable": {...}, "frozen": {...}} of
        imported weights. Give it on every start; when the run resumes only its shapes count.
    stop: lets another thread ask for what Ctrl-C asks for; signals reach it where this is the main thread.
    Raises InterruptedRunError (after saving) on Ctrl-C or SIGTERM, NonFiniteError when the numbers break, UserError
    when the checkpoints do not fit the phases, the data end early, or the disk does not take a checkpoint.

    Example:
        run = RunDirectory.open("runs/shapes", config)
        state = fit(run, system.phases(), LoopConfig(save_every=500), mesh=make_mesh(config.mesh))
    """
    check_phases(phases, config)
    checkpointer, request = run.checkpointer(config.keep), stop or StopRequest()
    with closing(run), checkpointer as checkpoints, request as stopping, active(mesh):
        session = Session(run, phases, config, mesh, checkpoints, stopping)
        at = resume(session, start)
        if at is None:
            # Reports begin with one of the untrained state, to compare the later ones with.
            fresh = begin_phase(session, 0, 0, start)
            at = replace(fresh, report_due=bool(config.sample_every))
        while True:
            at = run_phase(session, at)
            finished = at.phase_step >= phases[at.index].steps
            if not finished or at.index + 1 == len(phases):
                return at.state
            at = begin_phase(session, at.index + 1, at.step, at.state)


def check_phases(phases: Sequence[Phase], config: LoopConfig) -> None:
    """Raises UserError for phases or intervals that cannot be run."""
    names = [phase.name for phase in phases]
    if not names or len(set(names)) != len(names):
        raise UserError(
            f"phases are named {names}; there must be at least one, and no two of a name"
        )
    for phase in phases:
        if phase.steps < 1:
            raise UserError(f"phase {phase.name} has {phase.steps} steps; it needs at least 1")
    for name in ("log_every", "save_every", "keep"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; it must be 1 or more")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed is {config.seed}; it must be from 0 to {2**32 - 1}")


def run_phase(session: Session, at: Position) -> Position:
    """Takes the steps of the phase that are left (fewer if `max_steps` comes first); returns where it ended."""
    config, phase = session.config, session.phases[at.index]
    last = phase.steps
    if config.max_steps is not None:
        last = min(last, at.phase_step + max(config.max_steps - at.step, 0))
    meter = Meter(
        phase.name, at.step - at.phase_step, at.sums, at.steps_in_sums, phase.flops_per_step
    )
    if at.report_due:
        at = report(session, at, meter)
    if at.phase_step >= last:
        return at
    advance = jit_step(phase, session.mesh, at.state, config.seed)
    outcome = None
    with (
        Progress(phase.name, phase.steps, at.phase_step) as progress,
        Feed(phase, at.data_state, session.mesh) as feed,
    ):
        while at.phase_step < last:
            before = outcome
            at, outcome = take_step(session, at, advance, feed)
            meter.add(outcome, feed.seconds)
            if at.phase_step < last:
                feed.fetch()
            asked = signal_of(session.stop, before)
            progress.advance()

            ends = at.phase_step == phase.steps
            if ends or at.step % config.log_every == 0:
                log(session, at, meter, feed, progress)
            if ends or (config.sample_every and at.step % config.sample_every == 0):
                at = replace(at, report_due=True) if asked else report(session, at, meter)
            if asked or at.phase_step == last or at.step % config.save_every == 0:
                at = replace(at, **meter.unlogged())
                save(session, at)
            if asked:
                leave(session, at, asked)
    session.checkpoints.wait()
    return at


def take_step(
    session: Session, at: Position, advance: Callable[..., Any], feed: Feed
) -> tuple[Position, dict[str, Any]]:
    """Dispatches one step; the returned position's arrays are still being computed."""
    batch, data_state = feed.take()
    frozen = at.state["frozen"]
    moving = {name: group for name, group in at.state.items() if name != "frozen"}
    with jax.profiler.StepTraceAnnotation("train", step_num=at.step + 1):
        moving, outcome = advance(
            moving, frozen, batch, np.int32(at.phase_step + 1), session.stop.votes(session.mesh)
        )
    at = Position(
        index=at.index,
        phase_step=at.phase_step + 1,
        step=at.step + 1,
        state={**moving, "frozen": frozen},
        data_state=data_state,
    )
    return at, outcome


def jit_step(phase: Phase, mesh: Mesh | None, state: State, seed: int) -> Callable[..., Any]:
    """The compiled step `(moving, frozen, batch, number, votes) -> (moving, outcome)`; `moving` is donated.

    The state's shardings are those of its parameters on the way out as on the way in: left to itself the compiler may
    choose others for gradients and moments.
    """

    def advance(moving: State, frozen: Any, batch: Any, number: Any, votes: Any, root: Any) -> Any:
        key = named(jax.random.wrap_key_data(root), phase.name, number)
        after, sums = phase.step({**moving, "frozen": frozen}, batch, key)
        check_step(phase, {**moving, "frozen": frozen}, after)
        sums = {
            name: (jnp.asarray(total), jnp.asarray(count)) for name, (total, count) in sums.items()
        }
        finite = jnp.stack([jnp.isfinite(part).all() for pair in sums.values() for part in pair])
        outcome = {
            "sums": sums,
            "bad": jnp.where(finite.all(), jnp.int32(NEVER), number),
            "signal": jnp.max(votes),
        }
        return strong({name: after[name] for name in moving}), outcome

    moving = {name: group for name, group in state.items() if name != "frozen"}
    if mesh is None:
        return partial(jax.jit(advance, donate_argnums=0), root=root_of(seed))
    shardings = tree_sharding(mesh, moving), replicated(mesh)
    step = jax.jit(advance, donate_argnums=0, out_shardings=shardings)
    return partial(step, root=root_of(seed))


def check_step(phase: Phase, before: State, after: State) -> None:
    """Raises ValueError, while the step is traced, if it changes the state's form or touches what is frozen."""
    kinds = [
        {path: (leaf.shape, leaf.dtype) for path, leaf in flatten(tree).items()}
        for tree in (before, after)
    ]
    differing = [path for path in kinds[0] | kinds[1] if kinds[0].get(path) != kinds[1].get(path)]
    if differing:
        raise ValueError(f"phase {phase.name}: the step changes the form of {differing[:5]}")
    frozen = [
        path for path in before["frozen"] if after["frozen"][path] is not before["frozen"][path]
    ]
    if frozen:
        raise ValueError(f"phase {phase.name}: the step changes what is frozen: {frozen[:5]}")


def signal_of(stop: StopRequest, before: Mapping[str, Any] | None) -> int:
    """Waits for the step before the present one; the signal that all processes have agreed to obey, or 0."""
    if before is not None:
        jax.block_until_ready(before)
    if jax.process_count() == 1:
        return stop.number
    return 0 if before is None else int(before["signal"])


def log(session: Session, at: Position, meter: Meter, feed: Feed, progress: Progress) -> None:
    """Writes a line of metrics and reports errors of checkpoints that were being written."""
    values = meter.take(feed.examples, feed.seconds)
    session.run.log(at.step, {"phase": session.phases[at.index].name, **values})
    shown = {name: value for name, value in values.items() if name.endswith(SHOWN)}
    if "examples_per_second" in values:
        shown["examples/s"] = values["examples_per_second"]
    progress.report(shown)
    session.checkpoints.check()


def report(session: Session, at: Position, meter: Meter) -> Position:
    """Calls the phase's report, off the clock."""
    make = session.phases[at.index].report
    if make is not None:
        begin = time.monotonic()
        make(at.state, at.step, session.run)
        meter.exclude(time.monotonic() - begin)
    return replace(at, report_due=False)


def leave(session: Session, at: Position, number: int) -> None:
    """Ends the run after a signal, once the checkpoint is on the disk."""
    session.checkpoints.wait()
    name = signal.Signals(number).name
    raise InterruptedRunError(
        f"stopped by {name} after step {at.step}, saved in {session.run.path}; start again to continue",
        number,
    )
