"""Means over seeds with 95 % intervals.

Runs are few and answers many, so two kinds of luck count: that of the run, seen between seeds (t),
and that of the questions. The interval of a rate is never narrower than Wilson's of all its answers
together, for five runs that happen to agree prove little; of a difference likewise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t

from benchmarks.statistics import at_best
from wvmonitor.organism.behaviour import wilson

Z = 1.959964

Count = Sequence[int]
"""Successes, and trials."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; none of a single run, where there is no rate."""

    value: float
    low: float
    high: float

    def words(self, digits: int = 2) -> str:
        """As it stands in a table."""
        value, low, high = (
            f"{round(x, digits) + 0.0:.{digits}f}".replace("-", "−")
            for x in (self.value, self.low, self.high)
        )
        if not math.isfinite(self.low + self.high):
            return value
        return f"{value} ({low}{' to ' if self.low < 0 else '–'}{high})"


def span(counts: Sequence[int]) -> str:
    """How many runs a cell has: "5", or "3 to 5"."""
    least, most = min(counts), max(counts)
    return str(most) if least == most else f"{least} to {most}"


def rate(counts: Sequence[Count]) -> Interval:
    """The mean of runs' rates."""
    values = [successes / trials for successes, trials in counts if trials]
    pooled = wilson(sum(c[0] for c in counts), sum(c[1] for c in counts))
    value = statistics.fmean(values) if values else math.nan
    half = _half(values)
    low, high = pooled.low, pooled.high
    if math.isfinite(half):
        low, high = min(low, value - half), max(high, value + half)
    return Interval(value, max(low, 0.0), min(high, 1.0))


def mean(values: Sequence[float]) -> Interval:
    """The mean of runs' values; of fewer than three, which may agree by chance, no interval."""
    value, half = statistics.fmean(values), _half(values) if len(values) > 2 else math.nan
    return Interval(value, value - half, value + half)


def area(values: Sequence[float], sets: int) -> Interval:
    """The mean of AUROCs, its interval no narrower than so many sets can support (`at_best`)."""
    found = mean(values)
    if found.value >= 1:
        return Interval(found.value, at_best(sets), 1.0)
    best = at_best(sets, 0.025)
    return Interval(found.value, min(found.low, best), min(max(found.high, 1 - best), 1.0))


def difference(pairs: Sequence[tuple[Count, Count]]) -> Interval:
    """The mean of (first − second) over pairs of runs with the same seed."""
    gaps = [a / n - b / m for (a, n), (b, m) in pairs]
    asked = [sum(c[0][1] for c in pairs), sum(c[1][1] for c in pairs)]
    # as if nothing were shared; one more of each kind, so that 0 of n is not sure
    luck = [
        (p := (sum(c[i][0] for c in pairs) + 1) / (asked[i] + 2)) * (1 - p) / asked[i]
        for i in (0, 1)
    ]
    value = statistics.fmean(gaps)
    half = max(Z * math.sqrt(sum(luck)), h if math.isfinite(h := _half(gaps)) else 0.0)
    return Interval(value, value - half, value + half)


def crossed(runs: Sequence[Mapping[Hashable, float]]) -> Interval:
    """The mean over runs of their means over questions, with the luck of both in its interval.

    Half² = (t of runs · s/√runs)² + (t of questions · standard error by question)². A question
    counts once however many runs were asked it: what it adds to the mean, over all runs, is summed
    before it is squared. Of a single run there is the luck of the questions alone.

    Args:
        runs: of each run, a value by question.
    """
    means = [statistics.fmean(run.values()) for run in runs]
    adds: dict[Hashable, float] = {}
    for run, average in zip(runs, means, strict=True):
        for question, value in run.items():
            part = (value - average) / (len(runs) * len(run))
            adds[question] = adds.get(question, 0.0) + part
    n = len(adds)
    half = math.nan
    if n > 1:
        error = math.sqrt(sum(a * a for a in adds.values()) * n / (n - 1))
        of_runs = _half(means)
        half = math.hypot(float(t.ppf(0.975, n - 1)) * error, 0.0 if len(runs) < 2 else of_runs)
    value = statistics.fmean(means)
    return Interval(value, value - half, value + half)


def _half(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    quantile = float(t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))
