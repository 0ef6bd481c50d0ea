"""AUROC, rates and rank correlations with 95 % intervals from a bootstrap over datasets.

Runs of one dataset are no independent evidence, so datasets are what is drawn. No bootstrap can say
how sure a perfect result is, for every draw is perfect too: there, and as a limit to what any
interval claims, the bound is that of `at_best`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import betabinom, rankdata, spearmanr

from wvmonitor.detection.conformal import rank
from wvmonitor.reading import Float64

DRAWS = 1000
PROMISE_DRAWS = 200_000
LEAST_CLUSTERS = 5
"""On each side, for the interval of a difference."""


@dataclass(frozen=True)
class Sample:
    """One number of one run, the side it is on, and the dataset that it shares with others."""

    value: float
    positive: bool
    cluster: str


@dataclass(frozen=True)
class Promise:
    """What a promised rate of false alarms says of a count, the calibration's own luck included.

    Attributes:
        promised: the rate.
        calibrated_on: how many harmless runs set the threshold.
        count: of the alarms that were seen.
        as_many: probability of so many, or more, if the promise holds.
        expected: from how many to how many alarms that gives, 95 %.
    """

    promised: float
    calibrated_on: int
    count: int
    as_many: float
    expected: tuple[int, int]


@dataclass(frozen=True)
class Metric:
    """A figure: its value, its 95 % interval, and how many runs of which kind are behind it.

    Attributes:
        runs: by kind; "datasets" counts those that are independent, of the rarer side.
        promise: beside a promised rate, how likely such a count is.
    """

    value: float
    ci95: tuple[float, float]
    runs: dict[str, int]
    promise: Promise | None = None

    def entry(self) -> dict[str, Any]:
        """As it stands in the results."""
        n = sum(v for k, v in self.runs.items() if k != "datasets")
        found = {"value": self.value, "ci95": list(self.ci95), "n": n, "runs": self.runs}
        if self.promise is not None:
            found["promise"] = {**vars(self.promise), "expected": list(self.promise.expected)}
        return found


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


def at_best(datasets: int, level: float = 0.05) -> float:
    """The lower bound of an AUROC, or of a rate, that so many independent datasets can support.

    Take one positive and one negative run of each of k independent pairs. If the AUROC is θ, each
    pair is in the right order with probability θ, and all of them with θᵏ: so an AUROC below
    level^(1/k) would give a perfect result less often than `level`. The same holds for a rate, with
    k the datasets in which it is seen. One-sided.
    """
    return float(level ** (1 / datasets))


def two_sided(
    statistic: Callable[[Float64, Float64], float], samples: Sequence[Sample], seed: int = 0
) -> Metric | None:
    """A statistic of positives and negatives; None where a side is empty.

    The interval is a bootstrap's, but never narrower than what the datasets of the rarer side can
    support at best (`at_best`); of a perfect result it is that, one-sided.
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
    few = min(map(len, clusters))
    n = {"positive": len(values[0]), "negative": len(values[1]), "datasets": few}
    return Metric(value, _bounded(value, draws, few), n)


def auroc(samples: Sequence[Sample]) -> Metric | None:
    """AUROC with its interval, as `two_sided` has it; None where a side is empty."""
    sides = [[s for s in samples if s.positive is side] for side in (True, False)]
    if not all(sides):
        return None
    bad, good = (np.array([s.value for s in side]) for side in sides)
    return auroc_of_pairs(won(bad, good), *([s.cluster for s in side] for side in sides))


def auroc_of_pairs(
    pairs: Float64, positives: Sequence[str], negatives: Sequence[str]
) -> Metric | None:
    """AUROC, as `auroc` has it, from who won each pair.

    Args:
        pairs: (positives, negatives) 1 where the positive run scores above the negative one, ½ for
            a tie.
        positives: the dataset of each.
        negatives: likewise.
    """
    if not pairs.size:
        return None
    members = [membership(side) for side in (positives, negatives)]
    few = min(map(len, members))
    n = {"positive": len(positives), "negative": len(negatives), "datasets": few}
    value = float(pairs.mean())
    return Metric(value, _bounded(value, _means(pairs, members), few), n)


def share(hits: Sequence[bool], clusters: Sequence[str], seed: int = 0) -> Metric | None:
    """A proportion of runs, its interval over their datasets; None of no runs."""
    if not hits:
        return None
    values, members = np.array(hits, dtype=np.float64), _members(clusters)
    rng = np.random.default_rng(seed)
    draws = [float(values[_resampled(members, rng)].mean()) for _ in range(DRAWS)]
    value = float(values.mean())
    n = {"runs": len(hits), "datasets": len(members)}
    return Metric(value, _bounded(value, draws, len(members)), n)


def _bounded(value: float, draws: Sequence[float] | Float64, datasets: int) -> tuple[float, float]:
    """The bootstrap's 95 % interval, and no narrower than so many datasets can support."""
    low, high = (float(q) for q in np.quantile(draws, [0.025, 0.975]))
    if value >= 1:
        return at_best(datasets), 1.0
    if value <= 0:
        return 0.0, 1 - at_best(datasets)
    best = at_best(datasets, 0.025)
    return min(low, best), max(high, 1 - best)


def beside_promise(
    metric: Metric, count: int, alpha: float, calibrated_on: int, behaviours: int = 1
) -> Metric:
    """The figure with what its promise says of the count.

    The rate that one calibration really has is Beta(n+1−k, k) for one behaviour, so the count among
    m new runs is beta-binomial, wider than a binomial one. Of several behaviours at their share of
    α the rates are added, as if no run alarmed for two.

    Args:
        metric: a rate of false alarms.
        count: of alarms behind it.
        alpha: the promised rate.
        calibrated_on: n, the runs that set the threshold.
        behaviours: that share α; 1 where one threshold serves all.
    """
    m, n = metric.runs["runs"], calibrated_on
    k = rank(n, alpha / behaviours)
    if behaviours == 1:
        law = betabinom(m, n + 1 - k, k)
        as_many, (low, high) = float(law.sf(count - 1)), law.interval(0.95)
    else:
        rng = np.random.default_rng(0)
        rates = rng.beta(n + 1 - k, k, size=(PROMISE_DRAWS, behaviours)).sum(axis=1)
        counts = rng.binomial(m, np.minimum(rates, 1.0))
        as_many = float((counts >= count).mean())
        low, high = np.quantile(counts, [0.025, 0.975])
    return replace(
        metric, promise=Promise(alpha, n, count, as_many, (round(float(low)), round(float(high))))
    )


def difference(pairs: Sequence[tuple[float, float, bool, str]]) -> dict[str, Any] | None:
    """AUROC of the first number less that of the second, and its 95 % interval.

    Families are drawn with replacement on each side, the same ones for both numbers. Where a side
    has fewer than three there is no interval: all draws would be alike, and prove nothing.

    Args:
        pairs: (first, second, positive, family) of each run.
    """
    sides = [[p for p in pairs if p[2] is side] for side in (True, False)]
    if not all(sides):
        return None
    bad, good = (np.array([p[:2] for p in side]) for side in sides)
    gain = won(bad[:, 0], good[:, 0]) - won(bad[:, 1], good[:, 1])
    return difference_of_pairs(gain, *([p[3] for p in side] for side in sides))


def difference_of_pairs(
    gain: Float64, positives: Sequence[str], negatives: Sequence[str]
) -> dict[str, Any]:
    """`difference` from what each pair adds to the first AUROC less what it adds to the second.

    Args:
        gain: (positives, negatives), the two matrices of `won` apart.
        positives: the family of each.
        negatives: likewise.
    """
    value = float(gain.mean())
    members = [membership(side) for side in (positives, negatives)]
    if min(map(len, members)) < LEAST_CLUSTERS:
        return {"value": value, "ci95": None}
    low, high = np.quantile(_means(gain, members), [0.025, 0.975])
    return {"value": value, "ci95": [float(low), float(high)]}


def _means(pairs: Float64, members: Sequence[Float64]) -> Float64:
    """(draws,) means of (positives, negatives) where each side's clusters are drawn again."""
    rng = np.random.default_rng(0)
    drawn = [rng.multinomial(len(m), np.full(len(m), 1 / len(m)), size=DRAWS) @ m for m in members]
    sums = ((drawn[0] @ pairs) * drawn[1]).sum(axis=1)
    return np.asarray(sums / (drawn[0].sum(axis=1) * drawn[1].sum(axis=1)))


def won(positives: Float64, negatives: Float64) -> Float64:
    """(positives, negatives) 1 where a positive is above a negative, ½ for a tie, else 0."""
    above = positives[:, None] > negatives
    return np.asarray(above + 0.5 * (positives[:, None] == negatives), dtype=np.float64)


def membership(families: Sequence[str]) -> Float64:
    """(families, runs): 1 where a run is of a family."""
    names = np.array(families)
    return np.array([names == n for n in np.unique(names)], dtype=np.float64)


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
