"""Open-ended runs: a run-level bound on false alarms without a planned length, on arrays only.

What a run of unknown length still has is its windows: non-overlapping stretches of h readings, each
with the score of what changed in it, τ_t − τ_{t−h}. They are judged in *blocks* of as many windows
as every benign run has, and α is spent over K blocks (e-detectors: Shin, Ramdas & Rinaldo,
arXiv 2203.03532; conformal e-values), and each block's share over the R behaviours. For one
behaviour let M_1 … M_n be the largest standardised window of the first block of n benign runs, and
M the same of one block of the run that is judged. If that run is exchangeable with them, and its
later blocks are like its first one, then

    E = KR/α · 1[M > M_(k)],   k = ⌈(n+1)(1 − α/(KR))⌉,

has mean at most 1 (split-conformal), whatever the correlation of windows within a run, its run
effect included. The mean of the E-values of K blocks and R behaviours is then one too, however
they depend on each other; it only grows while the run goes on, and it passes 1/α as soon as one
block of one behaviour passes its M_(k). So the chance that a benign run ever alarms is at most α
(Markov).

n runs can set no level below 1/(n + 1): K = ⌊α(n + 1)/R⌋ blocks, 3 for 60 runs and one behaviour
at 5 %, and after them the run can't be judged any more. Every run serves both ends, as in
`conformal.cross_fitted`, and with the same proviso.
Dimension names: W windows of a run, R behaviours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wvmonitor.detection import conformal
from wvmonitor.reading import Float64


@dataclass(frozen=True)
class WindowCentre:
    """(R,) mean μ and standard deviation σ of benign windows, σ with its floor applied."""

    mu: Float64
    sigma: Float64


def centre(runs: Sequence[Float64]) -> WindowCentre:
    """Mean and deviation over all windows of all runs; `runs` are (W, R) each."""
    pooled = np.concatenate(runs)
    sigma = pooled.std(axis=0, ddof=1)
    floor = max(conformal.SIGMA_SHARE * float(np.median(sigma)), conformal.SIGMA_FLOOR)
    return WindowCentre(pooled.mean(axis=0), np.maximum(sigma, floor))


def block_maxima(windows: Float64, fitted: WindowCentre) -> Float64:
    """(R,) M: for each behaviour the largest (s − μ)/σ over one block's windows."""
    return np.asarray(((windows - fitted.mu) / fitted.sigma).max(axis=0))


def cross_fitted(runs: Sequence[Float64]) -> Float64:
    """(n, R) M_i of every run's block, held against the centre of the runs outside its own fold."""
    maxima = np.empty((len(runs), runs[0].shape[1]))
    for fold, rest in conformal.fold_indices(len(runs)):
        fitted = centre([runs[i] for i in rest])
        for i in fold:
            maxima[i] = block_maxima(runs[i], fitted)
    return maxima


def blocks(n: int, alpha: float, behaviours: int = 1) -> int:
    """K: how many blocks α can be spent on when n runs set the thresholds."""
    return math.floor(alpha * (n + 1) / behaviours + conformal.ROUNDING)


def multiplier(maxima: Float64, alpha: float, parts: int) -> float:
    """M_(k) at level α/parts: a block with a larger maximum raises the alarm.

    Args:
        maxima: M_i of the n runs, for one behaviour.
        alpha: of the whole run.
        parts: into how many it is cut, K·R.

    Raises:
        CalibrationError: n is too small for α/parts.
    """
    return conformal.order_statistic(maxima, alpha / parts)
