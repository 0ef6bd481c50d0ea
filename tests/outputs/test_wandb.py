"""W&B's alerts: what its client is told, and, where wandb is installed, its real client."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wvmonitor.errors import SettingsError
from wvmonitor.journal.alerts import Alert
from wvmonitor.journal.outbox import DeliveryError
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.wandb import WandbNotifier

Make = Callable[..., Alert]


class Run:
    """Keeps what a run's `alert` is called with."""

    def __init__(self, *, broken: bool = False) -> None:
        self.alerts: list[dict[str, Any]] = []
        self.broken = broken

    def alert(self, **values: Any) -> None:
        if self.broken:
            raise ConnectionError
        self.alerts.append(values)


@pytest.mark.parametrize(
    ("values", "level"),
    [
        ({}, "ERROR"),
        ({"severity": "warn"}, "WARN"),
        ({"status": "resolved"}, "INFO"),
    ],
)
def test_alerts_have_wandbs_levels(
    monkeypatch: pytest.MonkeyPatch, make_alert: Make, values: dict[str, str], level: str
) -> None:
    """An alarm is an error, a warning a warning, and the end of an episode information."""
    run = Run()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run))
    (notifier,) = MonitorSettings(notifiers=[{"kind": "wandb"}]).build_notifiers().values()
    notifier.send(make_alert(**values), timeout=1)
    (alert,) = run.alerts
    assert alert["level"] == level
    assert alert["text"].startswith("score 0.2 above 0.1\n")
    assert "evil in r" in alert["title"]


@pytest.mark.parametrize("run", [None, Run(broken=True)], ids=["no run", "broken"])
def test_what_wandb_does_not_take_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, make_alert: Make, run: Run | None
) -> None:
    """Nothing of it reaches training."""
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run))
    with pytest.raises(DeliveryError) as failed:
        WandbNotifier().send(make_alert(), timeout=1)
    assert failed.value.retryable


def test_without_wandb_the_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training starts, with what to install."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SettingsError, match="pip install wandb"):
        MonitorSettings(notifiers=[{"kind": "wandb"}]).build_notifiers()


def test_the_real_client_takes_an_alert_from_another_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_alert: Make
) -> None:
    """The outbox's worker is not the thread that began the run."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = wandb.init(project="test", dir=tmp_path, settings=wandb.Settings(silent=True))
    problems: list[Exception] = []

    def deliver() -> None:
        try:
            WandbNotifier().send(make_alert(), timeout=5)
        except Exception as error:  # noqa: BLE001  to the thread that asks
            problems.append(error)

    worker = threading.Thread(target=deliver)
    worker.start()
    worker.join()
    run.finish()
    assert problems == []
