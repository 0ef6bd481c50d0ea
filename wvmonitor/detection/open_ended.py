"""Judging a run of unknown length by its windows; its arithmetic and guarantee: `edetector.py`."""

from __future__ import annotations

from dataclasses import replace

from wvmonitor.detection.band import Calibration, WindowBand
from wvmonitor.detection.calibration import NUMERICAL_FLOOR
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.finding import (
    Finding,
    broken,
    finite,
    outside,
    part_in_words,
    percent,
    unknown,
    unmoved,
    unseen,
)
from wvmonitor.detection.judgement import State
from wvmonitor.detection.scores import ReferenceScores, Scores


def is_open_ended(scores: Scores, context: RunContext, calibration: Calibration) -> bool:
    """Whether a run's length is not known, and the calibration has windows to judge it by."""
    return (
        calibration.windows is not None
        and scores.progress is None
        and context.planned_steps is None
        and not context.lone
    )


def window_ended(scores: Scores, context: RunContext, calibration: Calibration) -> bool:
    """Whether a window of an open-ended run ended at this reading."""
    return is_open_ended(scores, context, calibration) and any(
        "window" in reference.values.get(calibration.geometry, {})
        for reference in scores.references.values()
        if reference.kind == "behaviour"
    )


def by_windows(
    scores: Scores,
    reference: ReferenceScores,
    context: RunContext,
    calibration: Calibration,
    maximum: float | None,
    windows: int,
) -> Finding:
    """Judge a behaviour of an open-ended run; where the windows do not cover it, say so only.

    Args:
        scores: of the reading.
        reference: of the behaviour.
        context: of the run.
        calibration: one that has windows.
        maximum: the largest exceedance of the current block so far.
        windows: how many have ended, one that ends at this reading included.
    """
    band, name = calibration.windows, reference.reference
    assert band is not None  # noqa: S101  `is_open_ended` sees to it
    what = f"window ({calibration.geometry})"
    value = finite(reference.values.get(calibration.geometry, {}).get("window"))
    objections = broken(scores, reference, context)
    if objections:
        return unknown(objections, what, value)
    uncovered = _objections(scores, context, calibration)
    if name not in band.mu:
        return outside([*uncovered, f"{name} is not among the calibrated behaviours"])
    limit = band.mu[name] + band.multiplier[name] * band.sigma[name]
    if windows > band.block * band.blocks:
        uncovered.append(
            f"the run has gone on for {windows} windows, and {band.runs} benign runs speak "
            f"of {band.block * band.blocks} at most: calibrate with more runs, or give the planned "
            "number of steps"
        )
    if uncovered:
        return outside(uncovered)
    early = unmoved(scores, calibration.geometry, NUMERICAL_FLOOR)
    if early is not None:
        moved = scores.norm > NUMERICAL_FLOOR
        if moved and (missing := unseen(scores, calibration.geometry, context)):
            return unknown(missing, what, value, limit)
        return Finding(State.WARMING, early.reason, value, limit, maximum)
    if windows == 0:
        text = "no window has ended yet, and this run's length is not known"
        return Finding(State.WARMING, text, None, limit)
    if value is not None and (missing := unseen(scores, calibration.geometry, context)):
        return unknown(missing, what, value, limit)
    finding = _finding(band, calibration, what, value, limit, name, maximum, windows)
    part = part_in_words(scores, calibration.geometry)
    return replace(finding, reason=f"{finding.reason}. {part}") if part else finding


def _finding(
    band: WindowBand,
    calibration: Calibration,
    what: str,
    value: float | None,
    limit: float,
    name: str,
    maximum: float | None,
    windows: int,
) -> Finding:
    warn = band.mu[name] + band.warn_multiplier[name] * band.sigma[name]
    highest = maximum
    if value is not None:
        now = (value - band.mu[name]) / band.sigma[name]
        highest = now if maximum is None else max(now, maximum)
    passed = highest is not None and highest > band.multiplier[name]
    block = (windows - 1) // band.block + 1
    tail = (
        f"Open-ended, block {block} of {band.blocks}: at most {percent(calibration.alpha)} of "
        f"benign runs like the {band.runs} that set this alarm at all, if a run's later "
        f"windows are like its first {band.block}"
    )
    state = State.OK
    if value is None:
        text = f"no window ends here; {windows} have ended, and this block's are "
        text += "beyond the threshold" if passed else "within it"
        state = State.ALARM if passed else State.OK
    elif passed:
        text = f"{what} {value:.3g}: above {limit:.3g}, or another window of its block is"
        state = State.ALARM
    elif value > warn:
        text = f"{what} {value:.3g} is above {warn:.3g}, but not above {limit:.3g}"
        state = State.WARN
    else:
        text = f"{what} {value:.3g} is not above {limit:.3g}"
    return Finding(state, f"{text}. {tail}", value, limit, highest)


def _objections(scores: Scores, context: RunContext, calibration: Calibration) -> list[str]:
    """Why the windows of this run are not those of the calibration, in words."""
    band = calibration.windows
    assert band is not None  # noqa: S101  `is_open_ended` sees to it
    objections = calibration.support.kind_objections(context)
    if scores.components != calibration.components:
        objections.append(
            f"the scores are over {', '.join(scores.components)}, the calibration over "
            f"{', '.join(calibration.components)}"
        )
    least, most = band.lags
    if scores.lag is not None and not least <= scores.lag <= most:
        span = str(least) if least == most else f"{least} to {most}"
        objections.append(f"its window is {scores.lag} steps long, the calibration's {span}")
    return objections
