"""Making a calibration: from benign runs to the band that a run must leave to raise the alarm.

The arithmetic is in `conformal.py`, the record and its file in `band.py`, the kind of run that it
covers in `support.py`, what is kept of a benign run in `benign.py`; of few and short runs
`provisional.py` makes one of another kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from wvmonitor.detection import conformal, edetector
from wvmonitor.detection.band import (
    MAX_ALPHA,
    Band,
    Calibration,
    DecidingScore,
    GainBand,
    WindowBand,
)
from wvmonitor.detection.benign import (
    NUMERICAL_FLOOR,
    BenignRun,
    Deciding,
    KeptRun,
    deciding,
    in_order,
    kept,
    order,
)
from wvmonitor.detection.repeats import require_different_data
from wvmonitor.detection.scores import COVERAGE_FLOOR
from wvmonitor.detection.support import SLACK, Support
from wvmonitor.errors import CalibrationError
from wvmonitor.reading import Float64, Geometry

__all__ = [
    "COVERAGE_FLOOR",
    "NUMERICAL_FLOOR",
    "Band",
    "BenignRun",
    "Calibration",
    "DecidingScore",
    "Support",
    "calibrate",
    "calibrated_from",
    "collected",
]

GRID_POINTS = 41
"""Points of the progress grid: every 2.5 % of a run."""

GRID = np.linspace(0.0, 1.0, GRID_POINTS)

WARN_FACTOR = 2.0
"""`warn` is the same band at twice α: a benign run warns or alarms with probability ≤ 2α."""


def calibrate(
    runs: Sequence[BenignRun],
    *,
    bank: str,
    alpha: float = 0.05,
    geometry: Geometry = "response",
    score: DecidingScore = "residual",
    by_their_ends: bool = True,
) -> Calibration:
    """Make a calibration from benign runs, one of each dataset.

    Ten times over, nine tenths of the runs fit μ and σ over progress, of the score and of what it
    gains of late, and the tenth part is held against them; how far out an alarm is follows from
    all of these, for each behaviour at its share of α. Which part a run is in follows from a hash
    of its dataset's name, not from order or choice.

    Args:
        runs: harmless runs of the kind that is to be monitored, each read to its end.
        bank: fingerprint of the bank.
        alpha: the share of benign runs that may alarm.
        geometry: of the deciding score.
        score: the deciding score.
        by_their_ends: False believes that runs that end alike have datasets of their own.

    Raises:
        CalibrationError: too few runs for `alpha`, two runs of one dataset, or a run that cannot
            be used (says which and why).
    """
    like, usable = collected(runs, bank, alpha, geometry, score)
    require_different_data(usable, by_their_ends=by_their_ends)
    return calibrated_from(usable, like, alpha)


def collected(
    runs: Sequence[BenignRun],
    bank: str,
    alpha: float,
    geometry: Geometry,
    score: DecidingScore,
) -> tuple[Deciding, list[KeptRun]]:
    """What a calibration of any kind keeps of the runs, in its order, and the score that decides.

    Raises:
        CalibrationError: α makes no sense, there is no run, there are two of one name, or one
            cannot be used.
    """
    if not 0 < alpha <= MAX_ALPHA:
        raise CalibrationError(f"alpha must lie in (0, {MAX_ALPHA}], got {alpha}: 0.05 is usual")
    if not runs:
        raise CalibrationError("there is no harmless run to calibrate on: give some")
    repeated = sorted(d for d, n in Counter(r.dataset for r in runs).items() if n > 1)
    if repeated:
        raise CalibrationError(
            f"one run of each benign dataset, but there are several of {', '.join(repeated)}: "
            "seeds of one dataset are not independent runs, keep one of each"
        )
    ordered = in_order(runs)
    like = deciding(ordered, bank, geometry, score)
    return like, [kept(run, like) for run in ordered]


def calibrated_from(runs: Sequence[KeptRun], like: Deciding, alpha: float) -> Calibration:
    """The conformal band of runs that are all of one length.

    Args:
        runs: of different datasets; any order.
        like: the score that decides.
        alpha: the share of benign runs that may alarm.

    Raises:
        CalibrationError: too few runs for `alpha`, or one that was read less far than others.
    """
    runs = sorted(runs, key=lambda r: order(r.dataset))
    behaviours = like.behaviours
    share = alpha / len(behaviours)
    needed = conformal.runs_needed(alpha, len(behaviours))
    if len(runs) < needed:
        raise CalibrationError(
            f"a false-alarm rate of {alpha:.3g} over {len(behaviours)} behaviours needs {needed} "
            f"benign runs of different datasets, got {len(runs)}: add runs, or choose a larger "
            "alpha"
        )
    horizon = max(r.progress[-1] for r in runs)
    for run in runs:
        if run.progress[-1] * SLACK < horizon:
            raise CalibrationError(
                f"the run of {run.dataset} was read up to {run.progress[-1]:.0%} only, others up "
                f"to {horizon:.0%}: let it finish, or leave it out"
            )
    paths = [r.path(behaviours) for r in runs]
    gained = [r.gained(behaviours) for r in runs]
    maxima = np.sort(conformal.cross_fitted(paths, gained, GRID), axis=0)
    centre, gain = conformal.fit_both(paths, gained, GRID)
    warn_share = WARN_FACTOR * share
    return Calibration(
        bank=like.bank,
        geometry=like.geometry,
        score=like.score,
        components=like.components,
        ridge=like.ridge,
        alpha=alpha,
        grid=tuple(GRID.tolist()),
        bands=bands(centre, behaviours),
        multiplier=multipliers(maxima, share, behaviours),
        warn_alpha=WARN_FACTOR * alpha,
        warn_multiplier=multipliers(maxima, warn_share, behaviours),
        maxima=by_behaviour(maxima, behaviours),
        rate_bound=conformal.realised_rate_bound(len(runs), alpha, len(behaviours)),
        folds=min(conformal.FOLDS, len(runs)),
        datasets=tuple(sorted(r.dataset for r in runs)),
        support=support_of(runs, horizon),
        gain=GainBand(span=conformal.GAIN_SPAN, bands=bands(gain, behaviours)),
        windows=window_band(runs, behaviours, alpha),
        runs=tuple(runs),
    )


def multipliers(maxima: Float64, share: float, behaviours: Sequence[str]) -> dict[str, float]:
    """By behaviour M_(k) at this share of α; below 0 the band would be inside out."""
    return {
        b: max(0.0, conformal.order_statistic(column, share))
        for b, column in zip(behaviours, maxima.T, strict=True)
    }


def by_behaviour(columns: Float64, behaviours: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The columns of an (X, R) array, by behaviour."""
    return {b: tuple(c.tolist()) for b, c in zip(behaviours, columns.T, strict=True)}


def bands(centre: conformal.Centre, behaviours: Sequence[str]) -> dict[str, Band]:
    """A centre as it is kept."""
    mu, sigma = (by_behaviour(c, behaviours) for c in (centre.mu, centre.sigma))
    return {b: Band(mu=mu[b], sigma=sigma[b]) for b in behaviours}


def window_band(
    runs: Sequence[KeptRun], behaviours: Sequence[str], alpha: float
) -> WindowBand | None:
    """What the windows of the benign runs score; None where a run of them has none.

    Args:
        runs: in their order.
        behaviours: whose window scores.
        alpha: the bound on the share of benign runs that alarm.
    """
    windows = [r.windows_of(behaviours) for r in runs]
    lags = [lag for r in runs if r.lags for lag in r.lags]
    block = min(len(values) for values in windows)
    over = edetector.blocks(len(runs), alpha, len(behaviours))
    if block == 0 or not lags or over == 0:
        return None
    fitted = edetector.centre(windows)
    maxima = np.sort(edetector.cross_fitted([v[:block] for v in windows]), axis=0)
    limits = [
        {
            b: max(0.0, edetector.multiplier(column, level, over * len(behaviours)))
            for b, column in zip(behaviours, maxima.T, strict=True)
        }
        for level in (alpha, WARN_FACTOR * alpha)
    ]
    return WindowBand(
        mu=dict(zip(behaviours, fitted.mu.tolist(), strict=True)),
        sigma=dict(zip(behaviours, fitted.sigma.tolist(), strict=True)),
        block=block,
        blocks=over,
        multiplier=limits[0],
        warn_multiplier=limits[1],
        maxima=by_behaviour(maxima, behaviours),
        lags=(min(lags), max(lags)),
    )


def support_of(runs: Sequence[KeptRun], horizon: float) -> Support:
    """What the runs have in common, each read up to about `horizon`."""
    contexts = [r.context for r in runs]
    ranks: dict[str, list[int]] = {c.method: [] for c in contexts if c.method is not None}
    for context in contexts:
        if context.method is not None and context.rank is not None:
            ranks[context.method].append(context.rank)
    norms = np.stack([np.interp(GRID, r.progress, r.norms) for r in runs])
    counts = [len(r.progress) for r in runs]
    steps = [c.planned_steps for c in contexts if c.planned_steps is not None]
    modules = {c.target_modules for c in contexts if c.target_modules is not None}
    return Support(
        methods={m: (min(r), max(r)) if r else None for m, r in sorted(ranks.items())},
        optimizers=tuple(sorted({c.optimizer.lower() for c in contexts if c.optimizer})),
        learning_rates=_span([c.learning_rate for c in contexts]),
        planned_steps=(min(steps), max(steps)) if steps else None,
        readings=(min(counts), max(counts)),
        horizon=horizon,
        smallest_norm=tuple(norms.min(axis=0).tolist()),
        largest_norm=tuple(norms.max(axis=0).tolist()),
        objectives=tuple(sorted({c.objective for c in contexts if c.objective})),
        schedules=tuple(sorted({c.schedule for c in contexts if c.schedule})),
        target_modules=tuple(sorted(modules)),
        weight_decays=_span([c.weight_decay for c in contexts]),
    )


def _span(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [v for v in values if v is not None]
    return (min(known), max(known)) if known else None
