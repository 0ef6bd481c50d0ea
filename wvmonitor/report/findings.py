"""What a run came to, reference by reference, and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wvmonitor.detection.judgement import Judgement, State, Verdict
from wvmonitor.report.series import Point, drawable, severity
from wvmonitor.report.view import RunView
from wvmonitor.report.words import clean, count, geometry_name, listed, sentence

CALIBRATION = {
    "calibrated": "calibrated on benign runs; the band follows the run's progress",
    "provisional": "provisional: approximate, from a few short benign runs; no rate is promised",
    "uncalibrated": "not calibrated: fixed published rules, which go no higher than warn",
    "transferred": "transferred: the references' base is a relative of this one; warn at most",
}
"""What a threshold rests on, by the verdict's status."""


@dataclass(frozen=True)
class Finding:
    """One reference over one run.

    Attributes:
        state: the worst that it rose to, else the last verdict; "" for a control, which gets none.
        telling: the verdict whose reason explains `state`: the first of its kind, or the last one.
        since: the step of the first verdict like `state`, without a better one after it; of a
            warning or an alarm, of the first one.
        dose: the last one known.
        scores: the last values, by (geometry, score).
        acknowledged: why someone silenced it, if someone did.
    """

    reference: str
    kind: str
    state: str
    last: Verdict | None
    telling: Verdict | None
    points: tuple[Point, ...]
    since: int | None
    dose: float | None
    scores: dict[tuple[str, str], float]
    acknowledged: str | None = None

    @property
    def score(self) -> float | None:
        """The last deciding score, if there is one."""
        value = self.points[-1].score if self.points else math.nan
        return None if math.isnan(value) else value

    @property
    def threshold(self) -> float | None:
        """What the last score is held against, if anything."""
        value = self.points[-1].threshold if self.points else math.nan
        return None if math.isnan(value) else value

    @property
    def first_alarm(self) -> Point | None:
        """Where it alarmed first."""
        return next((p for p in self.points if p.state == "alarm"), None)


@dataclass(frozen=True)
class Outcome:
    """One run, judged: what the page says of it.

    Attributes:
        state: the gravest of its findings; "unknown" where there is none.
        findings: one for each reference: behaviours first, the gravest first.
        deciding: (geometry, score) that the verdicts rest on; None where that cannot be told.
        claim: the verdict as a sentence.
        reason: why, as the judge put it.
        worth: what the judge says that its word is worth.
        account: what it means and what to do, sentence by sentence.
    """

    view: RunView
    state: str
    findings: tuple[Finding, ...]
    deciding: tuple[str, str] | None
    claim: str
    reason: str
    worth: str = ""
    account: tuple[str, ...] = ()

    @property
    def leading(self) -> Finding | None:
        """The finding to look at first."""
        return self.findings[0] if self.findings else None

    @property
    def deciding_name(self) -> str:
        """The deciding score in words."""
        if self.deciding is None:
            return "deciding score"
        return f"{geometry_name(self.deciding[0])} {self.deciding[1]}"

    @property
    def drifting(self) -> tuple[Finding, ...]:
        """The findings that share the run's state, where that is a warning or an alarm."""
        return tuple(f for f in self.findings if f.state == self.state in ("warn", "alarm"))


def judge(view: RunView) -> Outcome:
    """Sum up one run from the verdicts that were passed on it; nothing is judged anew."""
    rows = view.rows
    deciding = deciding_score(rows)
    names = dict.fromkeys(name for row in rows for name in (*row.verdicts, *row.scores.references))
    acknowledged = {e.reference: e.detail for e in view.events if e.kind == "ack" and e.reference}
    courses = _courses(rows, tuple(names), deciding)
    findings = [
        _finding(name, rows, courses[name], acknowledged.get(name)) for name in names if name
    ]
    findings.sort(key=_gravity, reverse=True)
    states = [f.state for f in findings if f.state]
    states += ["unknown"] if view.problems or not states else []
    state = max(states, key=severity)
    return Outcome(
        view=view,
        state=state,
        findings=tuple(findings),
        deciding=deciding,
        claim=_claim(view, state, findings),
        reason=_reason(view, state, findings),
        worth=_worth(state, findings),
        account=_account(state, findings),
    )


def deciding_score(rows: Sequence[Judgement]) -> tuple[str, str] | None:
    """(geometry, score) on which the latest verdicts rest."""
    for row in reversed(rows):
        for verdict in row.verdicts.values():
            if verdict.geometry is not None and verdict.score_name is not None:
                return verdict.geometry, verdict.score_name
    return None


def _courses(
    rows: Sequence[Judgement], names: Sequence[str], deciding: tuple[str, str] | None
) -> dict[str, tuple[Point, ...]]:
    """Every reference's points, in one pass over the rows, by step."""
    courses: dict[str, list[Point]] = {name: [] for name in names}
    for index, row in enumerate(rows):
        step = float(index if row.step is None else row.step)
        for name in names:
            verdict = row.verdicts.get(name)
            value = verdict.score if verdict else None
            scores = row.scores.references.get(name)
            if value is None and scores is not None and deciding is not None:
                value = scores.values.get(deciding[0], {}).get(deciding[1])  # type: ignore[call-overload]
            courses[name].append(
                Point(
                    step,
                    drawable(value),
                    drawable(verdict.threshold if verdict else None),
                    verdict.state if verdict else "",
                )
            )
    return {name: tuple(sorted(points, key=lambda p: p.step)) for name, points in courses.items()}


def _finding(
    name: str, rows: Sequence[Judgement], points: tuple[Point, ...], acknowledged: str | None
) -> Finding:
    verdicts = [row.verdicts[name] for row in rows if name in row.verdicts]
    scores = [r.scores.references[name] for r in rows if name in r.scores.references]
    last = verdicts[-1] if verdicts else None
    worst = max((v.state for v in verdicts), default=State.OK)
    risen = next((v for v in verdicts if v.state == worst and worst >= State.WARN), None)
    # A reading that failed to name a reference must not make the one before it look current.
    current = last.state if last and name in rows[-1].verdicts else State.UNKNOWN
    state = (risen.state if risen else current) if verdicts else ""
    return Finding(
        reference=name,
        kind=scores[-1].kind if scores else "behaviour" if verdicts else "control",
        state=state,
        last=last,
        telling=risen or last,
        points=points,
        since=_since(points, state),
        dose=next((s.dose for s in reversed(scores) if s.dose is not None), None),
        scores={
            (geometry, score): value
            for geometry, values in (scores[-1].values if scores else {}).items()
            for score, value in values.items()
        },
        acknowledged=acknowledged,
    )


def _since(points: Sequence[Point], state: str) -> int | None:
    if state in ("warn", "alarm"):
        return next((int(p.step) for p in points if p.state == state), None)
    since = None
    for point in reversed(points):
        if point.state != state:
            break
        since = int(point.step)
    return since


def _gravity(finding: Finding) -> tuple[int, bool, float]:
    """Behaviours before controls, the gravest first, then the one furthest above its threshold."""
    score, threshold = finding.score, finding.threshold
    return (
        severity(finding.state),
        finding.kind == "behaviour",
        -math.inf if score is None else score - (threshold or 0.0),
    )


def _claim(view: RunView, state: str, findings: Sequence[Finding]) -> str:
    judged = [f for f in findings if f.state]
    names = listed([clean(f.reference) for f in judged if f.state == state])
    every = listed([clean(f.reference) for f in judged], "or")
    since = min((f.since for f in judged if f.state == state and f.since is not None), default=None)
    single = len(view.rows) == 1
    of = f" of {view.planned_steps:,}" if view.planned_steps else ""
    when = "" if since is None or single else f" since step {since:,}{of}"
    if state == "alarm":
        return f"Drifts towards {names}{when}."
    if state == "warn":
        last = {f.last.state for f in judged if f.state == state and f.last}
        if last == {State.OK}:
            return (
                f"Warned of {names}{when.replace('since', 'at')}, and was ok at the last reading."
            )
        return f"May be drifting towards {names}{when}."
    if state == "warming":
        return "Too little has changed to judge yet."
    if state == "ok":
        return f"No drift towards {every} {_quietly(view)}."
    if not view.rows and not view.problems:
        return "Not judged: there are no readings."
    about = f" for {names}" if names and len(names) < len(every) else ""
    return f"Cannot be judged{about}. That is not a clean result."


def _quietly(view: RunView) -> str:
    """Over what a run was ok: readings that were not judged do not count."""
    words = {State.OK, State.WARN, State.ALARM}
    clear = sum(bool(r.verdicts) and r.overall in words for r in view.rows)
    if view.in_part:
        return f"in {count(clear, 'reading')}, the telling ones of {view.total:,}"
    if clear == len(view.rows):
        return f"in {count(clear, 'reading')}"
    return f"in the {clear:,} of {count(len(view.rows), 'reading')} that could be judged"


def _reason(view: RunView, state: str, findings: Sequence[Finding]) -> str:
    telling = next((f.telling for f in findings if f.state == state and f.telling), None)
    if telling is None or (state == "unknown" and view.problems):
        return clean(view.problems[0], 2000) if view.problems else ""
    return sentence(clean(telling.reason, 2000).split(". ", 1)[0])


def _worth(state: str, findings: Sequence[Finding]) -> str:
    """What stands behind the last verdict: the judge's reason after its first sentence."""
    last = next((f.last for f in findings if f.state == state and f.last), None)
    if last is None or state not in ("ok", "warn", "alarm"):
        return ""
    words = clean(last.reason, 2000).partition(". ")[2]
    return sentence(words or CALIBRATION.get(last.calibration, last.calibration))


def _account(state: str, findings: Sequence[Finding]) -> tuple[str, ...]:
    """Of the finding to look at first, the latest explanation that there is."""
    first = next((f for f in findings if f.state == state and f.telling), None)
    if first is None:
        return ()
    explanations = (v.account for v in (first.last, first.telling) if v is not None)
    return next((tuple(clean(s, 2000) for s in account) for account in explanations if account), ())
