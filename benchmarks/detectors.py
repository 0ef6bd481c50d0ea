"""Other detectors of harmful fine-tuning: what they look at, shared by both benchmarks.

Each is a number of a finished run; larger is more suspicious where its source says so. The
regressions are fitted on other runs of the very table that they stand in, labels included, which
flatters them, and never on a run of the kind, or of the subjects, that they judge, which does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from statistics import fmean

import numpy as np
import torch

from wvmonitor.reading import Float64, Reading
from wvmonitor.vectors import DenseUpdate, LowRankUpdate
from wvmonitor.vectors.task_vector import TaskVector

SPECTRAL = ("stable rank", "spectral entropy", "largest share")

RIDGE = 0.1
"""λ, where the standardised features' squares sum to 1 on average."""


def rotation(now: Reading, earlier: Reading) -> float:
    """1 − cos(τ_t, τ_{t−k}), Frobenius, over every parameter."""
    here, before = now.geometries["frobenius"], earlier.geometries["frobenius"]
    assert here.lagged is not None
    size = here.squared_norms.sum() * before.squared_norms.sum()
    return float(1 - here.lagged.sum() / np.sqrt(size))


def by_module(reading: Reading) -> dict[str, float]:
    """‖τ_p‖ by parameter, Frobenius (the features of arXiv 2606.07631)."""
    squares = reading.geometries["frobenius"].squared_norms
    return {n: float(np.sqrt(v)) for n, v in zip(reading.parameters, squares, strict=True)}


def spectrum(vector: TaskVector) -> Iterator[tuple[str, list[float]]]:
    """Of each matrix's update: stable rank, entropy of its squared singular values, first's share.

    The spectral summaries of arXiv 2604.08844, but for its cosine with a centroid of healthy
    adapters; of dense updates none, as theirs are LoRA's.
    """
    for name in vector.names():
        update = vector.update(name)
        if isinstance(update, DenseUpdate) or not isinstance(update, LowRankUpdate):
            continue
        _, left = torch.linalg.qr(update.left.double())
        _, right = torch.linalg.qr(update.right.double().mT)
        squares = torch.linalg.svdvals(left @ right.mT) ** 2
        total = float(squares.sum())
        if not total:
            continue
        share = squares / total
        entropy = float(-(share * share.clamp_min(1e-300).log()).sum())
        yield name, [total / float(squares[0]), entropy, float(share[0])]


def first_tenth(losses: Sequence[float]) -> float:
    """Mean training loss at the beginning; NaN of no losses."""
    return fmean(losses[: max(1, len(losses) // 10)]) if losses else math.nan


def last_tenth(losses: Sequence[float]) -> float:
    """Mean training loss at the end; NaN of no losses."""
    return fmean(losses[-max(1, len(losses) // 10) :]) if losses else math.nan


def table(rows: Sequence[Mapping[str, float]]) -> Float64:
    """(rows, features) a column for each name that any row has; NaN where a row has none."""
    names = sorted({n for row in rows for n in row})
    return np.array([[row.get(n, math.nan) for n in names] for row in rows], dtype=np.float64)


def leave_family_out(
    features: Float64, label: Float64, fit: np.ndarray, family: Sequence[str]
) -> list[float]:
    """Ridge regression on labels, each family's runs predicted from the other families' runs.

    Args:
        features: (runs, features); a row with NaN is predicted as NaN.
        label: (runs,) 1 harmful, 0 benign.
        fit: (runs,) whether a run may be fitted on; every run is predicted.
        family: (runs,) whose runs are left out together.
    """
    return leave_out(features, label, fit, [frozenset((name,)) for name in family])


def leave_out(
    features: Float64, label: Float64, fit: np.ndarray, about: Sequence[frozenset[str]]
) -> list[float]:
    """Ridge regression on labels, each run predicted from the runs that share nothing with it.

    Both labels weigh alike in every fit, so that the predictions of different fits can be ranked
    together; but leaving a family out moves the fit away from it, and of pure noise such
    predictions give an AUROC below ½ (`leave_pair_out` does not).

    Args:
        features: (runs, features); a row with NaN is predicted as NaN.
        label: (runs,) 1 harmful, 0 benign.
        fit: (runs,) whether a run may be fitted on; every run is predicted.
        about: (runs,) what a run may not share with those that it is predicted from: the kind of
            its data, its subjects.
    """
    known = _known(features)
    found = np.full(len(label), np.nan)
    for own in sorted(set(about), key=sorted):
        asked = np.array([a == own for a in about]) & known
        used = np.array([not a & own for a in about]) & known & fit
        if asked.any() and len(set(label[used])) == 2:
            found[asked] = _ridge(features, label, used, asked)
    return [float(v) for v in found]


def leave_pair_out(
    features: Float64, label: Float64, fit: np.ndarray, family: Sequence[str]
) -> Float64:
    """(runs, runs) a run's prediction where its family and the other run's were left out.

    What is ranked together comes from one fit, which has seen neither: no pair is set apart by what
    was left out. Arguments as those of `leave_family_out`; NaN where there is no fit.
    """
    known, names = _known(features), np.array(family)
    found = np.full((len(label), len(label)), np.nan)
    for first, second in combinations_with_replacement(np.unique(names), 2):
        left_out = (names == first) | (names == second)
        used = ~left_out & known & fit
        if len(set(label[used])) < 2:
            continue
        for one, other in ((first, second), (second, first)):
            asked = (names == one) & known
            if asked.any():
                said = _ridge(features, label, used, asked)
                found[np.ix_(asked, names == other)] = said[:, None]
    return found


def _known(features: Float64) -> np.ndarray:
    if not features.size:
        return np.zeros(len(features), dtype=bool)
    return np.asarray(np.isfinite(features).all(axis=1))


def _ridge(features: Float64, label: Float64, used: np.ndarray, asked: np.ndarray) -> Float64:
    """What a regression on some rows says of others; both labels weigh alike."""
    y = label[used] - 0.5
    weight = np.where(y > 0, 0.5 / (y > 0).sum(), 0.5 / (y <= 0).sum())
    centre = weight @ features[used]
    spread = np.sqrt(weight @ (features[used] - centre) ** 2)
    scale = np.where(spread > 1e-9, spread, np.inf) * math.sqrt(features.shape[1])
    root = np.sqrt(weight)  # (Σ weights = 1)
    x, y = root[:, None] * (features[used] - centre) / scale, root * y
    if x.shape[0] < x.shape[1]:  # fewer runs than features: the dual form
        slope = x.T @ np.linalg.solve(x @ x.T + RIDGE * np.eye(len(x)), y)
    else:
        slope = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
    return np.asarray((features[asked] - centre) / scale @ slope)
