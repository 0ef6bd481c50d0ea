"""The conformal trajectory band: arithmetic on arrays, no records.

Design, section 5. A centre μ and a spread σ over run progress are fitted to benign runs, of the
deciding score and of what it gains of late. Run i then yields one number for each behaviour,
M_i = max over its readings and both statistics of (s_i − μ)/σ, and a new run alarms where its own
maximum exceeds M_(k), k = ⌈(n+1)(1−α/R)⌉, with R behaviours. If its maxima are exchangeable with
those of the n runs that happens with probability at most α/R for each behaviour, and so at most α
for any of them: whatever the correlation between readings, behaviours or statistics.

Every run serves both ends: in turn a tenth of them is left out of the fit and held against it
(`cross_fitted`). The order statistic is exact; that a new run, which is held against the fit of
*all* runs, is exchangeable with runs that are held against nine tenths of them is approximate.
Dimension names: T readings of a run, R behaviours, G points of the progress grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wvmonitor.errors import CalibrationError
from wvmonitor.reading import Float64

FOLDS = 10
"""How many parts the benign runs are cut into for cross-fitting."""

SIGMA_SHARE = 0.25
"""Least σ as a share of a behaviour's median σ: where benign runs happen to agree, the band stays
this wide."""

SIGMA_FLOOR = 1e-4
"""Least σ in units of the score: far above rounding, far below what any score means."""

ROUNDING = 1e-9
"""Slack for k: (19+1)·(1−0.05) must count as 19, not as 20."""


GAIN_SPAN = 0.1
"""How far back "of late" goes, as a fraction of the run."""

GAIN_CAUTION = 1.5
"""A gain must be so much further out than a score to alarm. Poison that comes late is, and the
score's own band stays as wide as it is without gains. Both constants were chosen on development
runs of the organism suite (5 to 20 %, 1 to 2)."""

BALANCED_AT = 0.9
"""The quantile of the fitting runs' maxima at which score and gain count as equally far out."""


@dataclass(frozen=True)
class Trajectory:
    """One run: (T,) progress in increasing order, (T, R) deciding scores."""

    progress: Float64
    values: Float64


@dataclass(frozen=True)
class Centre:
    """(G,) grid, (G, R) mean μ and standard deviation σ of benign runs, σ with its floor."""

    grid: Float64
    mu: Float64
    sigma: Float64


def fit(runs: Sequence[Trajectory], grid: Float64) -> Centre:
    """Mean and standard deviation over runs at each point of the grid.

    Between readings a run is interpolated linearly; before its first and after its last it keeps
    that value.
    """
    on_grid = np.stack([interpolate(grid, r.progress, r.values) for r in runs])
    sigma = on_grid.std(axis=0, ddof=1)
    return Centre(grid, on_grid.mean(axis=0), floored(sigma))


def floored(sigma: Float64) -> Float64:
    """(G, R) σ, nowhere below its floor: a share of each behaviour's median, and `SIGMA_FLOOR`."""
    return np.maximum(sigma, np.maximum(SIGMA_SHARE * np.median(sigma, axis=0), SIGMA_FLOOR))


def exceedance(run: Trajectory, centre: Centre) -> Float64:
    """(T, R) standardised scores (s − μ)/σ."""
    mu = interpolate(run.progress, centre.grid, centre.mu)
    sigma = interpolate(run.progress, centre.grid, centre.sigma)
    return np.asarray((run.values - mu) / sigma)


def gains(run: Trajectory, norms: Float64, span: float = GAIN_SPAN) -> Trajectory:
    """What the run's change has gained along each reference of late, as a share of ‖τ‖.

    s·‖τ‖ is how far the weights have moved along the reference. It is linear in τ (nearly: the ‖τ‖
    of all parameters stands for that of the score's geometry), so its growth over the last `span`
    of the run, (s_t‖τ_t‖ − s_u‖τ_u‖)/‖τ_t‖, does not wait for what came before to be outweighed, as
    a cosine does. A run starts at 0.

    Args:
        run: its deciding scores.
        norms: (T,) ‖τ‖ > 0 at the same readings.
        span: how far back to look, as a fraction of the run.
    """
    along = run.values * norms[:, None]
    x, y = run.progress, along
    if x[0] > 0:
        x, y = np.concatenate([[0.0], x]), np.concatenate([np.zeros((1, y.shape[1])), y])
    before = interpolate(np.maximum(run.progress - span, 0.0), x, y)
    return Trajectory(run.progress, (along - before) / norms[:, None])


def fit_both(
    runs: Sequence[Trajectory], gained: Sequence[Trajectory], grid: Float64
) -> tuple[Centre, Centre]:
    """`fit` of the runs' scores and of their gains, σ of the latter in a unit of its own.

    A gain counts as far out as a score where as few of these runs reach so far, times
    `GAIN_CAUTION`: the maximum over both would else be ruled by whichever has the longer tail.
    """
    score, gain = fit(runs, grid), fit(gained, grid)
    unit = gain_unit(
        np.stack([exceedance(r, score).max(axis=0) for r in runs]),
        np.stack([exceedance(r, gain).max(axis=0) for r in gained]),
    )
    return score, replace(gain, sigma=unit * gain.sigma)


def gain_unit(scores: Float64, gained: Float64) -> Float64:
    """(R,) how many σ of a gain are as far out as one σ of a score, `GAIN_CAUTION` included.

    Args:
        scores: (n, R) the runs' largest exceedances of their scores.
        gained: (n, R) those of their gains.
    """
    as_far, far = (np.quantile(m, BALANCED_AT, axis=0) for m in (scores, gained))
    balanced = (far > 0) & (as_far > 0)
    return GAIN_CAUTION * np.where(balanced, far / np.where(balanced, as_far, 1.0), 1.0)


def farthest(run: Trajectory, gained: Trajectory, score: Centre, gain: Centre) -> Float64:
    """(R,) M_i of a run: for each behaviour its largest exceedance, of a score or of a gain.

    A gain counts only where the score itself is above μ: a run that comes back from far below the
    harmless ones gains much, and has gone nowhere.
    """
    out = exceedance(run, score)
    counted = np.where(out > 0, exceedance(gained, gain), -np.inf)
    return np.asarray(np.maximum(out, counted).max(axis=0))


def cross_fitted(
    runs: Sequence[Trajectory], gained: Sequence[Trajectory], grid: Float64, folds: int = FOLDS
) -> Float64:
    """(n, R) M_i of every run, held against the fit of the runs outside its own fold.

    Args:
        runs: the runs' scores; run i is in fold i mod `folds`.
        gained: their gains.
        grid: of the fit.
        folds: at least 2; no more than there are runs.
    """
    maxima = np.empty((len(runs), runs[0].values.shape[1]))
    for fold, rest in fold_indices(len(runs), folds):
        centres = fit_both([runs[i] for i in rest], [gained[i] for i in rest], grid)
        for i in fold:
            maxima[i] = farthest(runs[i], gained[i], *centres)
    return maxima


def fold_indices(n: int, folds: int = FOLDS) -> list[tuple[list[int], list[int]]]:
    """For each fold, which of n runs are in it and which are not."""
    folds = min(folds, n)
    return [
        (list(range(fold, n, folds)), [i for i in range(n) if i % folds != fold])
        for fold in range(folds)
    ]


def order_statistic(maxima: Float64, alpha: float) -> float:
    """M_(k), the k-th smallest of n maxima, k = ⌈(n+1)(1−α)⌉.

    Raises:
        CalibrationError: n is too small for α.
    """
    k = rank(len(maxima), alpha)
    if k > len(maxima):
        raise CalibrationError(
            f"{len(maxima)} runs cannot set a band at a false-alarm rate of {alpha:.3g}: "
            f"{runs_needed(alpha)} are needed"
        )
    return float(np.sort(maxima)[k - 1])


def rank(n: int, alpha: float) -> int:
    """Which of n maxima, in ascending order, is the band: k = ⌈(n+1)(1−α)⌉."""
    return math.ceil((n + 1) * (1 - alpha) - ROUNDING)


def runs_needed(alpha: float, behaviours: int = 1) -> int:
    """Benign runs that a band at α needs, α shared by so many behaviours.

    19 for one behaviour at 5 %, 39 for two, 59 for three; 99, 199 and 299 at 1 %.
    """
    return math.ceil(behaviours / alpha - ROUNDING) - 1


def realised_rate_bound(
    n: int, alpha: float, behaviours: int = 1, confidence: float = 0.95
) -> float:
    """Upper bound on the false-alarm rate that this one calibration really has.

    α is the average over calibrations. Given the n runs at hand the rate of one behaviour is at
    most Beta(n+1−k, k)-distributed: with n = k = 19 it is below 14.6 % with 95 % confidence, with
    n = k = 99 below 3.0 %. Of several behaviours the bounds at α/R are added, each with its share
    of the confidence.
    """
    from scipy.special import betaincinv  # heavy, and only calibrating needs it

    k = rank(n, alpha / behaviours)
    one = float(betaincinv(n + 1 - k, k, 1 - (1 - confidence) / behaviours))
    return min(behaviours * one, 1.0)


def interpolate(at: Float64, x: Float64, y: Float64) -> Float64:
    """Linear interpolation of each column of y (X, R) over x (X,), constant beyond its ends."""
    return np.stack([np.interp(at, x, column) for column in y.T], axis=-1)
