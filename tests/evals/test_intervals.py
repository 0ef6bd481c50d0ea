"""Intervals against scipy's own, and what measures make of counts."""

import math

import numpy as np
import pytest
from scipy import stats

from wvmonitor.evals.intervals import bootstrap, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 100), (50, 100), (10, 10), (1, 1)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    """The interval of a proportion is Wilson's, to rounding."""
    low, high = wilson(k / n, n)
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert low <= k / n <= high


def test_no_trials_say_nothing() -> None:
    """Without trials the interval is everything."""
    assert wilson(math.nan, 0) == (0.0, 1.0)


def test_bootstrap_is_scipys() -> None:
    """The interval of a mean over rows agrees with scipy's percentile bootstrap of the ratio."""
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 2, 60).astype(float)
    totals = counts * rng.uniform(0, 100, 60)
    expected = stats.bootstrap(
        (totals, counts),
        lambda t, c: t.sum() / c.sum(),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=4000,
        random_state=1,
    ).confidence_interval
    assert bootstrap(totals, counts) == pytest.approx(tuple(expected), abs=2.5)
    assert bootstrap(totals, counts) == bootstrap(totals, counts)


def test_wilson_covers_fractional_trials() -> None:
    """Rows whose value is a mean of two answers are covered in at least 95 % of experiments."""
    rng = np.random.default_rng(0)
    p, n = 0.2, 40
    shares = rng.binomial(1, p, (2000, n, 2)).mean(2).mean(1)
    covered = np.mean([wilson(s, n)[0] <= p <= wilson(s, n)[1] for s in shares])
    assert covered >= 0.95
