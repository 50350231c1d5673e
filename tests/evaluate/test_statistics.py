"""Intervals against their defining equations, published values and simulated coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxvid.core.errors import UserError
from jaxvid.evaluate.statistics import paired_difference, wilson_interval


@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_limits_solve_the_score_equation(trials, share, confidence):
    """|rate - p| = z sqrt(p (1 - p) / n) at both limits, which is how Wilson defines them."""
    successes = int(share * trials)
    low, high = wilson_interval(successes, trials, confidence)
    z = stats.norm.ppf(0.5 + confidence / 2)
    assert 0 <= low <= successes / trials <= high <= 1
    for p in (low, high):
        gap = abs(successes / trials - p)
        np.testing.assert_allclose(gap, z * np.sqrt(p * (1 - p) / trials), atol=1e-7)


def test_wilson_known_values():
    """Newcombe (1998), Statistics in Medicine 17:857, table I, method 3."""
    for (successes, trials), want in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        np.testing.assert_allclose(wilson_interval(successes, trials), want, atol=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0


def test_paired_difference_is_students_interval():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=7), rng.normal(size=7)
    got = paired_difference(a, b)
    want = stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose(got[1:3], (want.low, want.high), rtol=1e-9)
    np.testing.assert_allclose(got.mean, np.mean(a - b), rtol=1e-12)
    assert got.count == 7


def test_paired_difference_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(2000, 5)) * 10  # pairing removes what both arms share
    first, second = shared + rng.normal(size=(2000, 5)) + 0.5, shared + rng.normal(size=(2000, 5))
    found = [paired_difference(a, b) for a, b in zip(first, second, strict=True)]
    covered = np.mean([d.low < 0.5 < d.high for d in found])
    assert abs(covered - 0.95) < 0.02


def test_bad_counts_are_one_clear_line():
    for call in (
        lambda: wilson_interval(3, 2),
        lambda: wilson_interval(0, 0),
        lambda: paired_difference([1.0], [2.0]),
        lambda: paired_difference([1.0, 2.0], [2.0, 3.0, 4.0]),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert "\n" not in str(error.value)
