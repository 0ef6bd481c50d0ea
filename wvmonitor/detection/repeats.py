"""Runs of one dataset that go by several names: found by digest, or by ending in the same places.

A calibration's n counts datasets. Ten datasets with four seeds each, named as forty, gave 9.2 %
false alarms where 5 % was guaranteed: so what a user says of them is checked as far as it can be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wvmonitor.detection.benign import KeptRun
from wvmonitor.errors import CalibrationError
from wvmonitor.reading import Float64

SAME = 0.02
"""Distance of two runs' traces, in standard deviations of the runs at hand, below which they are
the same run. Two seeds of one dataset of the organism suite were never closer than 0.035, and
hardly any runs of different datasets closer than 0.1."""

NEIGHBOUR = 5
"""A run's nearest neighbour is held against its fifth."""

CLUSTERED = 0.45
"""Median of that ratio, as a share of what unclustered runs give, below which runs come in groups.
Of draws of forty runs of the suite, each of its own dataset, none was below 0.52, and of draws of
ten datasets with four seeds, or with two, nineteen of twenty were below 0.45."""

LEAST_TRACE, LEAST_RUNS = 4, 20
"""With fewer numbers a run, or fewer runs, clusters cannot be told from chance."""

NULL_DRAWS = 25


def require_different_data(runs: Sequence[KeptRun], *, by_their_ends: bool = True) -> None:
    """Hold what is known of the runs against the claim that each has a dataset of its own.

    Args:
        runs: of a calibration.
        by_their_ends: False believes the names of runs that end alike, as seeds of one dataset do;
            equal digests are refused all the same.

    Raises:
        CalibrationError: two runs trained on the same data, two are one run, or they end in
            clusters.
    """
    known: dict[str, str] = {}
    for run in runs:
        digest = run.context.data
        if digest is not None and known.setdefault(digest, run.dataset) != run.dataset:
            raise CalibrationError(
                f"{known[digest]} and {run.dataset} are the same data (digest {digest[:12]}…): "
                "seeds of one dataset are not independent runs, keep one of each"
            )
    if not by_their_ends or len(known) == len(runs):
        return
    traces = _traces(runs)
    if traces is None:
        return
    apart = distances(traces)
    first, second = np.unravel_index(int(apart.argmin()), apart.shape)
    if apart[first, second] < SAME:
        raise CalibrationError(
            f"the runs of {runs[int(first)].dataset} and {runs[int(second)].dataset} end in the "
            "same place: one run was given twice, keep one of the two"
        )
    clustered = clustering(traces)
    if clustered < CLUSTERED:
        nearest = sorted(
            {tuple(sorted((runs[i].dataset, runs[int(row.argmin())].dataset)))
             for i, row in enumerate(apart)},
        )[:3]  # fmt: skip
        pairs = "; ".join(" and ".join(pair) for pair in nearest)
        raise CalibrationError(
            f"these runs come in groups that end alike, as seeds of one dataset do ({pairs}, …): "
            "seeds are not independent runs, keep one of each dataset; if they really are "
            "different data, name each run's dataset with --datasets FILE"
        )


def _traces(runs: Sequence[KeptRun]) -> Float64 | None:
    """(n, D) where the runs ended, each number in its standard deviation; None without enough."""
    if len(runs) < 2 or len({len(r.trace) for r in runs}) != 1:
        return None
    traces = np.array([r.trace for r in runs], dtype=np.float64)
    spread = traces.std(axis=0)
    traces = traces[:, spread > 0] / spread[spread > 0]
    return traces if traces.shape[1] >= LEAST_TRACE else None


def distances(traces: Float64) -> Float64:
    """(n, n) root mean square differences between runs; infinite from a run to itself."""
    apart = np.sqrt(((traces[:, None] - traces[None]) ** 2).mean(axis=2))
    np.fill_diagonal(apart, np.inf)
    return np.asarray(apart)


def clustering(traces: Float64) -> float:
    """How much nearer runs' nearest neighbours are than in one cloud of the same shape.

    The median of the nearest over the `NEIGHBOUR`-th nearest distance, over its median in normal
    clouds with the same covariance: about 1 without clusters; 1 too where there are too few runs.
    """
    if len(traces) < LEAST_RUNS:
        return 1.0
    rng = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(np.cov(traces.T))
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    null = [_ratio(rng.normal(size=traces.shape) @ root.T) for _ in range(NULL_DRAWS)]
    return _ratio(traces) / float(np.median(null))


def _ratio(traces: Float64) -> float:
    apart = np.sort(distances(traces), axis=1)
    return float(np.median(apart[:, 0] / apart[:, NEIGHBOUR - 1]))
