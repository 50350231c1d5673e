"""Running a sampler over a grid.

A grid is [steps + 1] log-SNRs, noisiest first (see `grid`). Two ways to run:

`program(sampler, make_denoise)` compiles once and is called many times, a few steps per compiled call, so that
progress and previews reach the host. Everything that changes between calls is traced: parameters, conditions,
guidance scales and thresholds (in `args`), the start, the grid, its length and the key. The grid is padded to a
fixed length and the loop runs over traced indices.

`scan(sampler, denoise, ...)` is one pure function of static length, for use inside jit: to differentiate through
sampling, or to plan it.

Step i uses the key named "step", i under the given key, so results do not depend on how steps are divided into calls.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.diffusion.process import at_least_float32
from jaxvid.diffusion.samplers import Sampler, State, Transition, level_of
from jaxvid.diffusion.types import Denoise, Hook, Level, Prediction

CAPACITY = 1024  # steps that a padded grid holds; longer runs double it, at one recompile each
Progress = Callable[[int, int, Array], None]  # (steps done, steps in all, latest estimate of x)


@runtime_checkable
class Program(Protocol):
    """A compiled sampling loop, see `program`."""

    def __call__(
        self,
        args: Any,
        z: Array,
        grid: Any,
        key: Array,
        *,
        chunk: int | None = None,
        progress: Progress | None = None,
    ) -> Array:
        """Runs the loop."""
        ...


def _start(
    sampler: Sampler, hook: Hook | None, z: Array, logsnr: Array, total: Array, key: Array
) -> State:
    z = at_least_float32(z)
    if hook is not None:
        first = Transition(logsnr, logsnr, jnp.zeros((), jnp.int32), total, key)
        z = hook(z, level_of(z, logsnr, first), named(key, "start hook"))
    return sampler.init(z)


def _advance(
    sampler: Sampler,
    denoise: Denoise,
    hook: Hook | None,
    state: State,
    transition: Transition,
) -> State:
    def in_working_precision(z: Array, level: Level) -> Prediction:
        prediction = denoise(z, level)
        return prediction._replace(x=prediction.x.astype(z.dtype))

    state = sampler.step(in_working_precision, state, transition, hook)
    if hook is None:
        return state
    level = level_of(state.z, transition.next_logsnr, transition)
    return state._replace(z=hook(state.z, level, named(transition.key, "hook")))


def scan(
    sampler: Sampler,
    denoise: Denoise,
    z: Float[Array, "b *rest"],
    grid: Float[Array, " levels"],
    key: Key[Array, ""],
    *,
    hook: Hook | None = None,
) -> Float[Array, "b *rest"]:
    """Returns the sample; pure, its number of steps static. Differentiable in z and in whatever `denoise` closes over."""
    steps = grid.shape[0] - 1
    total = jnp.asarray(steps, jnp.int32)
    z = at_least_float32(z)
    grid = grid.astype(z.dtype)

    def body(state: State, inputs: tuple[Array, Array, Array]) -> tuple[State, None]:
        index, logsnr, next_logsnr = inputs
        transition = Transition(logsnr, next_logsnr, index, total, named(key, "step", index))
        return _advance(sampler, denoise, hook, state, transition), None

    state = _start(sampler, hook, z, grid[0], total, key)
    inputs = (jnp.arange(steps, dtype=jnp.int32), grid[:-1], grid[1:])
    return sampler.finish(jax.lax.scan(body, state, inputs)[0])


def check_grid(grid: Any) -> np.ndarray:
    """Returns `grid` as a numpy array; raises UserError unless it is [steps + 1] log-SNRs that never fall, finite but the last."""
    values = np.asarray(grid)
    if values.ndim != 1 or values.size < 2:
        raise UserError(
            f"sampling grid of shape {values.shape}: give [steps + 1] log-SNRs, at least 2"
        )
    if not np.isfinite(values[:-1]).all() or np.isnan(values[-1]) or values[-1] == -np.inf:
        raise UserError("sampling grid is not finite: only the last log-SNR may be +inf")
    if (np.diff(values[:-1]) < 0).any() or values[-1] < values[-2]:
        raise UserError("sampling grid goes back to noisier levels: give log-SNRs that rise")
    return values


def _padded(grid: np.ndarray) -> np.ndarray:
    capacity = CAPACITY
    while capacity < grid.size - 1:
        capacity *= 2
    return np.pad(grid, (0, capacity + 1 - grid.size), constant_values=np.inf)


def program(
    sampler: Sampler,
    make_denoise: Callable[[Any], Denoise],
    make_hook: Callable[[Any], Hook] | None = None,
) -> Program:
    """Returns the compiled sampling loop `run(args, z, grid, key, *, chunk=None, progress=None) -> sample`.

    Args:
      sampler: the algorithm.
      make_denoise: `args -> denoise`; called under jit with traced `args` (any pytree: parameters, conditions, guidance
        scales, thresholds), so changing their values never recompiles. Guidance and thresholds are put together here.
      make_hook: `args -> hook`, likewise.

    `run` takes z [b, ...] at the grid's first level, a grid of numpy log-SNRs and a key. With `progress`, it is called
    after every `chunk` steps (1 if None) with (steps done, steps in all, latest estimate of x); `chunk` alone divides the
    run into calls of that many steps.

    Example:
      def make_denoise(args):
          table = guidance.classifier_free(args["text"], args["null"], args["scale"])
          conditional = lambda z, level, c: model(args["params"], z, level, c)
          return guidance.guided(conditional, table)
      run = program(samplers.ddim(), make_denoise)
      video = run(args, z, grid.uniform(schedule, 50), key, chunk=5, progress=bar)
    """

    def hook_of(args: Any) -> Hook | None:
        return None if make_hook is None else make_hook(args)

    @jax.jit
    def begin(args: Any, z: Array, grid: Array, total: Array, key: Array) -> State:
        return _start(
            sampler, hook_of(args), z, grid[0].astype(at_least_float32(z).dtype), total, key
        )

    @jax.jit
    def advance(
        args: Any, state: State, grid: Array, start: Array, stop: Array, total: Array, key: Array
    ) -> State:
        denoise, hook, levels = make_denoise(args), hook_of(args), grid.astype(state.z.dtype)

        def body(index: Array, state: State) -> State:
            step_key = named(key, "step", index)
            transition = Transition(levels[index], levels[index + 1], index, total, step_key)
            return _advance(sampler, denoise, hook, state, transition)

        return jax.lax.fori_loop(start, stop, body, state)

    finish = jax.jit(sampler.finish)

    def run(
        args: Any,
        z: Array,
        grid: Any,
        key: Array,
        *,
        chunk: int | None = None,
        progress: Progress | None = None,
    ) -> Array:
        values = check_grid(grid)
        steps, padded = values.size - 1, _padded(values)
        if chunk is not None and chunk < 1:
            raise UserError(f"sampling chunk {chunk}: give 1 step or more")
        stride = chunk or (1 if progress else steps)
        total = np.int32(steps)
        state = begin(args, z, padded, total, key)
        for start in range(0, steps, stride):
            stop = min(start + stride, steps)
            state = advance(args, state, padded, np.int32(start), np.int32(stop), total, key)
            if progress is not None:
                progress(stop, steps, jax.block_until_ready(state.x))
        return finish(state)

    return run


@functools.lru_cache(maxsize=4)
def _program_of(sampler: Sampler, denoise: Denoise, hook: Hook | None) -> Program:
    return program(sampler, lambda _: denoise, None if hook is None else lambda _: hook)


def sample(
    sampler: Sampler,
    denoise: Denoise,
    z: Float[Array, "b *rest"],
    grid: Any,
    key: Key[Array, ""],
    *,
    hook: Hook | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Float[Array, "b *rest"]:
    """Runs `sampler` with a ready denoiser: for notebooks and tests; see `program` for the arguments.

    Compiles once for each (sampler, denoise, hook); what `denoise` closes over becomes part of the compiled code, so a
    new closure compiles anew. The last four programs are kept. Use `program` where parameters or scales change.
    """
    run = _program_of(sampler, denoise, hook)
    return run((), z, grid, key, chunk=chunk, progress=progress)
