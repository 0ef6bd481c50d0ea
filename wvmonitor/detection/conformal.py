"""The split-conformal trajectory band: arithmetic on arrays, no records.

Design, section 5. One half of the benign runs fits the centre μ and the spread σ over run progress,
of the deciding score and of what it gains of late; each run i of the other half yields one number,
M_i = max over its readings, the behaviours and both statistics of (s_i − μ)/max(σ, σ_min). If a new
benign run is exchangeable with that second half of n runs, its own maximum exceeds M_(k),
k = ⌈(n+1)(1−α)⌉, with probability at most α: whatever the correlation between readings, behaviours
or statistics.
Dimension names: T readings of a run, R behaviours, G points of the progress grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wvmonitor.errors import CalibrationError
from wvmonitor.reading import Float64

SIGMA_SHARE = 0.25
"""σ_min as a share of the median σ: where benign runs happen to agree, the band stays this wide."""

SIGMA_FLOOR = 1e-4
"""Least σ_min, in units of the score: far above rounding, far below what any score means."""

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
    """(G,) grid, (G, R) mean μ and standard deviation σ of benign runs, and the floor of σ."""

    grid: Float64
    mu: Float64
    sigma: Float64
    sigma_min: float


def fit(runs: Sequence[Trajectory], grid: Float64) -> Centre:
    """Mean and standard deviation over runs at each point of the grid.

    Between readings a run is interpolated linearly; before its first and after its last it keeps
    that value.
    """
    on_grid = np.stack([interpolate(grid, r.progress, r.values) for r in runs])
    sigma = on_grid.std(axis=0, ddof=1)
    sigma_min = max(SIGMA_SHARE * float(np.median(sigma)), SIGMA_FLOOR)
    return Centre(grid, on_grid.mean(axis=0), sigma, sigma_min)


def exceedance(run: Trajectory, centre: Centre) -> Float64:
    """(T, R) standardised scores (s − μ)/max(σ, σ_min); their maximum is the run's M_i."""
    mu = interpolate(run.progress, centre.grid, centre.mu)
    sigma = interpolate(run.progress, centre.grid, centre.sigma)
    return np.asarray((run.values - mu) / np.maximum(sigma, centre.sigma_min))


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
    as_far, far = (
        float(np.quantile([exceedance(r, centre).max() for r in series], BALANCED_AT))
        for series, centre in ((runs, score), (gained, gain))
    )
    unit = GAIN_CAUTION * (far / as_far if far > 0 and as_far > 0 else 1.0)
    return score, replace(gain, sigma=unit * gain.sigma, sigma_min=unit * gain.sigma_min)


def farthest(run: Trajectory, gained: Trajectory, score: Centre, gain: Centre) -> float:
    """M_i of a run: its largest exceedance, of a score or of a gain."""
    return float(max(exceedance(run, score).max(), exceedance(gained, gain).max()))


def order_statistic(maxima: Float64, alpha: float) -> float:
    """M_(k), the k-th smallest of n maxima, k = ⌈(n+1)(1−α)⌉.

    Raises:
        CalibrationError: n is too small for α.
    """
    k = rank(len(maxima), alpha)
    if k > len(maxima):
        raise CalibrationError(
            f"{len(maxima)} runs cannot set a band at a false-alarm rate of {alpha:.3g}: "
            f"{runs_needed(alpha)} are needed (half to fit, half for the band)"
        )
    return float(np.sort(maxima)[k - 1])


def rank(n: int, alpha: float) -> int:
    """Which of n maxima, in ascending order, is the band: k = ⌈(n+1)(1−α)⌉."""
    return math.ceil((n + 1) * (1 - alpha) - ROUNDING)


def runs_needed(alpha: float) -> int:
    """Benign runs in all (both halves) that a band at α needs: 38 at 5 %, 198 at 1 %."""
    return 2 * (math.ceil(1 / alpha - ROUNDING) - 1)


def realised_rate_bound(n: int, alpha: float, confidence: float = 0.95) -> float:
    """Upper bound on the false-alarm rate that this one calibration really has.

    α is the average over calibrations. Given the n runs at hand the rate is at most
    Beta(n+1−k, k)-distributed, so with n = k = 19 it is below 14.6 % with 95 % confidence, with
    n = k = 99 below 3.0 %.
    """
    from scipy.special import betaincinv  # heavy, and only calibrating needs it

    k = rank(n, alpha)
    return float(betaincinv(n + 1 - k, k, confidence))


def interpolate(at: Float64, x: Float64, y: Float64) -> Float64:
    """Linear interpolation of each column of y (X, R) over x (X,), constant beyond its ends."""
    return np.stack([np.interp(at, x, column) for column in y.T], axis=-1)
