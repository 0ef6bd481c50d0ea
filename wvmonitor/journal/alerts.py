"""Episodes: when verdicts on one reference become one alert, and when that alert is over.

A noisy verdict must not page someone at every reading. So an episode opens at the first verdict at
or above the level asked for, fires once (once more if a warning becomes an alarm), and is resolved
only after several readings in a row are ok. A verdict that is unknown or warming neither opens an
episode nor helps to close one.

Beside the episodes there are events: a behaviour that cannot be judged, a monitor that disabled
itself, a journal that is lost. Each is told once a run, at the lowest severity.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import quote

from wvmonitor.detection.explanation import for_elsewhere, in_full
from wvmonitor.detection.judgement import CalibrationStatus, Verdict

Severity = Literal["info", "warn", "alarm"]
Status = Literal["firing", "resolved"]
Kind = Literal["drift", "unjudged", "disabled", "journal lost"]

ALERT_NAMES: Mapping[Kind, str] = {
    "drift": "WVMonitorDrift",
    "unjudged": "WVMonitorUnjudged",
    "disabled": "WVMonitorDisabled",
    "journal lost": "WVMonitorJournalLost",
}
"""What an alert is called in Alertmanager, and its page among the runbooks."""

_RANK = {"warn": 1, "alarm": 2}


@dataclass(frozen=True)
class Whereabouts:
    """Where a run is, and where to read on; what whoever is woken asks first.

    Attributes:
        runbooks: base URL of the pages on each alert.
        dashboard: URL of a dashboard; `var-run` is added to it.
        checkpoints: the steps of a run's checkpoints on disk.
    """

    host: str | None = None
    job: str | None = None
    runbooks: str | None = None
    dashboard: str | None = None
    checkpoints: Callable[[str], Sequence[int]] = lambda _: ()


@dataclass(frozen=True)
class AlertPolicy:
    """Who is told, and from when on.

    Attributes:
        targets: names of the notifiers; every alert is delivered to each.
        level: the mildest verdict that opens an episode.
        resolve_after: readings in a row that must be ok before an episode is over.
        expected: references whose drift is wanted in this run: no alerts for them.
        refreshed: those of `targets` that forget an alert which is not repeated (Alertmanager).
        refresh_seconds: how often an open episode is repeated to them.
        where: what every alert says of the run's place.
    """

    targets: tuple[str, ...] = ()
    level: Literal["warn", "alarm"] = "warn"
    resolve_after: int = 3
    expected: tuple[str, ...] = ()
    refreshed: tuple[str, ...] = ()
    refresh_seconds: float = 3600.0
    where: Whereabouts = Whereabouts()


@dataclass(frozen=True)
class Episode:
    """Where the alerts on one reference of one run stand.

    Attributes:
        number: episodes so far, this one included.
        severity: the worst verdict of the open episode; None while none is open.
        since: when it opened, seconds since 1970.
        clear: readings in a row that were ok since.
        sent: when it was last told to anyone.
    """

    number: int = 0
    severity: Severity | None = None
    since: float = 0.0
    clear: int = 0
    sent: float = 0.0


@dataclass(frozen=True)
class Alert:
    """What a notifier is given to say.

    Attributes:
        key: the same whenever this alert is delivered again, so that a receiver can tell.
        reference: the behaviour it is about; empty where it is about the whole run.
        status: whether the episode begins (or goes on), or is over.
        severity: the worst verdict of the episode.
        replaces: the severity under which this episode was announced before, if it rose.
        reason: the verdict's one sentence.
        account: what it means and what to do, one sentence each, for readers on any machine.
        last_ok_step: of the last reading that was ok, if there was one.
        checkpoint: step of the newest checkpoint on disk that is no later than that.
        runbook_url: the page that says what this alert means and what to do.
        since: when the episode opened, seconds since 1970.
        time: when the reading was made, seconds since 1970.
    """

    key: str
    run: str
    reference: str
    status: Status
    severity: Severity
    replaces: Severity | None
    reason: str
    score: float | None
    threshold: float | None
    calibration: CalibrationStatus
    step: int | None
    since: float
    time: float
    account: tuple[str, ...] = ()
    kind: Kind = "drift"
    planned_steps: int | None = None
    dose: float | None = None
    last_ok_step: int | None = None
    checkpoint: int | None = None
    host: str | None = None
    job: str | None = None
    runbook_url: str | None = None
    dashboard_url: str | None = None

    @property
    def name(self) -> str:
        """What the alert is called, as in Alertmanager."""
        return ALERT_NAMES[self.kind]

    @property
    def title(self) -> str:
        """One line: what, where, when."""
        at = "" if self.step is None else f" at step {self.step}"
        if self.status == "resolved":
            return f"{self.reference} in {self.run}: over{at}"
        if self.kind == "drift":
            return f"{self.severity}: {self.reference} in {self.run}{at}"
        what = {
            "unjudged": f"cannot be judged for {self.reference}",
            "disabled": "is not watched any more",
            "journal lost": "has lost its journal",
        }[self.kind]
        return f"{self.severity}: {self.run} {what}{at}"

    @property
    def words(self) -> str:
        """Everything there is to say, as one text."""
        return in_full(self.reason, self.account)

    @property
    def facts(self) -> dict[str, str]:
        """What is known, by name, for people: how bad, how far, where, and what to go back to."""
        facts: dict[str, str | None] = {
            "score": _number(self.score),
            "threshold": _number(self.threshold),
            "step": None if self.step is None else str(self.step),
            "planned_steps": None if self.planned_steps is None else str(self.planned_steps),
            "dose": self._dose(),
            "go_back_to": self._go_back_to() if self.kind == "drift" else None,
            "host": self.host,
            "job": self.job,
            "runbook_url": self.runbook_url,
            "dashboard_url": self.dashboard_url,
        }
        return {name: text for name, text in facts.items() if text}

    def _dose(self) -> str | None:
        if self.dose is None or not math.isfinite(self.dose):
            return None
        return f"as if {self.dose:.2g} × {self.reference} had been added to the base"

    def _go_back_to(self) -> str | None:
        if self.status == "resolved":
            return None
        if self.checkpoint is not None:
            return f"checkpoint-{self.checkpoint}"
        if self.last_ok_step is not None:
            return f"a checkpoint of step {self.last_ok_step} or before"
        return "the base: no earlier reading is known to be ok"


def located(
    alert: Alert,
    where: Whereabouts,
    *,
    planned_steps: int | None = None,
    dose: float | None = None,
    last_ok_step: int | None = None,
) -> Alert:
    """The alert with what whoever is woken asks first."""
    earlier = [] if last_ok_step is None else where.checkpoints(alert.run)
    before = [step for step in earlier if last_ok_step is not None and step <= last_ok_step]
    run, reference = quote(alert.run, safe=""), quote(alert.reference, safe="")
    return replace(
        alert,
        planned_steps=planned_steps,
        dose=dose,
        last_ok_step=last_ok_step,
        checkpoint=max(before, default=None),
        host=where.host,
        job=where.job,
        runbook_url=where.runbooks and f"{where.runbooks.rstrip('/')}/{alert.name}/",
        dashboard_url=where.dashboard
        and f"{where.dashboard}{'&' if '?' in where.dashboard else '?'}var-run={run}"
        + (f"&var-reference={reference}" if reference else ""),
    )


def event(
    kind: Kind, run: str, why: str, time: float, *, reference: str = "", step: int | None = None
) -> Alert:
    """An alert that something has happened once, with the same key whenever it happens again."""
    return Alert(
        key=hashlib.sha256("\0".join((run, kind, reference)).encode()).hexdigest()[:32],
        run=run,
        reference=reference,
        status="firing",
        severity="info",
        replaces=None,
        reason=why,
        score=None,
        threshold=None,
        calibration="uncalibrated",
        step=step,
        since=time,
        time=time,
        kind=kind,
    )


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


def advance(
    episode: Episode,
    verdict: Verdict,
    *,
    run: str,
    time: float,
    policy: AlertPolicy,
    bank: str,
    acknowledged: str | None = None,
) -> tuple[Episode, Alert | None, tuple[str, ...]]:
    """One verdict's effect on an episode: its next state, and what is to be told to which targets.

    `bank` is the fingerprint of the bank, for alerts name no folder. `acknowledged` is why someone
    silenced this reference in this run: an open episode is then over at once, and no further one
    opens.
    """
    verdict = replace(verdict, account=for_elsewhere(verdict.account, verdict.reference, bank))
    silenced = acknowledged is not None or verdict.reference in policy.expected
    rank = 0 if silenced else _RANK.get(verdict.state, 0)
    severity: Severity = "alarm" if verdict.state == "alarm" else "warn"
    raised = rank >= _RANK[policy.level]
    was = episode.severity
    if was is None:
        if not raised:
            return episode, None, ()
        opened = Episode(episode.number + 1, severity, since=time, sent=time)
        return opened, _alert(opened, verdict, run, time, "firing"), policy.targets
    if raised and rank > _RANK[was]:
        risen = replace(episode, severity=severity, clear=0, sent=time)
        return risen, _alert(risen, verdict, run, time, "firing", replaces=was), policy.targets
    if silenced or (verdict.state == "ok" and episode.clear + 1 >= policy.resolve_after):
        over = replace(episode, severity=None, clear=0, sent=time)
        alert = _alert(episode, verdict, run, time, "resolved")
        if silenced:
            alert = replace(alert, reason=f"acknowledged: {acknowledged or 'drift is expected'}")
        return over, alert, policy.targets
    if verdict.state == "ok":
        episode = replace(episode, clear=episode.clear + 1)
    elif rank:
        episode = replace(episode, clear=0)
    if policy.refreshed and abs(time - episode.sent) >= policy.refresh_seconds:
        episode = replace(episode, sent=time)
        alert = _alert(episode, verdict, run, time, "firing", salt=repr(time))
        return episode, alert, policy.refreshed
    return episode, None, ()


def _alert(
    episode: Episode,
    verdict: Verdict,
    run: str,
    time: float,
    status: Status,
    *,
    replaces: Severity | None = None,
    salt: str = "",
) -> Alert:
    """The alert of an open episode, with the key that makes it recognisable."""
    severity: Severity = episode.severity or "warn"
    parts = (run, verdict.reference, str(episode.number), repr(episode.since), status, severity)
    return Alert(
        key=hashlib.sha256("\0".join((*parts, salt)).encode()).hexdigest()[:32],
        run=run,
        reference=verdict.reference,
        status=status,
        severity=severity,
        replaces=replaces,
        reason=verdict.reason,
        score=verdict.score,
        threshold=verdict.threshold,
        calibration=verdict.calibration,
        step=verdict.step,
        since=episode.since,
        time=time,
        account=verdict.account,
    )
