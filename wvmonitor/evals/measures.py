"""Measures: ratios of what scorers counted, as Inspect metrics and as records.

Every scorer of this package gives a row a dictionary of counts. A measure is Σ `of` / Σ `among`
over the rows. Inspect's means over repeated epochs leave such a ratio what it is.
"""

# mypy: allow-untyped-decorators

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from inspect_ai.log import EvalLog
from inspect_ai.scorer import Metric, SampleScore, Value, metric

from wvmonitor.evals.intervals import bootstrap, wilson

Interval = Literal["wilson", "bootstrap"]
_PARTS = ("low", "high", "n", "unjudged")


@dataclass(frozen=True)
class Measure:
    """One number of an evaluation and how sure it is.

    Attributes:
        value: a share between 0 and 1, or the mean of a judge's grades; NaN without trials.
        low: lower end of its 95 % interval.
        high: upper end.
        n: the rows that it rests on.
        unjudged: rows left out because no grade could be read.
        interval: `wilson` (proportions) or `bootstrap` (means of grades, over rows).
    """

    task: str
    name: str
    value: float
    low: float
    high: float
    n: float
    unjudged: float
    interval: Interval


@metric
def rate(name: str, of: str, among: str, unjudged: str | None = None) -> Metric:
    """The share Σ of / Σ among, with its Wilson interval over Σ among rows."""

    def measured(scores: list[SampleScore]) -> Value:
        rows = _rows(scores)
        n = sum(row[among] for row in rows)
        share = sum(row[of] for row in rows) / n if n else math.nan
        return _flat(name, share, wilson(share, n), n, _total(rows, unjudged))

    return measured


@metric
def mean(name: str, of: str, among: str, unjudged: str | None = None) -> Metric:
    """The mean grade Σ of / Σ among, grades from 0 to 100, with its bootstrap interval over rows.

    Where all grades are the same there is nothing to resample: then the interval is Wilson's, of
    the mean as a share of 100.
    """

    def measured(scores: list[SampleScore]) -> Value:
        rows = _rows(scores)
        totals, counts = [row[of] for row in rows], [row[among] for row in rows]
        n = sum(counts)
        value = sum(totals) / n if n else math.nan
        grades = {total / count for total, count in zip(totals, counts, strict=True) if count}
        if len(grades) > 1:
            low, high = bootstrap(totals, counts)
        else:
            low, high = (100 * bound for bound in wilson(value / 100, n))
        return _flat(name, value, (low, high), n, _total(rows, unjudged))

    return measured


def measures(log: EvalLog) -> Iterator[Measure]:
    """Every measure in an evaluation's log."""
    for score in log.results.scores if log.results else ():
        values = {key: float(metric.value) for key, metric in score.metrics.items()}
        kinds = {key: metric.group or "" for key, metric in score.metrics.items()}
        for name in values:
            if all(f"{name}_{part}" in values for part in _PARTS):
                low, high, n, unjudged = (values[f"{name}_{part}"] for part in _PARTS)
                interval: Interval = "bootstrap" if kinds[name].endswith("mean") else "wilson"
                task = log.eval.task.rpartition("/")[2]
                yield Measure(task, name, values[name], low, high, n, unjudged, interval)


def _rows(scores: Sequence[SampleScore]) -> list[dict[str, float]]:
    return [
        {k: float(cast("float", v)) for k, v in cast("Mapping[str, Value]", s.score.value).items()}
        for s in scores
    ]


def _total(rows: Sequence[Mapping[str, float]], key: str | None) -> float:
    return sum(row[key] for row in rows) if key else 0.0


def _flat(
    name: str, value: float, bounds: tuple[float, float], n: float, unjudged: float
) -> dict[str, float]:
    parts = zip(_PARTS, (*bounds, n, unjudged), strict=True)
    return {name: value, **{f"{name}_{part}": number for part, number in parts}}
