"""Provisional calibrations: about ten harmless runs, a third as long as the runs they are for.

So few runs cannot set a conformal band at 5 %, and short ones say nothing of the rest of a run.
What they can tell is the *scale* of each behaviour's scores. How σ goes on over a run, how far out
of its band a harmless run comes at some time, and how much further out a gain is than a score, are
taken from a prior (`Prior`, fitted to the bundled suite's harmless runs). With n runs the band of a
behaviour is

    μ(p) + M·σ(p),   σ(p) = scale · shape(p),   M = Q(1 − a) · t_{n−1}(1 − a)/z(1 − a) · √(1 + 1/n),

a = α/R its share of α, Q the quantile of the prior's run maxima, t/z·√(1 + 1/n) what a prediction
pays for a mean and a scale from n runs (Student) instead of known ones (normal). Nor is M below the
maximum of any of the n runs, held against the others.

This is no guarantee: it holds as far as harmless runs of this base are like the prior's, but for
their scale. How far off it was where that could be measured: `benchmarks/provisional.py`.
Dimension names: n runs, T readings, R behaviours, G points of the progress grid.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from wvmonitor.detection import conformal
from wvmonitor.detection.band import Calibration, DecidingScore, GainBand
from wvmonitor.detection.benign import BenignRun, Deciding, KeptRun, order
from wvmonitor.detection.calibration import (
    GRID,
    WARN_FACTOR,
    bands,
    by_behaviour,
    collected,
    support_of,
)
from wvmonitor.detection.conformal import Centre, Trajectory
from wvmonitor.detection.repeats import require_different_data
from wvmonitor.detection.support import Support
from wvmonitor.errors import CalibrationError
from wvmonitor.reading import Float64, Geometry

LEAST_RUNS = 8
"""Fewer harmless runs than these say too little of any scale."""

LEAST_ALPHA = 0.02
"""Smaller shares of false alarms lie beyond what a prior of some hundred runs knows."""

REACH = 3.0
"""A run may be so many times as long as the harmless ones."""

LEAST_HORIZON = 0.3
"""Share of a run that harmless runs must have been read for, at least. Cut off at a fifth, they
gave 11 % false alarms on the organism suite where 5 % was aimed at; at a third, 3.5 %."""

PRIOR = Path(__file__).with_name("provisional_prior.json")


@dataclass(frozen=True)
class Prior:
    """What is taken from elsewhere.

    Attributes:
        grid: (G,) progress.
        score, gain: (G,) shape of σ over progress, of the score and of what it gains of late.
        gain_unit: how many σ of a gain are as far out as one σ of a score.
        levels: shares of harmless runs, ascending.
        maxima: how far out, in σ, so many of them come at some time, for one behaviour.
    """

    grid: Float64
    score: Float64
    gain: Float64
    gain_unit: float
    levels: Float64
    maxima: Float64

    def farther_than(self, share: float) -> float:
        """How many σ out only this share of harmless runs ever come, for one behaviour."""
        return float(np.interp(np.log(share), np.log(self.levels), self.maxima))


@cache
def bundled_prior() -> Prior:
    """The prior that comes with the package; its file says what it was made from."""
    stored = json.loads(PRIOR.read_text("utf-8"))
    return Prior(
        grid=np.array(stored["grid"]),
        score=np.array(stored["score"]),
        gain=np.array(stored["gain"]),
        gain_unit=float(stored["gain_unit"]),
        levels=np.array(stored["levels"]),
        maxima=np.array(stored["maxima"]),
    )


def calibrate_provisionally(
    runs: Sequence[BenignRun],
    *,
    bank: str,
    alpha: float = 0.05,
    geometry: Geometry = "response",
    score: DecidingScore = "residual",
    by_their_ends: bool = True,
) -> Calibration:
    """Make a provisional calibration from about ten harmless runs, one of each dataset.

    Args:
        runs: harmless runs of the kind that is to be monitored: read for a third of their length
            at least, or a third as long from the start.
        bank: fingerprint of the bank.
        alpha: the share of harmless runs that should alarm at most: an aim, not a bound.
        geometry: of the deciding score.
        score: the deciding score.
        by_their_ends: False believes that runs that end alike have datasets of their own.

    Raises:
        CalibrationError: fewer than `LEAST_RUNS` runs, too small an α, two runs of one dataset, or
            a run that cannot be used.
    """
    like, usable = collected(runs, bank, alpha, geometry, score)
    require_different_data(usable, by_their_ends=by_their_ends)
    return provisional_from(usable, like, alpha)


def provisional_from(
    runs: Sequence[KeptRun], like: Deciding, alpha: float, prior: Prior | None = None
) -> Calibration:
    """`calibrate_provisionally` of what is kept of the runs.

    Raises:
        CalibrationError: too few runs, too short a one, or too small an α.
    """
    if len(runs) < LEAST_RUNS:
        raise CalibrationError(
            f"a provisional calibration needs {LEAST_RUNS} harmless runs of different datasets at "
            f"least, got {len(runs)}: add runs"
        )
    if alpha < LEAST_ALPHA:
        needed = conformal.runs_needed(alpha, len(like.behaviours))
        raise CalibrationError(
            f"a false-alarm rate of {alpha:.3g} over {len(like.behaviours)} behaviours needs "
            f"{needed} benign runs of different datasets, got {len(runs)}; a provisional "
            f"calibration goes down to {LEAST_ALPHA}: add runs, or choose a larger alpha"
        )
    prior = prior or bundled_prior()
    runs = sorted(runs, key=lambda r: order(r.dataset))
    shortest = min(runs, key=lambda r: r.progress[-1])
    horizon = shortest.progress[-1]
    if horizon < LEAST_HORIZON:
        raise CalibrationError(
            f"the run of {shortest.dataset} was read for {horizon:.0%} of its steps only: let it "
            f"go on to {1 / REACH:.0%}, or leave it out"
        )
    behaviours = like.behaviours
    paths = [r.path(behaviours) for r in runs]
    gained = [r.gained(behaviours) for r in runs]
    centre, gain = fitted(paths, gained, prior, horizon)
    maxima = np.sort(left_out(paths, gained, prior, horizon), axis=0)
    share = alpha / len(behaviours)
    aimed, warned = (multiplier(len(runs), a, prior) for a in (share, WARN_FACTOR * share))
    limits = {b: max(aimed, column[-1]) for b, column in by_behaviour(maxima, behaviours).items()}
    return Calibration(
        bank=like.bank,
        status="provisional",
        geometry=like.geometry,
        score=like.score,
        components=like.components,
        ridge=like.ridge,
        alpha=alpha,
        grid=tuple(GRID.tolist()),
        bands=bands(centre, behaviours),
        multiplier=limits,
        warn_alpha=WARN_FACTOR * alpha,
        warn_multiplier=dict.fromkeys(behaviours, warned),
        maxima=by_behaviour(maxima, behaviours),
        rate_bound=None,
        folds=len(runs),
        datasets=tuple(sorted(r.dataset for r in runs)),
        support=_support(runs, horizon),
        gain=GainBand(span=conformal.GAIN_SPAN, bands=bands(gain, behaviours)),
        runs=tuple(runs),
    )


def _support(runs: Sequence[KeptRun], horizon: float) -> Support:
    """That of the runs, in steps that were read, and up to `REACH` times as long."""
    support = support_of(runs, horizon)
    steps = [r.length for r in runs if r.context.planned_steps is not None]
    read = (round(min(steps)), round(max(steps))) if steps else None
    return support.model_copy(update={"planned_steps": read, "reach": REACH})


# --- arithmetic --------------------------------------------------------------------------------


def fitted(
    runs: Sequence[Trajectory], gained: Sequence[Trajectory], prior: Prior, horizon: float
) -> tuple[Centre, Centre]:
    """Centre and spread of score and gain: scale from the runs up to `horizon`, shape the prior's.

    Beyond the horizon μ stays where it was.
    """
    score = _scaled(runs, prior, prior.score, horizon)
    gain = _scaled(gained, prior, prior.gain * prior.gain_unit, horizon, unit=prior.gain_unit)
    return score, gain


def _scaled(
    runs: Sequence[Trajectory], prior: Prior, shape: Float64, horizon: float, unit: float = 1.0
) -> Centre:
    grid = prior.grid
    seen = grid <= horizon + 1e-9
    on_grid = np.stack([conformal.interpolate(grid[seen], r.progress, r.values) for r in runs])
    mu = on_grid.mean(axis=0)
    apart = (on_grid - mu) / (shape[seen, None] / unit)
    scale = np.sqrt((apart**2).mean(axis=1).sum(axis=0) / (len(runs) - 1))
    later = np.repeat(mu[-1:], len(grid) - len(mu), axis=0)
    sigma = np.maximum(scale * shape[:, None], conformal.SIGMA_FLOOR)
    return Centre(grid, np.concatenate([mu, later]), sigma)


def left_out(
    runs: Sequence[Trajectory], gained: Sequence[Trajectory], prior: Prior, horizon: float
) -> Float64:
    """(n, R) the largest exceedance of each run, held against the fit of all others."""
    maxima = []
    for i, (run, own) in enumerate(zip(runs, gained, strict=True)):
        rest = [[x for j, x in enumerate(xs) if j != i] for xs in (runs, gained)]
        maxima.append(conformal.farthest(run, own, *fitted(rest[0], rest[1], prior, horizon)))
    return np.stack(maxima)


def multiplier(n: int, share: float, prior: Prior) -> float:
    """M of one behaviour at its share of α, from n runs."""
    from scipy.stats import norm, t  # heavy, and only calibrating needs it

    student = float(t.isf(share, n - 1) / norm.isf(share) * np.sqrt(1 + 1 / n))
    return prior.farther_than(share) * student
