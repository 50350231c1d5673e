"""Intervals for scores: a proportion, and the difference of two arms run on the same seeds.

Law of the file: an interval is (low, high) at two-sided `confidence` in (0, 1). Counts are whole trials.
Bad counts raise UserError.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri, stdtrit

from jaxvid.core.errors import UserError


class Difference(NamedTuple):
    """Mean paired difference, its interval, and the number of pairs."""

    mean: float
    low: float
    high: float
    count: int


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion; never leaves [0, 1] and is right near its ends.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22:209.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise UserError(
            f"interval: {successes} successes of {trials}; need 0 <= successes <= trials"
        )
    z = float(ndtri(0.5 + confidence / 2))
    rate, weight = successes / trials, z * z / trials
    middle = (rate + weight / 2) / (1 + weight)
    half = np.sqrt(rate * (1 - rate) * weight + weight * weight / 4) / (1 + weight)
    # At the ends one limit is exactly 0 or 1; rounding must not move it.
    low = 0.0 if successes == 0 else float(middle - half)
    high = 1.0 if successes == trials else float(middle + half)
    return low, high


def paired_difference(
    first: Sequence[float] | Float[np.ndarray, " n"],
    second: Sequence[float] | Float[np.ndarray, " n"],
    confidence: float = 0.95,
) -> Difference:
    """Mean of `first - second` over pairs (same seed, same order), with Student's t interval.

    Student (1908), "The probable error of a mean", Biometrika 6:1. Needs two pairs or more.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise UserError(
            f"interval: pairs of {a.shape} and {b.shape}; give two equal lists, >= 2 long"
        )
    gaps = a - b
    mean, count = float(gaps.mean()), len(gaps)
    quantile = float(stdtrit(count - 1, 0.5 + confidence / 2))
    half = quantile * float(gaps.std(ddof=1)) / np.sqrt(count)
    return Difference(mean, float(mean - half), float(mean + half), count)
