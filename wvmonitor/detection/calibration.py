"""Making a calibration: from benign runs to the band that a run must leave to raise the alarm.

The arithmetic is in `conformal.py`, the record and its file in `band.py`, the kind of run that it
speaks of in `support.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

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
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.scores import Scores
from wvmonitor.detection.support import SLACK, Support
from wvmonitor.errors import CalibrationError
from wvmonitor.reading import Component, Float64, Geometry

__all__ = [
    "Band",
    "BenignRun",
    "Calibration",
    "DecidingScore",
    "Support",
    "calibrate",
]

GRID_POINTS = 41
"""Points of the progress grid: every 2.5 % of a run."""

WARN_FACTOR = 2.0
"""`warn` is the same band at twice α: a benign run warns or alarms with probability ≤ 2α."""

NUMERICAL_FLOOR = 1e-8
"""‖τ‖ at or below which nothing has changed but rounding."""

COVERAGE_FLOOR = 0.5
"""Least share of ‖τ‖² that must lie where the deciding score looks."""


@dataclass(frozen=True)
class BenignRun:
    """One harmless run: all its readings' scores.

    Attributes:
        dataset: what it was trained on. Seeds of one dataset are not independent runs, so a
            calibration takes one run of each.
    """

    dataset: str
    scores: Sequence[Scores]
    context: RunContext


def calibrate(
    runs: Sequence[BenignRun],
    *,
    bank: str,
    alpha: float = 0.05,
    geometry: Geometry = "response",
    score: DecidingScore = "residual",
) -> Calibration:
    """Make a calibration from benign runs, one of each dataset.

    Half of the runs fit μ and σ over progress, of the score and of what it gains of late, and the
    other half (never the larger) sets the band: how far out in either of them an alarm is. Which
    half a run is in follows from a hash of its dataset's name, not from order or choice.

    Args:
        runs: harmless runs of the kind that is to be monitored, each read to its end.
        bank: fingerprint of the bank.
        alpha: the share of benign runs that may alarm.
        geometry: of the deciding score.
        score: the deciding score.

    Raises:
        CalibrationError: too few runs for `alpha`, two runs of one dataset, or a run that cannot
            be used (says which and why).
    """
    if not 0 < alpha <= MAX_ALPHA:
        raise CalibrationError(f"alpha must lie in (0, {MAX_ALPHA}], got {alpha}: 0.05 is usual")
    repeated = sorted(d for d, n in Counter(r.dataset for r in runs).items() if n > 1)
    if repeated:
        raise CalibrationError(
            f"one run of each benign dataset, but there are several of {', '.join(repeated)}: "
            "seeds of one dataset are not independent runs, keep one of each"
        )
    if len(runs) < conformal.runs_needed(alpha):
        raise CalibrationError(
            f"a false-alarm rate of {alpha:.3g} needs {conformal.runs_needed(alpha)} benign runs "
            f"of different datasets (half to fit, half for the band), got {len(runs)}: add runs, "
            "or choose a larger alpha"
        )
    ordered = sorted(runs, key=lambda r: (hashlib.sha256(r.dataset.encode()).digest(), r.dataset))
    first = next((s for s in ordered[0].scores), None)
    behaviours = _behaviours(first) if first else ()
    if first is None or not behaviours:
        raise CalibrationError(
            f"the run of {ordered[0].dataset} holds no scores of any behaviour: read it again"
        )
    ridge = first.ridge.get(geometry) if score == "residual" else None
    like = _Like(bank, geometry, score, first.components, ridge, behaviours)
    paths, norms = zip(*(_trajectory(run, like) for run in ordered), strict=True)
    horizon = max(float(p.progress[-1]) for p in paths)
    for run, path in zip(ordered, paths, strict=True):
        if path.progress[-1] * SLACK < horizon:
            raise CalibrationError(
                f"the run of {run.dataset} was read up to {path.progress[-1]:.0%} only, others up "
                f"to {horizon:.0%}: let it finish, or leave it out"
            )
    grid = np.linspace(0.0, 1.0, GRID_POINTS)
    half = len(ordered) - len(ordered) // 2
    gained = [conformal.gains(p, n) for p, n in zip(paths, norms, strict=True)]
    centre, gain = conformal.fit_both(paths[:half], gained[:half], grid)
    pairs = zip(paths[half:], gained[half:], strict=True)
    maxima = np.sort([conformal.farthest(p, g, centre, gain) for p, g in pairs])
    warn_alpha = WARN_FACTOR * alpha
    norms_on_grid = np.stack(
        [np.interp(grid, p.progress, n) for p, n in zip(paths, norms, strict=True)]
    )
    return Calibration(
        bank=bank,
        geometry=geometry,
        score=score,
        components=first.components,
        ridge=ridge,
        alpha=alpha,
        grid=tuple(grid.tolist()),
        bands=_bands(centre, behaviours),
        sigma_min=centre.sigma_min,
        # Below 0 (all benign runs below their own mean) the band would be inside out.
        multiplier=max(0.0, conformal.order_statistic(maxima, alpha)),
        warn_alpha=warn_alpha,
        warn_multiplier=max(0.0, conformal.order_statistic(maxima, warn_alpha)),
        maxima=tuple(maxima.tolist()),
        rate_bound=conformal.realised_rate_bound(len(maxima), alpha),
        fit_datasets=tuple(r.dataset for r in ordered[:half]),
        band_datasets=tuple(r.dataset for r in ordered[half:]),
        support=_support(ordered, paths, norms_on_grid, horizon),
        gain=GainBand(
            span=conformal.GAIN_SPAN,
            bands=_bands(gain, behaviours),
            sigma_min=gain.sigma_min,
        ),
        windows=window_band(ordered, half, behaviours, geometry, alpha, warn_alpha),
    )


def _bands(centre: conformal.Centre, behaviours: tuple[str, ...]) -> dict[str, Band]:
    return {
        b: Band(mu=tuple(centre.mu[:, i].tolist()), sigma=tuple(centre.sigma[:, i].tolist()))
        for i, b in enumerate(behaviours)
    }


def window_band(
    ordered: Sequence[BenignRun],
    half: int,
    behaviours: tuple[str, ...],
    geometry: Geometry,
    alpha: float,
    warn_alpha: float,
) -> WindowBand | None:
    """What the windows of the benign runs score; None where a run of them has none.

    Args:
        ordered: the runs, those that fit the centre first.
        half: how many those are.
        behaviours: whose window scores.
        geometry: of the window scores.
        alpha: the bound on the share of benign runs that alarm.
        warn_alpha: the same for warnings.
    """
    found = [_windows(run, behaviours, geometry) for run in ordered]
    lags = [s.lag for run in ordered for s in run.scores if s.lag is not None]
    block = min(len(values) for values in found)
    if block == 0 or not lags:
        return None
    fitted = edetector.centre(found[:half])
    maxima = np.sort([edetector.block_maximum(v[:block], fitted) for v in found[half:]])
    over = edetector.blocks(len(maxima), alpha)
    return WindowBand(
        mu=dict(zip(behaviours, fitted.mu.tolist(), strict=True)),
        sigma=dict(zip(behaviours, fitted.sigma.tolist(), strict=True)),
        block=block,
        blocks=over,
        multiplier=max(0.0, edetector.multiplier(maxima, alpha, over)),
        warn_multiplier=max(0.0, edetector.multiplier(maxima, warn_alpha, over)),
        maxima=tuple(maxima.tolist()),
        lags=(min(lags), max(lags)),
    )


def _windows(run: BenignRun, behaviours: tuple[str, ...], geometry: Geometry) -> Float64:
    """(W, R) window scores of a run, in order; readings at which no window ended are left out."""
    rows = []
    for scores in run.scores:
        values = [scores.references[b].values.get(geometry, {}).get("window") for b in behaviours]
        if all(v is not None and math.isfinite(v) for v in values):
            rows.append(values)
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(behaviours))


@dataclass(frozen=True)
class _Like:
    """What all the readings of a calibration must agree in."""

    bank: str
    geometry: Geometry
    score: DecidingScore
    components: tuple[Component, ...]
    ridge: float | None
    behaviours: tuple[str, ...]


def _trajectory(run: BenignRun, like: _Like) -> tuple[conformal.Trajectory, Float64]:
    """The deciding scores and (T,) norms of a run's readings, without those at τ ≈ 0."""
    rows = []
    for scores in run.scores:
        if scores.norm <= NUMERICAL_FLOOR:
            continue
        problem = _problem(scores, like)
        if problem:
            raise CalibrationError(
                f"the run of {run.dataset} cannot calibrate: at step {scores.step} {problem}; "
                "read it again, or leave it out"
            )
        values = [scores.references[b].values[like.geometry][like.score] for b in like.behaviours]
        rows.append((scores.progress, scores.norm, *values))
    if not rows:
        raise CalibrationError(
            f"the run of {run.dataset} cannot calibrate: its weights never moved; leave it out"
        )
    if run.context.method is None or run.context.base != "same":
        raise CalibrationError(
            f"the run of {run.dataset} cannot calibrate: its method must be known and its base the "
            f"references' own, got method {run.context.method}, base {run.context.base}"
        )
    table = np.array(rows, dtype=np.float64)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return conformal.Trajectory(table[:, 0], table[:, 2:]), table[:, 1]


def _problem(scores: Scores, like: _Like) -> str | None:
    """Why a benign reading cannot be used, in words."""
    if scores.bank and scores.bank != like.bank:
        return "it was measured against another bank"
    if scores.components != like.components:
        return f"its scores are over {scores.components}, the others' over {like.components}"
    if like.ridge is not None and scores.ridge.get(like.geometry) != like.ridge:
        return f"its λ is {scores.ridge.get(like.geometry)}, the others' {like.ridge}"
    if scores.progress is None or not 0 <= scores.progress <= 1:
        return f"its progress must lie in [0, 1], got {scores.progress}"
    if not math.isfinite(scores.norm):
        return "its weights are not finite"
    if _behaviours(scores) != like.behaviours:
        return f"it scores {_behaviours(scores)}, the others {like.behaviours}"
    if not scores.coverage.get(like.geometry, 0.0) >= COVERAGE_FLOOR:
        return f"less than {COVERAGE_FLOOR:.0%} of its change lies where the scores look"
    for behaviour in like.behaviours:
        value = scores.references[behaviour].values.get(like.geometry, {}).get(like.score)
        if value is None:
            return f"it has no {like.score} of {behaviour} in the {like.geometry} geometry"
        if not math.isfinite(value):
            return f"its {like.score} of {behaviour} is not finite"
    return None


def _behaviours(scores: Scores) -> tuple[str, ...]:
    return tuple(sorted(r for r, s in scores.references.items() if s.kind == "behaviour"))


def _support(
    runs: Sequence[BenignRun],
    paths: Sequence[conformal.Trajectory],
    norms: Float64,
    horizon: float,
) -> Support:
    """What the runs have in common; `norms` is (runs, grid)."""
    contexts = [r.context for r in runs]
    ranks: dict[str, list[int]] = {c.method: [] for c in contexts if c.method is not None}
    for context in contexts:
        if context.method is not None and context.rank is not None:
            ranks[context.method].append(context.rank)
    rates = [c.learning_rate for c in contexts if c.learning_rate is not None]
    steps = [c.planned_steps for c in contexts if c.planned_steps is not None]
    counts = [len(p.progress) for p in paths]
    return Support(
        methods={m: (min(r), max(r)) if r else None for m, r in sorted(ranks.items())},
        optimizers=tuple(sorted({c.optimizer.lower() for c in contexts if c.optimizer})),
        learning_rates=(min(rates), max(rates)) if rates else None,
        planned_steps=(min(steps), max(steps)) if steps else None,
        readings=(min(counts), max(counts)),
        horizon=horizon,
        smallest_norm=tuple(norms.min(axis=0).tolist()),
        largest_norm=tuple(norms.max(axis=0).tolist()),
    )
