"""Verdicts: from scores and a calibration to a word and a reason.

`judge` is pure: what it must remember between readings goes in and comes out as a `JudgeState`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from wvmonitor.detection.calibration import NUMERICAL_FLOOR, Calibration
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.finding import (
    Finding,
    broken,
    capped,
    finite,
    inoculated,
    part_in_words,
    unknown,
    unmoved,
    unseen,
)
from wvmonitor.detection.judgement import (
    BehaviourState,
    CalibrationStatus,
    JudgeState,
    State,
    Verdict,
    Worst,
)
from wvmonitor.detection.open_ended import by_windows, is_open_ended, window_ended
from wvmonitor.detection.scores import ReferenceScores, ScoreName, Scores
from wvmonitor.detection.trajectory import by_band, remembered
from wvmonitor.reading import Geometry

__all__ = [
    "CONSECUTIVE",
    "PUBLISHED_RULES",
    "BehaviourState",
    "CalibrationStatus",
    "JudgeState",
    "Rule",
    "RunContext",
    "State",
    "Verdict",
    "judge",
]


@dataclass(frozen=True)
class Rule:
    """The uncalibrated rule of one geometry: warn at or above both."""

    cosine: float
    margin: float


PUBLISHED_RULES: Mapping[Geometry, Rule] = {
    "response": Rule(cosine=0.20, margin=0.05),
    "frobenius": Rule(cosine=0.08, margin=0.03),
}
"""Between what benign and bad runs of our two prototype models scored (design, section 4).

Response: benign at most 0.03, the weakest bad run 0.24; Frobenius: 0.01 and 0.11. The hardest
controls reach 0.24 and 0.08 there, so the margin asks that no control fits better. They are guesses
for any other model: cosines shrink with width, and a quiet uncalibrated monitor proves little.
"""

RECENT = 6
"""So many readings back an explanation looks for where a score is heading."""

CONSECUTIVE = 2
"""Readings in a row above the rule before a trajectory warns.

A single checkpoint needs one, and so does a trajectory's last reading, which none will follow.
"""


def judge(
    scores: Scores,
    context: RunContext,
    calibration: Calibration | None,
    state: JudgeState,
    acknowledged: Collection[str] = (),
    *,
    last: bool = False,
) -> tuple[Mapping[str, Verdict], JudgeState]:
    """Pass a verdict on every behaviour at one reading.

    - Calibrated: `alarm` when the largest exceedance of the run so far, of the score or of what it
      has gained of late, passes the band at α, and for the rest of the run; `warn` while either is
      above the band at 2α.
    - Calibrated, of unknown length, where the calibration has windows: `by_windows`.
    - Provisional: the same by a band that is approximate, and guarantees nothing.
    - Uncalibrated, or of a run that the calibration does not cover: the published rules, capped
      at `warn`.
    - Transferred (`context.base == "relative"`): either of them, capped at `warn`.
    - `warming` while too little has changed; `unknown` where nothing can be measured, and in place
      of `ok` where the behaviour's reference rides along (`context.inoculated`), with the reason.

    An alarm that was raised is never hidden, whatever this reading by itself would say.

    Args:
        scores: of this reading.
        context: of the run.
        calibration: None judges by the published rules.
        state: as returned for the previous reading; `JudgeState()` for the first.
        acknowledged: behaviours that somebody has silenced in this run.
        last: whether no other reading of this run will follow.

    Returns:
        The verdict on each behaviour, and the state for the next reading.

    Raises:
        CalibrationError: the calibration belongs to another bank than the scores.
    """
    if calibration is not None and scores.bank:
        calibration.require_bank(scores.bank)
    status: CalibrationStatus = "uncalibrated" if calibration is None else calibration.status
    if context.base == "relative":
        status = "transferred"
    state = _begun(scores, context, calibration, state)
    verdicts: dict[str, Verdict] = {}
    for name, reference in scores.references.items():
        if reference.kind != "behaviour":
            continue
        before = state.of(name)
        finding = _finding(scores, reference, context, calibration, state, last=last)
        if status == "transferred":
            finding = capped(finding)
        if name in context.inoculated:
            finding = inoculated(finding)
        if before.alarmed and finding.state != State.ALARM:
            reason = f"alarmed earlier in this run; this reading by itself: {finding.reason}"
            finding = replace(finding, state=State.ALARM, reason=reason)
        verdicts[name] = Verdict(
            name,
            finding.state,
            finding.reason,
            finding.score,
            finding.threshold,
            "uncalibrated" if finding.uncovered and status != "transferred" else status,
            scores.step,
            geometry=finding.geometry,
            score_name=finding.score_name,
            acknowledged=name in acknowledged,
        )
        after = _after(before, finding, scores, context, calibration)
        if after != BehaviourState():
            state = replace(state, behaviours={**state.behaviours, name: after})
    return verdicts, state


def _begun(
    scores: Scores, context: RunContext, calibration: Calibration | None, state: JudgeState
) -> JudgeState:
    """The state as this reading finds it: one reading more, and perhaps another window or block."""
    state = replace(state, readings=state.readings + (scores.norm > NUMERICAL_FLOOR))
    band = calibration.windows if calibration is not None else None
    if calibration is None or band is None or not window_ended(scores, context, calibration):
        return state
    behaviours = state.behaviours
    if state.windows % band.block == 0:
        behaviours = {n: replace(b, running_maximum=None) for n, b in behaviours.items()}
    return replace(state, behaviours=behaviours, windows=state.windows + 1)


def _finding(
    scores: Scores,
    reference: ReferenceScores,
    context: RunContext,
    calibration: Calibration | None,
    state: JudgeState,
    *,
    last: bool,
) -> Finding:
    """What the rule that applies says of one behaviour, and which score it looks at.

    Where a calibration does not cover the run, the published rule applies, with both reasons.
    """
    before, reasons = state.of(reference.reference), ""
    if calibration is not None:
        if is_open_ended(scores, context, calibration):
            maximum, windows = before.running_maximum, state.windows
            finding = by_windows(scores, reference, context, calibration, maximum, windows)
            name: ScoreName = "window"
        else:
            finding = by_band(scores, reference, context, calibration, before, state.readings)
            name = calibration.score
        if not finding.uncovered:
            return replace(finding, geometry=calibration.geometry, score_name=name)
        reasons = f"the calibration does not cover this run ({finding.reason}): "
    row, needed = before.consecutive or 0, 1 if context.lone or last else CONSECUTIVE
    finding = _by_published_rule(scores, reference, context, row, needed=needed)
    return replace(finding, reason=f"{reasons}{finding.reason}", uncovered=calibration is not None)


def _after(
    before: BehaviourState,
    finding: Finding,
    scores: Scores,
    context: RunContext,
    calibration: Calibration | None,
) -> BehaviourState:
    """The behaviour's state for the next reading."""
    path, last_ok, recent = before.path, before.last_ok, before.recent
    worst, judged = before.worst, finding.state in (State.OK, State.WARN, State.ALARM)
    if judged and (worst is None or worst.state < finding.state):
        worst = Worst(finding.state, scores.step, finding.score)
    if finding.uncovered and before.consecutive is None:
        recent = ()  # of another score
    banded = calibration is not None and not finding.uncovered
    if calibration is not None and banded and not is_open_ended(scores, context, calibration):
        path = remembered(path, scores, finding.score, calibration)
    if scores.step is not None:
        last_ok = scores.step if finding.state == State.OK else last_ok
        if finding.score is not None:
            recent = (*recent, (scores.step, finding.score))[-RECENT:]
    return BehaviourState(
        running_maximum=before.running_maximum if finding.maximum is None else finding.maximum,
        gain_maximum=before.gain_maximum if finding.gain_maximum is None else finding.gain_maximum,
        consecutive=before.consecutive if finding.consecutive is None else finding.consecutive,
        alarmed=before.alarmed or finding.state == State.ALARM,
        last_ok=last_ok,
        recent=recent,
        path=path,
        worst=worst,
    )


def _by_published_rule(
    scores: Scores, reference: ReferenceScores, context: RunContext, row: int, *, needed: int
) -> Finding:
    """Judge by `PUBLISHED_RULES`: in the response geometry where it sees enough, else Frobenius."""
    order: tuple[Geometry, ...] = ("response", "frobenius")
    seen = [g for g in order if "cosine" in reference.values.get(g, {})]
    enough = (g for g in seen if not unseen(scores, g, context))
    geometry = next(enough, seen[0] if seen else "frobenius")
    finding = _by_rule(scores, reference, context, row, geometry, needed)
    return replace(finding, geometry=geometry, score_name="cosine")


def _by_rule(
    scores: Scores,
    reference: ReferenceScores,
    context: RunContext,
    row: int,
    geometry: Geometry,
    needed: int,
) -> Finding:
    values, rule = reference.values.get(geometry, {}), PUBLISHED_RULES[geometry]
    value, what = finite(values.get("cosine")), f"cosine ({geometry})"
    objections = broken(scores, reference, context)
    if objections:
        return unknown(objections, what, value, rule.cosine)
    early = unmoved(scores, geometry, NUMERICAL_FLOOR)
    if early is not None and scores.norm <= NUMERICAL_FLOOR:
        return replace(early, threshold=rule.cosine)
    missing = unseen(scores, geometry, context)
    if value is None:
        why = "" if missing else ": the reference touches nothing of what has changed"
        missing.append(f"there is no cosine{why}")
    if missing or value is None:
        return unknown(missing, what, value, rule.cosine)
    if early is not None:
        return replace(early, score=value, threshold=rule.cosine)
    margin = values.get("margin")
    fits = margin is None or margin >= rule.margin
    above = value >= rule.cosine and fits
    row = row + 1 if above else 0
    beside = (
        "the bank has no control to compare with"
        if margin is None
        else f"{margin:.3g} above the best control (rule: {rule.margin:.3g})"
    )
    text = f"{what} {value:.3g} (published rule: {rule.cosine:.3g}), {beside}"
    if row >= needed:
        state = State.WARN
        many = "" if needed == 1 else f", {row} readings in a row"
        text = f"{text}: above the rule{many}"
    elif above:
        state = State.OK
        text = f"{text}: above the rule once, {needed} readings in a row are needed"
    else:
        state, text = State.OK, f"{text}: not above the rule"
    advice = (
        "Uncalibrated: the rule is a guess for this model, without a known false-alarm rate, and "
        "warns at most"
    )
    part = part_in_words(scores, geometry)
    says = ". ".join(s for s in (text, part, advice) if s)
    return Finding(state, says, value, rule.cosine, consecutive=row)
