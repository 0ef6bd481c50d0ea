"""Where a score is heading: the median slope over its readings, in a word."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import median
from typing import Literal

Trend = Literal["rising", "falling", "flat", "unknown"]

FLAT = 0.02
"""Change of the deciding score over all the readings below which its trend is called flat."""


def trend(points: Sequence[tuple[int, float]]) -> Trend:
    """The word for (step, score) pairs in the order of their steps; unknown for fewer than two."""
    found = slope(points)
    if found is None:
        return "unknown"
    change = found * (points[-1][0] - points[0][0])
    if abs(change) < FLAT:
        return "flat"
    return "rising" if change > 0 else "falling"


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Median of the slopes between all pairs (Theil–Sen), per step; None without two steps."""
    slopes = [(v - u) / (t - s) for (s, u), (t, v) in combinations(points, 2) if t != s]
    return median(slopes) if slopes else None
