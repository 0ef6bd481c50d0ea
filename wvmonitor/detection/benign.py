"""Harmless runs as calibrations need them: what came in, and what is kept of it.

What is kept suffices to calibrate again: so a run that is watched later can be added to a
calibration without the earlier ones at hand.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from wvmonitor.detection import conformal
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.scores import COVERAGE_FLOOR, Scores, is_covered, judged_norm
from wvmonitor.errors import CalibrationError
from wvmonitor.reading import GEOMETRIES, Component, Float64, Geometry

NUMERICAL_FLOOR = 1e-8
"""‖τ‖ at or below which nothing has changed but rounding."""

AS_KEPT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
"""How everything of a calibration's file is checked; who uses none need not build the checks."""


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


class KeptRun(BaseModel):
    """What a calibration keeps of a harmless run.

    Attributes:
        dataset: what it was trained on.
        context: the kind of run it was.
        progress, norms: of its readings, in order; those at τ ≈ 0 are left out.
        values: by behaviour, the deciding score at the same readings.
        windows: by behaviour, its window scores in order; empty where it has none.
        lags: least and largest window in steps, where it has windows.
        trace: the last cosines with every reference of the bank, in every geometry: runs of one
            dataset are found by it.
    """

    model_config = AS_KEPT

    dataset: str
    context: RunContext
    progress: tuple[float, ...]
    norms: tuple[float, ...]
    values: dict[str, tuple[float, ...]]
    windows: dict[str, tuple[float, ...]] = {}
    lags: tuple[int, int] | None = None
    trace: tuple[float, ...] = ()

    @property
    def length(self) -> float:
        """How long it was read: in steps where their plan is known, else in shares of the run."""
        return self.progress[-1] * (self.context.planned_steps or 1)

    def path(self, behaviours: Sequence[str]) -> conformal.Trajectory:
        """Its deciding scores."""
        values = np.array([self.values[b] for b in behaviours], dtype=np.float64).T
        return conformal.Trajectory(np.array(self.progress), values)

    def gained(self, behaviours: Sequence[str]) -> conformal.Trajectory:
        """What they gained of late."""
        return conformal.gains(self.path(behaviours), np.array(self.norms))

    def windows_of(self, behaviours: Sequence[str]) -> Float64:
        """(W, R) its window scores."""
        return np.array([self.windows.get(b, ()) for b in behaviours], dtype=np.float64).T


@dataclass(frozen=True)
class Deciding:
    """The score that decides, and all that the readings of a calibration must agree in."""

    bank: str
    geometry: Geometry
    score: str
    components: tuple[Component, ...]
    ridge: float | None
    behaviours: tuple[str, ...]


def in_order(runs: Sequence[BenignRun]) -> list[BenignRun]:
    """The runs in an order that follows from their datasets' names alone."""
    return sorted(runs, key=lambda r: order(r.dataset))


def order(dataset: str) -> tuple[bytes, str]:
    """Where a dataset stands in that order."""
    return hashlib.sha256(dataset.encode()).digest(), dataset


def deciding(runs: Sequence[BenignRun], bank: str, geometry: Geometry, score: str) -> Deciding:
    """What the first reading of the first run says of how they were all scored.

    Raises:
        CalibrationError: it says nothing of any behaviour.
    """
    first = next((s for s in runs[0].scores), None)
    behaviours = _behaviours(first) if first else ()
    if first is None or not behaviours:
        raise CalibrationError(
            f"the run of {runs[0].dataset} holds no scores of any behaviour: read it again"
        )
    ridge = first.ridge.get(geometry) if score == "residual" else None
    return Deciding(bank, geometry, score, first.components, ridge, behaviours)


def kept(run: BenignRun, like: Deciding) -> KeptRun:
    """What is kept of a run, its readings in the order of their progress.

    Raises:
        CalibrationError: it cannot calibrate (says at which step, and why).
    """
    moved = [s for s in run.scores if not s.norm <= NUMERICAL_FLOOR]
    for scores in moved:
        problem = _problem(scores, like)
        if problem:
            raise CalibrationError(
                f"the run of {run.dataset} cannot calibrate: at step {scores.step} {problem}; "
                "read it again, or leave it out"
            )
    if not moved:
        raise CalibrationError(
            f"the run of {run.dataset} cannot calibrate: its weights never moved; leave it out"
        )
    if run.context.method is None or run.context.base != "same":
        raise CalibrationError(
            f"the run of {run.dataset} cannot calibrate: its method must be known and its base the "
            f"references' own, got method {run.context.method}, base {run.context.base}"
        )
    moved.sort(key=lambda s: s.progress or 0.0)
    windowed = [s for s in run.scores if _windows(s, like) is not None]
    lags = [s.lag for s in windowed if s.lag is not None]
    windows = [_windows(s, like) or () for s in windowed]
    columns = dict(zip(like.behaviours, zip(*windows, strict=True), strict=True)) if windows else {}
    return KeptRun(
        dataset=run.dataset,
        context=run.context,
        progress=tuple(float(s.progress or 0.0) for s in moved),
        norms=tuple(float(judged_norm(s, like.geometry)) for s in moved),
        values={b: tuple(_value(s, b, like) or 0.0 for s in moved) for b in like.behaviours},
        windows=columns,
        lags=(min(lags), max(lags)) if lags else None,
        trace=_trace(moved[-1]),
    )


def _trace(scores: Scores) -> tuple[float, ...]:
    values = [
        scores.references[name].values.get(geometry, {}).get("cosine")
        for geometry in GEOMETRIES
        for name in sorted(scores.references)
    ]
    return tuple(float(v) for v in values if v is not None and math.isfinite(v))


def _windows(scores: Scores, like: Deciding) -> tuple[float, ...] | None:
    """Its window scores, if a window ended at this reading."""
    values = [
        scores.references[b].values.get(like.geometry, {}).get("window")
        for b in like.behaviours
        if b in scores.references
    ]
    finite = [float(v) for v in values if v is not None and math.isfinite(v)]
    return tuple(finite) if len(finite) == len(like.behaviours) else None


def _value(scores: Scores, behaviour: str, like: Deciding) -> float | None:
    values = scores.references[behaviour].values.get(like.geometry, {})
    return values.get(like.score)  # type: ignore[call-overload, no-any-return]


def _problem(scores: Scores, like: Deciding) -> str | None:
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
    if scores.unmeasurable:
        return f"its change cannot be measured: {scores.unmeasurable}"
    if _behaviours(scores) != like.behaviours:
        return f"it scores {_behaviours(scores)}, the others {like.behaviours}"
    if not is_covered(scores, like.geometry, strict=False):
        return f"less than {COVERAGE_FLOOR:.0%} of its change lies where the scores look"
    for behaviour in like.behaviours:
        value = _value(scores, behaviour, like)
        if value is None:
            return f"it has no {like.score} of {behaviour} in the {like.geometry} geometry"
        if not math.isfinite(value):
            return f"its {like.score} of {behaviour} is not finite"
    return None


def _behaviours(scores: Scores) -> tuple[str, ...]:
    return tuple(sorted(r for r, s in scores.references.items() if s.kind == "behaviour"))
