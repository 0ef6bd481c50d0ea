"""Trackio's alerts, through a module of its own shape: a run that only its own thread sees."""

from __future__ import annotations

import contextvars
import enum
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.live.test_monitor import lora_model
from wvmonitor.errors import SettingsError
from wvmonitor.journal import writes
from wvmonitor.journal.alerts import Alert
from wvmonitor.journal.outbox import DeliveryError
from wvmonitor.live.monitor import Monitor
from wvmonitor.live.monitor import Run as TrainingRun
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.notifier import Attending
from wvmonitor.outputs.trackio import TrackioNotifier
from wvmonitor.vectors import LowRankUpdate, TaskVector

Make = Callable[..., Alert]
Level = enum.Enum("Level", ["INFO", "WARN", "ERROR"])


class Run:
    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []

    def alert(self, **values: Any) -> None:
        self.alerts.append(values)


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> contextvars.ContextVar[Run | None]:
    """What `trackio.init` would set, in the thread that calls it."""
    variable: contextvars.ContextVar[Run | None] = contextvars.ContextVar("run", default=None)
    module = SimpleNamespace(AlertLevel=Level, context_vars=SimpleNamespace(current_run=variable))
    monkeypatch.setitem(sys.modules, "trackio", module)
    return variable


def test_the_worker_alerts_the_training_threads_run(
    current: contextvars.ContextVar[Run | None], make_alert: Make
) -> None:
    """The run is noted where it can be seen, and used where alerts are delivered."""
    (notifier,) = MonitorSettings(notifiers=[{"kind": "trackio"}]).build_notifiers().values()
    assert isinstance(notifier, Attending)
    with pytest.raises(DeliveryError) as early:
        notifier.send(make_alert(), timeout=1)
    assert early.value.retryable
    run = Run()
    current.set(run)
    notifier.attend()
    worker = threading.Thread(target=notifier.send, args=(make_alert(), 1.0))
    worker.start()
    worker.join()
    (alert,) = run.alerts
    assert alert["level"] is Level.ERROR
    assert alert["text"].startswith("score 0.2 above 0.1\n")


def test_without_trackio_the_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training starts, with what to install."""
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(SettingsError, match="pip install trackio"):
        TrackioNotifier()


@pytest.mark.parametrize("disk_seconds", [0.0, 0.3], ids=["fast-disk", "slow-disk"])
def test_a_watched_run_alerts_on_the_run_it_logs_to(
    disk_seconds: float,
    current: contextvars.ContextVar[Run | None],
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trackio's run may begin after the monitor, and the last reading's alert is told as well."""
    written = writes.transaction

    def slowly(*values: Any) -> Any:
        time.sleep(disk_seconds)
        return written(*values)

    monkeypatch.setattr(writes, "transaction", slowly)
    model, run = lora_model(tiny_base), Run()
    monitor = Monitor(
        tiny_bank_folder, every_n_steps=1, journal_dir=tmp_path, notifiers=[{"kind": "trackio"}]
    )
    monitor.start(model, TrainingRun(planned_steps=9))
    current.set(run)
    for step in (1, 2):  # the second is the first to warn
        towards(model, monitor.bank["evil"].vector, step)
        monitor.observe(model, step)
    monitor.close()
    assert [alert["level"] for alert in run.alerts] == [Level.WARN]
    assert "evil" in run.alerts[0]["title"]


def towards(model: Any, vector: TaskVector, step: int) -> None:
    """Make the adapter the reference itself, times the step."""
    with torch.no_grad():
        for path, module in model.get_base_model().named_modules():
            if f"{path}.weight" in vector and hasattr(module, "lora_A"):
                update = vector.update(f"{path}.weight")
                assert isinstance(update, LowRankUpdate)
                module.lora_A["default"].weight.copy_(update.right)
                module.lora_B["default"].weight.copy_(step * update.left)
