"""AUROC, rates and rank correlations with 95 % intervals from a bootstrap over datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from wvmonitor.organism.behaviour import wilson
from wvmonitor.reading import Float64

DRAWS = 1000


@dataclass(frozen=True)
class Sample:
    """One number of one run, the side it is on, and the dataset that it shares with others."""

    value: float
    positive: bool
    cluster: str


@dataclass(frozen=True)
class Metric:
    """A figure: its value, its 95 % interval, and how many runs of which kind are behind it."""

    value: float
    ci95: tuple[float, float]
    runs: dict[str, int]

    def entry(self) -> dict[str, Any]:
        """As it stands in the results."""
        n = sum(v for k, v in self.runs.items() if k != "datasets")
        return {"value": self.value, "ci95": list(self.ci95), "n": n, "runs": self.runs}


def area(positives: Float64, negatives: Float64) -> float:
    """AUROC: how often a positive run scores above a negative one; ties count half."""
    n, m = len(positives), len(negatives)
    ranks = rankdata(np.concatenate([positives, negatives]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def caught(positives: Float64, negatives: Float64, rate: float = 0.01) -> float:
    """Share of positives above the score that at most `rate` of the negatives pass."""
    allowed = int(np.floor(rate * len(negatives) + 1e-9))
    threshold = np.sort(negatives)[len(negatives) - 1 - allowed]
    return float((positives > threshold).mean())


def two_sided(
    statistic: Callable[[Float64, Float64], float], samples: Sequence[Sample], seed: int = 0
) -> Metric | None:
    """A statistic of positives and negatives; None where a side is empty.

    Where no draw differs from another the interval is Wilson's, of a proportion of the datasets.
    """
    sides = [[s for s in samples if s.positive is side] for side in (True, False)]
    if not all(sides):
        return None
    values = [np.array([s.value for s in side]) for side in sides]
    clusters = [_members([s.cluster for s in side]) for side in sides]
    rng = np.random.default_rng(seed)
    draws = [
        statistic(*(v[_resampled(c, rng)] for v, c in zip(values, clusters, strict=True)))
        for _ in range(DRAWS)
    ]
    value = statistic(values[0], values[1])
    n = {"positive": len(values[0]), "negative": len(values[1])}
    n["datasets"] = len(clusters[0]) + len(clusters[1])
    if min(draws) == max(draws):
        # All draws alike say nothing of how sure 0 or 1 is: as of a proportion of the datasets.
        few = min(map(len, clusters))
        rate = wilson(round(value * few), few)
        return Metric(value, (min(rate.low, value), max(rate.high, value)), n)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Metric(value, (float(low), float(high)), n)


def auroc(samples: Sequence[Sample]) -> Metric | None:
    """AUROC with its interval."""
    return two_sided(area, samples)


def share(hits: Sequence[bool]) -> Metric | None:
    """A proportion with its Wilson interval."""
    if not hits:
        return None
    rate = wilson(sum(hits), len(hits))
    return Metric(rate.value, (rate.low, rate.high), {"runs": rate.n})


def correlation(x: Sequence[float], y: Sequence[float], clusters: Sequence[str]) -> Metric | None:
    """Spearman's rank correlation."""
    return _of_pairs(
        lambda a, b: float(spearmanr(a, b).statistic), np.array(x), np.array(y), clusters
    )


def median(values: Sequence[float], clusters: Sequence[str]) -> Metric | None:
    """A median."""
    x = np.array(values)
    return _of_pairs(lambda a, _: float(np.median(a)), x, np.arange(float(len(x))), clusters)


def _of_pairs(
    statistic: Callable[[Float64, Float64], float],
    x: Float64,
    y: Float64,
    clusters: Sequence[str],
    seed: int = 0,
) -> Metric | None:
    if len(x) < 3:
        return None
    members, rng = _members(clusters), np.random.default_rng(seed)
    picks = [_resampled(members, rng) for _ in range(DRAWS)]
    draws = [statistic(x[p], y[p]) for p in picks if len(set(x[p])) > 1 < len(set(y[p]))]
    low, high = np.quantile(draws, [0.025, 0.975]) if draws else (np.nan, np.nan)
    return Metric(
        statistic(x, y), (float(low), float(high)), {"runs": len(x), "datasets": len(members)}
    )


def _members(clusters: Sequence[str]) -> list[np.ndarray]:
    names = np.array(clusters)
    return [np.flatnonzero(names == name) for name in dict.fromkeys(clusters)]


def _resampled(members: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    picked = rng.integers(len(members), size=len(members))
    return np.concatenate([members[i] for i in picked])
