"""Alerts straight to a Prometheus Alertmanager (API v2), with no Prometheus in between."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from wvmonitor.journal.alerts import Alert, Severity
from wvmonitor.outputs.http import SendPolicy, check_url, request

SEVERITY_LABELS: Mapping[Severity, str] = {
    "info": "info",
    "warn": "warning",
    "alarm": "critical",
}


@dataclass(frozen=True)
class AlertmanagerNotifier:
    """Fires and resolves the alert `WVMonitorDrift`, one for each run, reference and severity.

    Events (`WVMonitorUnjudged`, `Disabled`, `JournalLost`) fire once, and end by themselves.

    Alertmanager keeps alerts in memory, so an open one is repeated each hour, and ends by itself
    `hold_seconds` after the last repetition (a run that was killed does not page for ever).

    Attributes:
        url: where Alertmanager is, without /api/v2/alerts.
        labels: more labels for every alert, for routing.
        hold_seconds: how long an alert holds that is not repeated, in seconds.
        forgetful: open alerts must be repeated.
    """

    url: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    policy: SendPolicy = field(default_factory=SendPolicy)
    hold_seconds: float = 86_400.0
    forgetful: bool = True

    def __post_init__(self) -> None:
        check_url(self.url, self.policy)

    def send(self, alert: Alert, timeout: float) -> None:
        """Deliver one alert. Sending it again changes nothing, since labels identify it."""
        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        body = json.dumps(self._alerts(alert)).encode()
        url = f"{self.url.rstrip('/')}/api/v2/alerts"
        request("POST", url, body, headers, self.policy, timeout)

    def _alerts(self, alert: Alert) -> list[dict[str, object]]:
        """The alert, and the end of the milder one it takes the place of."""
        over = alert.status == "resolved"
        end = alert.time if over else alert.time + self.hold_seconds
        alerts = [self._alert(alert, alert.severity, end)]
        if alert.replaces is not None:
            alerts.append(self._alert(alert, alert.replaces, alert.time))
        return alerts

    def _alert(self, alert: Alert, severity: Severity, end: float) -> dict[str, object]:
        summary = (
            f"Run {alert.run} drifts towards {alert.reference}"
            if alert.kind == "drift"
            else alert.title
        )
        return {
            "labels": {
                **self.labels,
                "alertname": alert.name,
                "run": alert.run,
                "severity": SEVERITY_LABELS[severity],
                **({"reference": alert.reference} if alert.reference else {}),
            },
            "annotations": {
                "summary": summary,
                "description": alert.words,
                "calibration": alert.calibration,
                **alert.facts,
            },
            "startsAt": _timestamp(alert.since),
            "endsAt": _timestamp(end),
        }


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
