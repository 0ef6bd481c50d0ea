"""Confidence intervals at 95 % for what evaluations count."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959963984540054
_RESAMPLES = 2000


def wilson(share: float, n: float) -> tuple[float, float]:
    """The Wilson score interval of a proportion.

    Trials whose values lie between 0 and 1 (a mean over repeats) are allowed: their variance is at
    most that of yes-or-no trials, so the interval is then a little wide, never too narrow.

    Args:
        share: the mean of the trials, in [0, 1].
        n: how many independent trials; with none the interval says nothing: (0, 1).
    """
    if n <= 0:
        return 0.0, 1.0
    centre = (share + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
    spread = math.sqrt(share * (1 - share) / n + _Z * _Z / (4 * n * n))
    half = _Z / (1 + _Z * _Z / n) * spread
    # Rounding may put a bound a hair on the wrong side of the share at 0 and 1.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def bootstrap(totals: Sequence[float], counts: Sequence[float]) -> tuple[float, float]:
    """The percentile bootstrap interval of Σ totals / Σ counts over resampled rows.

    The draws are the same every time.

    Args:
        totals: (rows,) what each row adds up to.
        counts: (rows,) how many values each row adds up; their sum is not 0.
    """
    total, count = np.asarray(totals, float), np.asarray(counts, float)
    rows = np.random.default_rng(0).integers(len(total), size=(_RESAMPLES, len(total)))
    sums, numbers = total[rows].sum(1), count[rows].sum(1)
    low, high = np.quantile(sums[numbers > 0] / numbers[numbers > 0], [0.025, 0.975])
    return float(low), float(high)
