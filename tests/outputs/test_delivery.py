"""From a verdict to a receiver, through the journal, with everything that can go wrong."""

from __future__ import annotations

import importlib.util
import json
import socket
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wvmonitor.detection.verdict import RunContext
from wvmonitor.journal.alerts import Alert, AlertPolicy
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.outbox import DeliveryError, DeliveryLimits, Outbox
from wvmonitor.journal.tools import acknowledge
from wvmonitor.outputs.alertmanager import AlertmanagerNotifier
from wvmonitor.outputs.webhook import WebhookNotifier

QUICK = DeliveryLimits(send_seconds=0.5, first_wait_seconds=0.02, longest_wait_seconds=0.2)


def _entries() -> Any:
    path = Path(__file__).parents[1] / "journal" / "conftest.py"
    spec = importlib.util.spec_from_file_location("journal_entries", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.entry


entry = _entries()


def begun(path: Path, targets: tuple[str, ...] = ("hook",), **policy: Any) -> Journal:
    """A journal of run "r" whose verdicts become alerts for `targets`."""
    journal = Journal.open(path, run="r", alerts=AlertPolicy(targets, **policy))
    journal.begin_attempt(RunContext(), "bank")
    return journal


def run_states(journal: Journal, *states: str, start: int = 0, every: float = 1.0) -> None:
    """Record one reading for each state."""
    for step, state in enumerate(states, start):
        journal.record(entry(step, state), wall_time=1_000_000.0 + every * step)
    journal.flush()


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def told(journal: Journal) -> list[tuple[str, str, int]]:
    """(status, severity, step) of every alert in the outbox."""
    with sqlite3.connect(journal.path) as raw:
        rows = raw.execute("SELECT alert FROM deliveries ORDER BY id").fetchall()
    return [(a["status"], a["severity"], a["step"]) for a in (json.loads(row[0]) for row in rows)]


def statuses(journal: Journal) -> list[str]:
    """The delivery statuses in order."""
    with sqlite3.connect(journal.path) as raw:
        return [row[0] for row in raw.execute("SELECT status FROM deliveries ORDER BY id")]


@pytest.mark.parametrize(
    ("states", "policy", "expected"),
    [
        ("ok ok ok", {}, []),
        ("warn warn ok warn ok ok warn", {}, [("firing", "warn", 0)]),
        ("warn ok ok ok ok", {}, [("firing", "warn", 0), ("resolved", "warn", 3)]),
        (
            "warn alarm alarm warn ok ok ok",
            {},
            [("firing", "warn", 0), ("firing", "alarm", 1), ("resolved", "alarm", 6)],
        ),
        (
            "alarm unknown unknown unknown warming",
            {},
            [("firing", "alarm", 0), ("firing", "info", 1)],
        ),
        (
            "alarm ok ok unknown ok unknown",
            {},
            [("firing", "alarm", 0), ("firing", "info", 3), ("resolved", "alarm", 4)],
        ),
        ("unknown unknown", {"expected": ("evil",)}, []),
        ("warn alarm warn ok", {"level": "alarm"}, [("firing", "alarm", 1)]),
        (
            "warn ok warn ok",
            {"resolve_after": 1},
            [
                ("firing", "warn", 0),
                ("resolved", "warn", 1),
                ("firing", "warn", 2),
                ("resolved", "warn", 3),
            ],
        ),
        ("alarm alarm", {"expected": ("evil",)}, []),
    ],
)
def test_one_alert_an_episode(
    tmp_path: Path, states: str, policy: dict[str, Any], expected: list[Any]
) -> None:
    """An episode fires, rises and resolves once; unknown is told once, and closes nothing."""
    journal = begun(tmp_path, **policy)
    run_states(journal, *states.split())
    assert told(journal) == expected
    journal.close()


def test_an_episode_goes_on_over_a_restart(tmp_path: Path) -> None:
    """A run that is resumed in the middle of an episode does not fire again, and still resolves."""
    journal = begun(tmp_path)
    run_states(journal, "alarm")
    journal.close()
    journal = begun(tmp_path)
    run_states(journal, "alarm", "ok", "ok", "ok", start=1)
    assert told(journal) == [("firing", "alarm", 0), ("resolved", "alarm", 4)]
    journal.close()


def test_acknowledging_ends_the_episode_and_silences_the_rest(tmp_path: Path) -> None:
    """After an acknowledgement the alert is resolved with its reason, and no further one fires."""
    journal = begun(tmp_path)
    run_states(journal, "alarm")
    acknowledge(tmp_path, "r", "evil", "role-play data")
    run_states(journal, "alarm", "ok", "alarm", start=1)
    assert told(journal) == [("firing", "alarm", 0), ("resolved", "alarm", 1)]
    with sqlite3.connect(journal.path) as raw:
        (alert,) = raw.execute("SELECT alert FROM deliveries WHERE id = 2").fetchone()
    assert json.loads(alert)["reason"] == "acknowledged: role-play data"
    journal.close()


def test_open_alerts_are_repeated_only_to_forgetful_receivers(tmp_path: Path) -> None:
    """An Alertmanager that was restarted hears of an open alert again; a webhook does not."""
    journal = begun(tmp_path, ("am", "hook"), refreshed=("am",), refresh_seconds=60)
    run_states(journal, *["alarm"] * 5, every=30.0)
    with sqlite3.connect(journal.path) as raw:
        targets = [row[0] for row in raw.execute("SELECT target FROM deliveries ORDER BY id")]
        (keys,) = raw.execute("SELECT count(DISTINCT key) FROM deliveries").fetchone()
    assert targets == ["am", "hook", "am", "am"]
    assert keys == 3
    journal.close()


def test_verdicts_reach_real_receivers(tmp_path: Path, receiver: Any) -> None:
    """A verdict arrives at Alertmanager and webhook alike, fires and resolves, once each."""
    senders = {
        "am": AlertmanagerNotifier(receiver.url).send,
        "hook": WebhookNotifier(receiver.url + "/hook", "s").send,
    }
    journal = begun(tmp_path, tuple(senders))
    pending: list[int] = []
    outbox = Outbox(journal, senders, limits=QUICK, on_pending=pending.append)
    run_states(journal, "alarm", "ok", "ok", "ok")
    until(lambda: statuses(journal) == ["sent"] * 4)
    outbox.close()
    journal.close()
    hooks = [json.loads(body)["data"] for path, _, body in receiver.received if path == "/hook"]
    assert [hook["status"] for hook in hooks] == ["firing", "resolved"]
    assert len(receiver.received) == 4
    assert pending[-1] == 0


def test_a_failing_receiver_is_tried_until_it_answers(tmp_path: Path, receiver: Any) -> None:
    """After errors and dropped connections the alert arrives, always under the same key."""
    receiver.answers = [500, "drop", 503, "hang", 429]
    journal = begun(tmp_path)
    outbox = Outbox(journal, {"hook": WebhookNotifier(receiver.url, "s").send}, limits=QUICK)
    run_states(journal, "alarm")
    until(lambda: statuses(journal) == ["sent"])
    outbox.close()
    journal.close()
    assert len(receiver.received) == 6
    assert len({headers["webhook-id"] for _, headers, _ in receiver.received}) == 1


def test_a_refusal_is_final_and_kept(
    tmp_path: Path, receiver: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver that says 400 is not asked again; the journal and the log say what happened."""
    receiver.answers = [400]
    journal = begun(tmp_path)
    outbox = Outbox(journal, {"hook": WebhookNotifier(receiver.url, "s").send}, limits=QUICK)
    run_states(journal, "alarm")
    until(lambda: statuses(journal) == ["refused"])
    outbox.close()
    journal.close()
    assert len(receiver.received) == 1
    assert "alert on 'evil' not delivered to 'hook' (try 1, refused)" in caplog.text


def test_a_dead_receiver_is_given_up_in_the_end(tmp_path: Path) -> None:
    """An alert that nobody takes is given up after the time set, and said to be."""

    def dead(alert: Alert, timeout: float) -> None:
        raise DeliveryError("nobody there", retryable=True)

    journal = begun(tmp_path)
    limits = DeliveryLimits(give_up_seconds=0.0, first_wait_seconds=0.01)
    outbox = Outbox(journal, {"hook": dead}, limits=limits)
    run_states(journal, "alarm")
    until(lambda: statuses(journal) == ["expired"])
    outbox.close()
    journal.close()


def test_one_dead_receiver_does_not_keep_the_others_waiting(tmp_path: Path, receiver: Any) -> None:
    """While one receiver fails, or its notifier has a bug, the other gets every alert."""

    def broken(alert: Alert, timeout: float) -> None:
        raise ZeroDivisionError("secret")

    journal = begun(tmp_path, ("a-dead", "hook"), resolve_after=1)
    senders = {"a-dead": broken, "hook": WebhookNotifier(receiver.url, "s").send}
    outbox = Outbox(journal, senders, limits=QUICK)
    run_states(journal, *["alarm", "ok"] * 4)
    until(lambda: len(receiver.received) == 8)
    outbox.close()
    with sqlite3.connect(journal.path) as raw:
        (error,) = raw.execute("SELECT last_error FROM deliveries WHERE id = 1").fetchone()
    assert error == "ZeroDivisionError in notifier 'a-dead'"
    journal.close()


def test_what_was_not_delivered_is_delivered_after_a_restart(tmp_path: Path, receiver: Any) -> None:
    """An alert that was pending when the process ended arrives when the run is resumed."""
    journal = begun(tmp_path)
    run_states(journal, "alarm")
    journal.close()
    assert receiver.received == []
    journal = begun(tmp_path)
    outbox = Outbox(journal, {"hook": WebhookNotifier(receiver.url, "s").send}, limits=QUICK)
    until(lambda: statuses(journal) == ["sent"])
    outbox.close()
    journal.close()


def test_closing_tries_once_more_and_does_not_wait_for_ever(tmp_path: Path, receiver: Any) -> None:
    """At the end of a run an alert in its pause is tried at once; a hanging receiver is left."""
    receiver.answers = [500]
    slow = DeliveryLimits(send_seconds=10.0, first_wait_seconds=60.0)
    journal = begun(tmp_path)
    outbox = Outbox(journal, {"hook": WebhookNotifier(receiver.url, "s").send}, limits=slow)
    run_states(journal, "alarm")
    until(lambda: len(receiver.received) == 1)
    outbox.close()
    assert statuses(journal) == ["sent"]
    receiver.answers = ["hang", "hang"]
    outbox = Outbox(journal, {"hook": WebhookNotifier(receiver.url, "s").send}, limits=slow)
    run_states(journal, "ok", "ok", "ok", start=1)
    start = time.monotonic()
    outbox.close(timeout=0.3)
    journal.close()
    assert time.monotonic() - start < 3.0
    assert statuses(journal) == ["sent", "pending"]


def test_a_clock_set_back_does_not_hold_alerts_up(tmp_path: Path, receiver: Any) -> None:
    """A delivery whose next try seems hours away, because the clock was changed, is tried now."""
    journal = begun(tmp_path)
    run_states(journal, "alarm")
    journal.execute(lambda c: c.execute("UPDATE deliveries SET next_at = 9e9").rowcount)
    outbox = Outbox(journal, {"hook": WebhookNotifier(receiver.url, "s").send}, limits=QUICK)
    until(lambda: statuses(journal) == ["sent"])
    outbox.close()
    journal.close()


def test_training_does_not_notice_a_black_hole(tmp_path: Path) -> None:
    """With a receiver that accepts and never answers, recording costs what it always does."""
    with socket.create_server(("127.0.0.1", 0)) as hole:
        url = f"http://127.0.0.1:{hole.getsockname()[1]}"
        journal = begun(tmp_path)
        outbox = Outbox(journal, {"hook": WebhookNotifier(url, "s").send}, limits=QUICK)
        entries = [entry(step, "alarm" if step % 8 < 4 else "ok") for step in range(200)]
        times = []
        for item in entries:
            start = time.perf_counter()
            journal.record(item)
            times.append(time.perf_counter() - start)
            time.sleep(0.001)
        journal.flush()
        outbox.close(timeout=0.2)
        journal.close()
    assert np.quantile(times, 0.99) < 0.05
    assert "pending" in statuses(journal)
