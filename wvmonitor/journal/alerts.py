"""Episodes: when verdicts on one reference become one alert, and when that alert is over.

A noisy verdict must not page someone at every reading. So an episode opens at the first verdict at
or above the level asked for, fires once (once more if a warning becomes an alarm), and is resolved
only after several readings in a row are ok. A verdict that is unknown or warming neither opens an
episode nor helps to close one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

from wvmonitor.detection.explanation import for_elsewhere, in_full
from wvmonitor.detection.verdict import CalibrationStatus, Verdict

Severity = Literal["warn", "alarm"]
Status = Literal["firing", "resolved"]

_RANK = {"warn": 1, "alarm": 2}


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
    """

    targets: tuple[str, ...] = ()
    level: Severity = "warn"
    resolve_after: int = 3
    expected: tuple[str, ...] = ()
    refreshed: tuple[str, ...] = ()
    refresh_seconds: float = 3600.0


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
        run: the run it is about.
        reference: the behaviour it is about.
        status: whether the episode begins (or goes on), or is over.
        severity: the worst verdict of the episode.
        replaces: the severity under which this episode was announced before, if it rose.
        reason: the verdict's one sentence.
        account: what it means and what to do, one sentence each, for readers on any machine.
        score: the deciding score, if there is one.
        threshold: what it was held against, if there is one.
        calibration: what the threshold rests on.
        step: the optimiser step of the reading.
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

    @property
    def words(self) -> str:
        """Everything there is to say, as one text."""
        return in_full(self.reason, self.account)


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
