r"""Sampling grids: the log-SNRs that a sampler visits, noisiest first, [steps + 1], float32 numpy.

The first entry is the level of the start `z`; each following one is reached by one step. The last is +inf (the
step ends on clean data) or finite. Grids are made on the host; their values are traced when sampling, so neither
the grid nor its length causes a recompile (see `driver`).
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxvid.core.errors import UserError
from jaxvid.diffusion.schedule import BetaTable, Schedule


def _check_steps(steps: int, limit: int | None = None) -> None:
    if steps < 1 or (limit is not None and steps > limit):
        bound = "at least 1" if limit is None else f"between 1 and {limit}"
        raise UserError(f"sampling steps {steps}: give {bound}")


def _end_clean(logsnr: np.ndarray, clean: bool) -> np.ndarray:
    return np.append(logsnr[:-1], np.float32(np.inf)) if clean else logsnr


def uniform(schedule: Schedule, steps: int, *, clean: bool = True) -> np.ndarray:
    """Log-SNRs at t = 1, 1 - 1/steps, ..., 0 (Video Diffusion Models).

    `clean` puts +inf for the last, so that the result is the last estimate of x instead of a sample at logsnr(0).
    """
    _check_steps(steps)
    t = (np.arange(steps, -1, -1) / steps).astype(np.float32)
    return _end_clean(np.asarray(schedule.logsnr(jnp.asarray(t)), np.float32), clean)


def uniform_logsnr(low: float, high: float, steps: int, *, clean: bool = False) -> np.ndarray:
    """Log-SNRs evenly spaced from `low` to `high` (Lu et al. 2022); `clean` appends one step, to +inf."""
    _check_steps(steps)
    logsnr = np.linspace(low, high, steps + 1).astype(np.float32)
    return np.append(logsnr, np.float32(np.inf)) if clean else logsnr


def karras(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> np.ndarray:
    """Log-SNRs of the noise levels of Karras et al. 2022, Eq. 5: `steps` sigmas, then 0 (+inf)."""
    _check_steps(steps)
    ramp = np.arange(steps) / max(steps - 1, 1)
    sigma = (
        sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))
    ) ** rho
    return np.append(-2.0 * np.log(sigma), np.inf).astype(np.float32)


def table_indices(
    entries: int,
    steps: int,
    spacing: Literal["leading", "trailing", "linspace"],
    offset: int = 0,
    end: int | None = None,
) -> np.ndarray:
    """The table indices that published discrete samplers visit, [steps], falling.

    end: spread the steps over that many entries, from the first on, instead of over all; to begin within the noise.

    leading: i (entries // steps) + offset.  trailing: round(entries - i entries / steps) - 1.
    linspace: round of [0, entries - 1] divided evenly; a single step is entry 0 there, as published.
    `offset` is `steps_offset` and applies to leading only.
    """
    if end is not None and not 1 <= end <= entries:
        raise UserError(f"noise level {end}: give 1 to {entries}")
    span = entries if end is None else end
    _check_steps(steps, span)
    if spacing == "leading":
        index = np.arange(steps)[::-1] * (span // steps) + offset
    elif spacing == "trailing":
        index = np.round(span - np.arange(steps) * (span / steps)).astype(int) - 1
    elif spacing == "linspace":
        index = np.round(np.linspace(0, span - 1, steps)).astype(int)[::-1]
    else:
        raise UserError(f"grid spacing {spacing!r}: give leading, trailing or linspace")
    if index[0] >= entries:
        raise UserError(f"steps_offset {offset}: index {index[0]} is beyond the table of {entries}")
    return index


def table(
    schedule: BetaTable,
    steps: int,
    spacing: Literal["leading", "trailing", "linspace"] = "leading",
    *,
    offset: int = 0,
    final: Literal["clean", "first"] = "clean",
    end: int | None = None,
) -> np.ndarray:
    """The grid of a published discrete sampler; networks get whole indices.

    Args:
      schedule: the model's table.
      steps: number of steps, at most the table's entries.
      spacing: see `table_indices`.
      offset: `steps_offset` of the published configuration (Stable Diffusion: 1).
      end: see `table_indices`.
      final: the level after the last index: "clean" (`set_alpha_to_one: true`) or the table's first entry
        (`set_alpha_to_one: false`, Stable Diffusion).

    Each step leads to the next index of the grid. Public DDIM code steps back by entries // steps instead, which is
    the same for leading, and for trailing when steps divides entries.
    """
    index = table_indices(schedule.entries, steps, spacing, offset, end)
    values = schedule.logsnr_table
    last = np.float32(np.inf) if final == "clean" else values[0]
    return np.append(values[index], last)
