"""How a run ended, as metrics and notifiers say it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import forks
from tests.live.test_monitor import lora_model, push
from tests.receiver import Receiver
from wvmonitor.errors import JournalError
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.reader import JournalReader
from wvmonitor.live.monitor import Monitor, Run
from wvmonitor.outputs.prometheus import PrometheusExporter


def state_of(page: bytes) -> str:
    """The state that a page shows."""
    lines = [line for line in page.decode().splitlines() if line.startswith("wvmonitor_run_state{")]
    (shown,) = [line for line in lines if line.endswith(" 1.0")]
    return shown.partition('state="')[2].partition('"')[0]


def watched(
    tiny_base: Path, bank: Path, folder: Path | None, **settings: Any
) -> tuple[Monitor, PrometheusExporter, Any]:
    """A monitor of a model that moves, with metrics to look at."""
    exporter = PrometheusExporter(port=None)
    monitor = Monitor(bank, exporters=[exporter], **settings)
    model = lora_model(tiny_base)
    monitor.start(model, Run(folder=folder, planned_steps=57))
    return monitor, exporter, model


def test_a_loop_that_is_closed_early_has_ended(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Closed at 56 of 57 steps, the last weights are read, and the run is said to have ended."""
    monitor, exporter, model = watched(tiny_base, tiny_bank_folder, tmp_path)
    assert state_of(exporter.page()) == "training"
    for step in range(1, 57):
        push(model, 0.001, seed=step)
        monitor.observe(model, step)
    assert monitor.last is not None
    assert monitor.last.scores.step == 50
    monitor.close()
    assert state_of(exporter.page()) == "ended"
    reader = JournalReader(tmp_path)
    steps = [row.step for row in reader.trajectory(reader.runs()[0])]
    assert steps == [0, 10, 20, 30, 40, 50, 56]
    monitor.close()  # twice is fine


@pytest.mark.parametrize(
    ("error", "state"),
    [(ValueError, "training"), (KeyboardInterrupt, "stopped"), (SystemExit, "stopped")],
)
def test_a_run_that_fails_has_not_ended(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, error: type[BaseException], state: str
) -> None:
    """Closing on the way of an exception is no end: the run is missed; Ctrl-C has stopped it."""
    monitor, exporter, model = watched(tiny_base, tiny_bank_folder, tmp_path)

    def train() -> None:
        try:
            monitor.observe(model, 10)
            raise error
        finally:
            monitor.close()

    with pytest.raises(error):
        train()
    assert state_of(exporter.page()) == state


def test_a_run_that_the_monitor_stops_is_stopped(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """A stop that was asked for is no end, and no disappearance."""
    monitor, exporter, model = watched(
        tiny_base, tiny_bank_folder, tmp_path, action="stop", allow_uncalibrated_stop=True,
        action_level="warn",
    )  # fmt: skip
    evil = dict(monitor.bank["evil"].vector.updates())
    for step in (10, 20):
        with torch.no_grad():
            for name, module in model.named_modules():
                update = evil.get(name.removeprefix("base_model.model.") + ".weight")
                if update is not None and hasattr(module, "lora_A"):
                    module.lora_A["default"].weight.copy_(update.right)
                    module.lora_B["default"].weight.copy_(update.left)
        observation = monitor.observe(model, step)
        assert observation is not None
        asked = monitor.action(observation)
    assert asked == "stop"
    monitor.close()
    assert state_of(exporter.page()) == "stopped"


def told(receiver: Receiver) -> list[dict[str, Any]]:
    """The alerts that a webhook was sent."""
    return [json.loads(body)["data"] for _, _, body in receiver.received]


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("planted")


@pytest.mark.parametrize("with_journal", [True, False])
def test_a_monitor_that_disables_itself_says_so_once(
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    with_journal: bool,
) -> None:
    """Notifiers and metrics learn that nobody watches, with a journal to deliver it and without."""
    monitor, exporter, model = watched(
        tiny_base,
        tiny_bank_folder,
        tmp_path if with_journal else None,
        notifiers=[{"kind": "webhook", "url": receiver.url, "secret": "s"}],
        every_n_steps=1,
    )
    monkeypatch.setattr(monitor.bank, "measure", broken)
    for step in range(1, 8):
        monitor.observe(model, step)
    assert state_of(exporter.page()) == "disabled"
    monitor.close()
    assert state_of(exporter.page()) == "disabled"  # whatever became of the run: nobody has seen it
    (alert,) = [a for a in told(receiver) if a["kind"] == "disabled"]
    assert alert["severity"] == "info"
    assert "not watched since step 3" in alert["reason"]
    assert alert["host"] == os.uname().nodename


def test_a_journal_that_is_lost_is_told_past_it(
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where readings can be kept no more, notifiers learn of it once, though nothing keeps that."""
    monitor, _, model = watched(
        tiny_base,
        tiny_bank_folder,
        tmp_path,
        notifiers=[{"kind": "webhook", "url": receiver.url, "secret": "s"}],
        every_n_steps=1,
    )

    def refuse(*_: Any, **__: Any) -> Any:
        raise JournalError("the disk is gone")

    monkeypatch.setattr(Journal, "record", refuse)
    for step in range(1, 4):
        monitor.observe(model, step)
    monitor.close()
    (alert,) = [a for a in told(receiver) if a["kind"] == "journal lost"]
    assert alert["reason"] == "the disk is gone"


def test_a_reading_that_the_writer_loses_is_told(
    tiny_base: Path,
    tiny_bank_folder: Path,
    tmp_path: Path,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that is damaged under the writer's hands is a lost journal."""
    monitor, _, model = watched(
        tiny_base,
        tiny_bank_folder,
        tmp_path,
        notifiers=[{"kind": "webhook", "url": receiver.url, "secret": "s"}],
        every_n_steps=1,
    )

    def damaged(*_: Any, **__: Any) -> Any:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr("wvmonitor.journal.writes.transaction", damaged)
    push(model)
    monitor.observe(model, 1)
    monitor.close()
    (alert,) = [a for a in told(receiver) if a["kind"] == "journal lost"]
    assert "malformed" in alert["reason"]


def job(base: Path, bank: Path, out: Path, gateway: str, port: Connection) -> None:
    """A run that goes on until it is stopped, scraped and pushed."""
    monitor = Monitor(
        bank,
        every_n_steps=1,
        prometheus={
            "enabled": True,
            "port": 0,
            "linger": 10,
            "pushgateway": {"url": gateway, "interval": 0.05, "delete_after": 0.5},
        },
    )
    model = lora_model(base)
    monitor.start(model, Run(folder=out, planned_steps=1000))
    monitor.observe(model, 1)
    (exporter,) = [e for e in monitor._outputs._exporters if isinstance(e, PrometheusExporter)]
    port.send(exporter.port)
    while True:
        time.sleep(0.02)


def test_sigterm_says_that_the_run_was_stopped(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """A preempted job is seen to be stopped, scraped or pushed, and leaves nothing behind."""
    import urllib.request

    from tests.outputs.test_pushgateway import Gateway

    gateway = Gateway()
    heard, port = Pipe(duplex=False)
    training = forks.started(job, tiny_base, tiny_bank_folder, tmp_path, gateway.url, port)
    assert heard.poll(60)
    url = f"http://127.0.0.1:{heard.recv()}/metrics"

    def scraped() -> bytes:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bytes(reply.read())

    assert state_of(scraped()) == "training"
    training.terminate()
    time.sleep(0.3)
    assert state_of(scraped()) == "stopped"
    training.join(20)
    assert training.exitcode == -signal.SIGTERM
    puts = [body for method, _, _, body in gateway.requests if method == "PUT"]
    assert state_of(puts[-1]) == "stopped"
    assert gateway.requests[-1][0] == "DELETE"
    gateway.server.shutdown()
    gateway.server.server_close()
    assert JournalReader(tmp_path).runs()
