"""Alerts through the W&B run that is logged to; W&B tells Slack or mail as its user set it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from wvmonitor.errors import SettingsError
from wvmonitor.journal.alerts import Alert
from wvmonitor.journal.outbox import DeliveryError
from wvmonitor.outputs.chat import body


@dataclass(frozen=True)
class WandbNotifier:
    """Calls `wandb.run.alert` (https://docs.wandb.ai/guides/runs/alert).

    W&B queues and sends alerts itself, so "delivered" means taken by its client.

    Attributes:
        forgetful: W&B keeps alerts with the run, so nothing is repeated.

    Raises:
        SettingsError: wandb is not installed.
    """

    forgetful: bool = False

    def __post_init__(self) -> None:
        try:
            importlib.import_module("wandb")
        except ModuleNotFoundError:
            raise SettingsError("alerts through W&B need wandb: pip install wandb") from None

    def send(self, alert: Alert, timeout: float) -> None:  # noqa: ARG002  nothing here waits
        """Deliver one alert; with no run in progress it waits for one."""
        run = importlib.import_module("wandb").run
        if run is None:
            raise DeliveryError("no W&B run is in progress", retryable=True)
        if alert.status == "resolved" or alert.severity == "info":
            level = "INFO"
        else:
            level = "ERROR" if alert.severity == "alarm" else "WARN"
        try:
            run.alert(title=alert.title, text=body(alert), level=level, wait_duration=0)
        except Exception as error:  # noqa: BLE001  the client may raise what it likes
            raise DeliveryError(f"W&B: {type(error).__name__}", retryable=True) from None
