"""Metrics of an interval: summed on the device, read at log points, carried over a restart.

A step's outcome is {"sums": {name: (sum, count)}, "bad": its number if a sum is not finite (NEVER otherwise), ...}.
Sums are added in float32 in the order of the steps, so an interval cut by a restart gives the same bits as a whole one.
"""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NEVER = np.iinfo(np.int32).max


class NonFiniteError(Exception):
    """Training gave a number that is not finite; the message names the step. Checkpoints are from before it."""


@jax.jit
def _add(so_far: Any, outcome: Any) -> Any:
    return {
        "sums": jax.tree.map(jnp.add, so_far["sums"], outcome["sums"]),
        "bad": jnp.minimum(so_far["bad"], outcome["bad"]),
    }


class Meter:
    """Adds the outcomes of a phase's steps up.

    sums, steps: of an interval that a restart cut (None, 0 otherwise).
    first_step: the run's step before the phase's first, so that errors name the run's steps.
    """

    def __init__(
        self,
        phase: str,
        first_step: int,
        sums: Mapping[str, Any] | None = None,
        steps: int = 0,
        flops_per_step: float | None = None,
    ):
        self._phase, self._first_step, self._flops = phase, first_step, flops_per_step
        self._total: Any = None
        if sums is not None:
            pairs = {name: tuple(map(np.float32, pair)) for name, pair in sums.items()}
            self._total = {"sums": pairs, "bad": np.int32(NEVER)}
        self._steps = steps
        self._created = time.monotonic()
        self._clock: float | None = (
            None  # starts after the first step, which carries the compilation
        )
        self._compile_seconds = 0.0
        self._timed_steps = 0
        self._waited = 0.0

    def add(self, outcome: Mapping[str, Any], waited: float) -> None:
        """Adds a step's outcome; `waited` is the time spent on batches so far, in seconds."""
        kept = {"sums": outcome["sums"], "bad": outcome["bad"]}
        self._total = kept if self._total is None else _add(self._total, kept)
        self._steps += 1
        if self._clock is None:
            jax.block_until_ready(kept)
            self._compile_seconds = time.monotonic() - self._created
            self._restart(waited)
        else:
            self._timed_steps += 1

    def exclude(self, seconds: float) -> None:
        """Takes time that was not spent on training (a report) off the clock."""
        if self._clock is not None:
            self._clock += seconds

    def unlogged(self) -> dict[str, Any]:
        """`{"sums": ..., "steps_in_sums": ...}` since the last log line, as JSON. Raises NonFiniteError."""
        sums = self._read()
        return {
            "sums": {name: [float(part) for part in pair] for name, pair in sums.items()} or None,
            "steps_in_sums": self._steps,
        }

    def take(self, examples: int, waited: float) -> dict[str, float]:
        """The means since the last log line with the speed, and begins a new interval. Raises NonFiniteError.

        examples: in a global batch. A name whose count is zero (a bucket that no example fell in) is left out.
        """
        sums = self._read()
        values = {name: float(total / count) for name, (total, count) in sums.items() if count}
        if self._timed_steps and self._clock is not None:
            seconds = (time.monotonic() - self._clock) / self._timed_steps
            values["seconds_per_step"] = seconds
            values["examples_per_second"] = examples / seconds
            values["data_seconds_per_step"] = (waited - self._waited) / self._timed_steps
            if self._flops is not None:
                values["flops_per_second"] = self._flops / seconds
        if self._compile_seconds:
            values["first_step_seconds"], self._compile_seconds = self._compile_seconds, 0.0
        self._total, self._steps = None, 0
        self._restart(waited)
        return values

    def _restart(self, waited: float) -> None:
        self._clock, self._timed_steps, self._waited = time.monotonic(), 0, waited

    def _read(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        if self._total is None:
            return {}
        total = jax.device_get(self._total)
        if total["bad"] != NEVER:
            broken = [name for name, pair in total["sums"].items() if not np.isfinite(pair).all()]
            raise NonFiniteError(
                f"step {self._first_step + total['bad']} (phase {self._phase}, its step {total['bad']}) gave numbers "
                f"that are not finite: {', '.join(broken)}; nothing was saved after it, look at that step's data, "
                "lower the learning rate or clip the gradient"
            )
        return total["sums"]
