"""Alerts on the Trackio run that is logged to; Trackio shows them and tells its webhook, if any."""

from __future__ import annotations

import importlib
from typing import Any

from wvmonitor.errors import SettingsError
from wvmonitor.journal.alerts import Alert
from wvmonitor.journal.outbox import DeliveryError
from wvmonitor.outputs.chat import body


class TrackioNotifier:
    """Calls `alert` of the current Trackio run.

    Trackio keeps the current run in a context variable, which only the thread that began it sees:
    so it is noted there (`attend`), and used by the outbox's worker.

    Attributes:
        forgetful: Trackio keeps alerts with the run, so nothing is repeated.

    Raises:
        SettingsError: trackio is not installed.
    """

    forgetful = False

    def __init__(self) -> None:
        try:
            importlib.import_module("trackio")
        except ModuleNotFoundError:
            raise SettingsError("alerts through Trackio need it: pip install trackio") from None
        self._run: Any = None

    def attend(self) -> None:
        """Note the run that the training thread logs to."""
        current = importlib.import_module("trackio").context_vars.current_run.get()
        self._run = self._run if current is None else current

    def send(self, alert: Alert, timeout: float) -> None:  # noqa: ARG002  nothing here waits
        """Deliver one alert; with no run in progress it waits for one."""
        if self._run is None:
            raise DeliveryError("no Trackio run is in progress", retryable=True)
        levels = importlib.import_module("trackio").AlertLevel
        if alert.status == "resolved" or alert.severity == "info":
            level = levels.INFO
        else:
            level = levels.ERROR if alert.severity == "alarm" else levels.WARN
        try:
            self._run.alert(title=alert.title, text=body(alert), level=level)
        except Exception as error:  # noqa: BLE001  the client may raise what it likes
            raise DeliveryError(f"Trackio: {type(error).__name__}", retryable=True) from None
