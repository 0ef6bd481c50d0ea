"""The split-conformal trajectory band: arithmetic on arrays, no records.

Design, section 5. One half of the benign runs fits the centre μ and the spread σ of the deciding
score over run progress; each run i of the other half yields one number,
M_i = max over its readings and the behaviours of (s_i − μ)/max(σ, σ_min). If a new benign run is
exchangeable with that second half of n runs, its own maximum exceeds M_(k), k = ⌈(n+1)(1−α)⌉, with
probability at most α: whatever the correlation between readings or between behaviours.
Dimension names: T readings of a run, R behaviours, G points of the progress grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wvmonitor.errors import CalibrationError
from wvmonitor.reading import Float64

SIGMA_SHARE = 0.25
"""σ_min as a share of the median σ: where benign runs happen to agree, the band stays this wide."""

SIGMA_FLOOR = 1e-4
"""Least σ_min, in units of the score: far above rounding, far below what any score means."""

ROUNDING = 1e-9
"""Slack for k: (19+1)·(1−0.05) must count as 19, not as 20."""


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
