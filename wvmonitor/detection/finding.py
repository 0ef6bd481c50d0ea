"""What one reading says of one behaviour, and the checks that every rule makes first."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from wvmonitor.detection.calibration import NUMERICAL_FLOOR, Calibration
from wvmonitor.detection.conformal import runs_needed
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judgement import State
from wvmonitor.detection.scores import (
    COVERAGE_FLOOR,
    ReferenceScores,
    ScoreName,
    Scores,
    covers_a_part,
    is_covered,
    judged_norm,
)
from wvmonitor.reading import Geometry


@dataclass(frozen=True)
class Finding:
    """What one reading by itself, with the running maxima, says of one behaviour.

    Attributes:
        geometry, score_name: what `score` is, where a score was looked at.
        uncovered: whether the calibration does not cover this run, for `reason`.
    """

    state: State
    reason: str
    score: float | None = None
    threshold: float | None = None
    maximum: float | None = None
    consecutive: int | None = None
    gain_maximum: float | None = None
    geometry: Geometry | None = None
    score_name: ScoreName | None = None
    uncovered: bool = False


def broken(scores: Scores, reference: ReferenceScores, context: RunContext) -> list[str]:
    """What keeps any rule from judging, in words."""
    objections = [scores.unmeasurable] if scores.unmeasurable else []
    if context.base == "unknown":
        objections.append(
            "it is not known whether the run starts from the references' base: give the base"
        )
    odd = [f"{s} ({g})" for g, v in reference.values.items() for s, x in v.items() if bad(x)]
    if bad(scores.norm):
        objections.append(f"the weights are not finite (‖τ‖ = {scores.norm})")
    elif odd:
        objections.append(f"not finite: {', '.join(odd)}")
    return objections


def unmoved(scores: Scores, geometry: Geometry, least: float) -> Finding | None:
    """Warming, if ‖τ‖ is at or below the rounding floor, or below the least calibrated one."""
    norm = judged_norm(scores, geometry)
    if norm > NUMERICAL_FLOOR and norm >= least:
        return None
    of = "" if norm == scores.norm else f" of the {', '.join(scores.components)}"
    return Finding(
        State.WARMING,
        f"too little has changed to judge: ‖τ‖{of} is {norm:.3g}, below {least:.3g}",
    )


def unseen(scores: Scores, geometry: Geometry, context: RunContext) -> list[str]:
    """Missing coverage, in words."""
    if is_covered(scores, geometry, strict=context.strict_coverage):
        return []
    coverage = scores.coverage.get(geometry, 0.0)
    if coverage == 0:
        return [
            f"nothing of the change lies where the {geometry} scores look "
            f"({', '.join(scores.components)})"
        ]
    return [
        f"only {percent(coverage)} of the change lies where the {geometry} scores look "
        f"({', '.join(scores.components)}; at least {percent(COVERAGE_FLOOR)} is needed)"
    ]


_ON_A_PART = "This is a verdict on the "


def is_on_a_part(reason: str) -> bool:
    """Whether a verdict is on a part of the change, by its reason."""
    return _ON_A_PART in reason


def part_in_words(scores: Scores, geometry: Geometry) -> str:
    """What a verdict on a part of the change must say; empty where it covers most of it."""
    if not scores.shares or not covers_a_part(scores, geometry):
        return ""
    beside = {c: s for c, s in scores.shares.items() if c not in scores.components and s > 0}
    largest = sorted(beside.items(), key=lambda item: -item[1])
    named = ", ".join(f"{component} {100 * share:.3g} %" for component, share in largest)
    return (
        f"{_ON_A_PART}{', '.join(scores.components)} alone: most of the change lies "
        f"elsewhere ({named}), where no score looks. Ask for strict coverage to have that left "
        "unjudged"
    )


def unknown(
    reasons: list[str], what: str, value: float | None, threshold: float | None = None
) -> Finding:
    """It cannot be judged, for these reasons; a score above its threshold is shown all the same."""
    text = f"cannot be judged: {'; '.join(reasons)}"
    if value is not None and threshold is not None and value > threshold:
        text += f". Its {what} of {value:.3g} is above {threshold:.3g} all the same: look at it"
    return Finding(State.UNKNOWN, text, value, threshold)


def outside(reasons: list[str]) -> Finding:
    """The calibration does not cover this run, for these reasons: another rule must judge it."""
    return Finding(State.UNKNOWN, "; ".join(reasons), uncovered=True)


def capped(finding: Finding) -> Finding:
    """Of a relative's references: an alarm is a warning."""
    state = min(finding.state, State.WARN)
    note = "Transferred: the references were made from a relative of this base, so it warns at most"
    return replace(finding, state=state, reason=f"{finding.reason}. {note}")


def inoculated(finding: Finding) -> Finding:
    """Of a behaviour whose reference rides along: its alarms count, and its silence does not.

    k·w in memory keeps w out of the weights, and the score down, whether or not the data is
    learned: measured in docs/remedies.md, "What waits for an alarm".
    """
    if finding.state != State.OK:
        return finding
    reason = (
        "inoculated against it, which keeps the score down whatever is learned: a quiet one does "
        f"not say that all is well, so ask the finished model. By itself: {finding.reason}"
    )
    return replace(finding, state=State.UNKNOWN, reason=reason)


def guarantee(calibration: Calibration) -> str:
    """What a verdict by the band rests on."""
    runs, behaviours = len(calibration.datasets), len(calibration.bands)
    if calibration.status == "provisional":
        return (
            f"Provisional, approximate, from {runs} harmless runs: about "
            f"{percent(calibration.alpha)} of harmless runs like them may alarm, which nothing "
            "guarantees; `wvmonitor calibrate --add RUN` adds more, and with "
            f"{runs_needed(calibration.alpha, behaviours)} of full length it is calibrated"
        )
    older = "" if calibration.gain else ". It has no band for recent gains: make it again for one"
    how = (
        f"{calibration.n_band} set the band"
        if calibration.folds is None
        else f"each held against the others, in {calibration.folds} parts: exact but for that"
    )
    return (
        f"Calibrated on {runs} benign datasets ({how}): at most {percent(calibration.alpha)} of "
        f"benign runs like them alarm on average; for this one calibration that may be up to "
        f"{percent(calibration.rate_bound or 0.0)} (95 % bound){older}"
    )


def rank_among(calibration: Calibration, name: str, highest: float | None) -> str:
    """How many of the benign runs a run is further out than; empty where that is not known."""
    if highest is None:
        return ""
    below = sum(m < highest for m in calibration.maxima[name])
    return f", and further out than {below} of the {calibration.n_band} benign runs of the band"


def finite(value: float | None) -> float | None:
    """The value, or None where it is missing, NaN or infinite."""
    return None if value is None or not math.isfinite(value) else value


def bad(value: float) -> bool:
    """Whether a number is NaN or infinite."""
    return not math.isfinite(value)


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.3g} %"
