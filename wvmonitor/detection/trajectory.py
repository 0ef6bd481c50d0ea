"""Judging a run by the trajectory band: by its score, and by what the score has gained of late.

The arithmetic and its guarantee are in `conformal.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wvmonitor.detection import conformal
from wvmonitor.detection.calibration import NUMERICAL_FLOOR, Calibration
from wvmonitor.detection.conformal import Trajectory
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.finding import (
    Finding,
    broken,
    finite,
    guarantee,
    outside,
    part_in_words,
    percent,
    rank_among,
    unknown,
    unmoved,
    unseen,
)
from wvmonitor.detection.judgement import BehaviourState, Path, State
from wvmonitor.detection.scores import ReferenceScores, Scores, judged_norm

POINTS = 32
"""About so many of a path are kept, however densely a run is read: every reading's state is."""


@dataclass(frozen=True)
class _Statistic:
    """One statistic beside its thresholds, with its largest exceedance of the run so far.

    It counts at this reading, or only for what it was before.
    """

    what: str
    value: float
    warn: float
    limit: float
    highest: float | None
    counts: bool = True


def by_band(
    scores: Scores,
    reference: ReferenceScores,
    context: RunContext,
    calibration: Calibration,
    past: BehaviourState,
    readings: int,
) -> Finding:
    """Judge a behaviour at one reading; where the band does not cover the run, say so only.

    Args:
        scores: of the reading.
        reference: of the behaviour.
        context: of the run.
        calibration: the band.
        past: of this behaviour.
        readings: of the run so far, this one included.
    """
    name = reference.reference
    value = finite(reference.values.get(calibration.geometry, {}).get(calibration.score))
    what = f"{calibration.score} ({calibration.geometry})"
    at = _within(scores.progress)
    threshold = calibration.threshold(name, at) if name in calibration.bands else None
    objections = broken(scores, reference, context)
    if objections:
        return unknown(objections, what, value, threshold)
    uncovered = calibration.support.objections(context, scores.progress, readings)
    uncovered += _unlike(scores, calibration)
    if uncovered or threshold is None:
        foreign = [f"{name} is not among the calibrated behaviours"] if threshold is None else []
        return outside([*uncovered, *foreign])
    least = calibration.support.least_norm(at, calibration.grid)
    early = unmoved(scores, calibration.geometry, max(least, NUMERICAL_FLOOR))
    if early is not None and scores.norm <= NUMERICAL_FLOOR:
        return replace(early, threshold=threshold)
    missing = unseen(scores, calibration.geometry, context)
    norm = judged_norm(scores, calibration.geometry)
    if value is None:
        missing.append(f"there is no {what} score")
    if missing or value is None:
        return unknown(missing, what, value, threshold)
    if early is not None:
        return replace(early, score=value, threshold=threshold)
    warn = calibration.warn_threshold(name, at)
    if at is None:
        statistics = [_Statistic(what, value, warn, threshold, past.running_maximum)]
        when = "the highest threshold of the whole run, for its progress is not known"
    else:
        out = calibration.exceedance(name, at, value)
        statistics = [_Statistic(what, value, warn, threshold, _larger(out, past.running_maximum))]
        when = f"the alarm's threshold at {percent(at)} of the run"
        if calibration.gain is not None and not context.lone:
            gained = _gain(past.path or (), at, value, norm, calibration.gain.span)
            now = calibration.gain_exceedance(name, at, gained)
            limits = calibration.gain_thresholds(name, at)
            # What comes back from far below the harmless runs gains much, and has gone nowhere.
            counts = out > 0
            highest = _larger(now, past.gain_maximum) if counts else past.gain_maximum
            statistics.append(
                _Statistic(f"recent gain of {what}", gained, *limits, highest, counts)
            )
    notes = calibration.support.caveats(context, norm, at, calibration.grid)
    part = part_in_words(scores, calibration.geometry)
    says = [guarantee(calibration), *([part] if part else ()), *(f"Note: {n}" for n in notes)]
    tail = ". ".join(says)
    state, text = _state(name, statistics, calibration, when)
    gain_maximum = statistics[1].highest if len(statistics) > 1 else past.gain_maximum
    return Finding(
        state, f"{text}. {tail}", value, threshold, statistics[0].highest, gain_maximum=gain_maximum
    )


def remembered(
    path: Path | None, scores: Scores, value: float | None, calibration: Calibration
) -> Path:
    """The path with this reading, and without what no later gain looks back to."""
    path, progress = path or (), _within(scores.progress)
    if calibration.gain is None or value is None or progress is None:
        return path
    norm = judged_norm(scores, calibration.geometry)
    if not (math.isfinite(norm) and norm > NUMERICAL_FLOOR):
        return path
    earlier = [point for point in path if point[0] < progress]
    span = calibration.gain.span
    old = [point for point in earlier if point[0] <= progress - span]
    recent = earlier[max(len(old) - 1, 0) :]
    if recent and progress - recent[-1][0] < span / POINTS:
        return tuple(recent)
    return (*recent, (progress, value, norm))


def _gain(path: Path, progress: float, value: float, norm: float, span: float) -> float:
    """The last of `conformal.gains`."""
    rows = np.array([*(p for p in path if p[0] < progress), (progress, value, norm)])
    gained = conformal.gains(Trajectory(rows[:, 0], rows[:, 1:2]), rows[:, 2], span)
    return float(gained.values[-1, 0])


def _state(
    name: str, statistics: Sequence[_Statistic], calibration: Calibration, when: str
) -> tuple[State, str]:
    """The state that the statistics give, and which of them gives it."""
    score = statistics[0]
    for h in statistics:
        if h.counts and h.value > h.limit:
            beside = "" if h is score else f"; the score itself is {score.value:.3g}"
            ranked = rank_among(calibration, name, h.highest)
            text = f"{h.what} {h.value:.3g} is above {h.limit:.3g}, {when}{ranked}{beside}"
            return State.ALARM, text
    for h in statistics:
        if h.highest is not None and h.highest > calibration.multiplier[name]:
            return State.ALARM, (
                f"{h.what} was above the alarm's threshold earlier in this run, and is "
                f"{h.value:.3g} now"
            )
    for h in statistics:
        if h.counts and h.value > h.warn:
            return State.WARN, (
                f"{h.what} {h.value:.3g} is above {h.warn:.3g}, which "
                f"{percent(calibration.warn_alpha)} of benign runs may pass, but not above "
                f"{h.limit:.3g}, {when}"
            )
    return State.OK, f"{score.what} {score.value:.3g} is not above {score.limit:.3g}, {when}"


def _unlike(scores: Scores, calibration: Calibration) -> list[str]:
    """How the scores were computed otherwise than the calibration's, in words."""
    differences = []
    if scores.components != calibration.components:
        differences.append(
            f"the scores are over {', '.join(scores.components)}, the calibration over "
            f"{', '.join(calibration.components)}"
        )
    ridge = scores.ridge.get(calibration.geometry)
    if calibration.ridge is not None and ridge != calibration.ridge:
        differences.append(f"the residual's λ is {ridge}, the calibration's {calibration.ridge}")
    return differences


def _within(progress: float | None) -> float | None:
    """The progress; None where it is not known, or not within the run."""
    timed = progress is not None and 0 <= progress <= 1 + 1e-9
    return min(progress, 1.0) if timed and progress is not None else None


def _larger(now: float, before: float | None) -> float:
    return now if before is None else max(now, before)
