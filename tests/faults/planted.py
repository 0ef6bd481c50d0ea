"""The faults, by name."""

from __future__ import annotations

import functools
import socket
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.faults.runs import STEPS, Fault, Scene
from tests.receiver import Receiver
from wvmonitor.journal import journal as journal_module
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.outbox import DeliveryLimits, Outbox
from wvmonitor.journal.reader import JournalReader

HERE = "wvmonitor.integrations.transformers"


class Panic(BaseException):
    """What a library of Rust raises when it panics: no Exception."""


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("planted")


def panicking(*_: Any, **__: Any) -> Any:
    raise Panic("planted")


def full(*_: Any, **__: Any) -> Any:
    raise OSError(28, "No space left on device")


# Where an exception is planted


def in_monitor(name: str, error: Callable[..., Any] = broken) -> Callable[[Scene], None]:
    """A method of the monitor raises."""
    return lambda scene: scene.patch.setattr(scene.callback.monitor, name, error)


def in_bank(error: Callable[..., Any]) -> Callable[[Scene], None]:
    """Measuring raises."""
    return lambda scene: scene.patch.setattr(scene.callback.monitor.bank, "measure", error)


def in_exporter(*names: str, error: Callable[..., Any] = broken) -> Callable[[Scene], None]:
    """Methods of an exporter raise."""

    def plant(scene: Scene) -> None:
        for name in names:
            scene.patch.setattr(scene.exporter, name, error)

    return plant


def in_module(path: str, error: Callable[..., Any] = broken) -> Callable[[Scene], None]:
    """A function that the package looks up raises."""
    return lambda scene: scene.patch.setattr(path, error)


def no_mapping(scene: Scene) -> None:
    """What is to join the trainer's rows cannot."""
    scene.patch.setattr(f"{HERE}.log_values", lambda *_, **__: [1])


def measured(scene: Scene) -> None:
    """The journal holds every reading, once, and nothing is wrong with it."""
    assert steps_of(scene) == list(range(STEPS + 1))


def steps_of(scene: Scene) -> list[int]:
    """The steps that the run's journal has readings of."""
    reader = JournalReader(scene.folder)
    with sqlite3.connect(reader.path) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    raw.close()
    return [row.step for row in reader.trajectory(reader.runs()[-1])]


def shown(scene: Scene) -> None:
    """Every reading was shown all the same."""
    assert [o.scores.step for o in scene.exporter.observations] == list(range(STEPS + 1))


def counted(scene: Scene) -> None:
    """The failure is a metric."""
    assert scene.exporter.errors


# The journal's disk


def on_journal(work: Callable[[Scene, Journal], None], step: int = 2) -> Callable[[Scene], None]:
    """Something happens to the journal while the run goes on; it is not waited for long."""

    def now(scene: Scene) -> None:
        journal = scene.callback.monitor.journal
        assert journal is not None
        scene.patch.setattr(journal, "close", functools.partial(journal.close, timeout=0.3))
        scene.patch.setattr(f"{HERE}.PATIENCE_SECONDS", 0.3)
        work(scene, journal)

    return lambda scene: scene.at_step(step, lambda: now(scene))


def disk_full(_: Scene, journal: Journal) -> None:
    pages = journal.execute(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    journal.execute(lambda c: c.execute(f"PRAGMA max_page_count={pages}").fetchone())


def disk_error(scene: Scene, _: Journal) -> None:
    def refused(*_: Any) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    scene.patch.setattr(journal_module.writes, "transaction", refused)


def disk_gone(scene: Scene, journal: Journal) -> None:
    journal.flush()
    journal.path.unlink()


def moved(_: Scene, journal: Journal) -> None:
    journal.flush()
    journal.path.rename(journal.path.with_name("elsewhere.db"))


def overwritten(scene: Scene, journal: Journal) -> None:
    journal.flush()
    journal.path.write_bytes(b"something else" * 1000)


def second_writer(scene: Scene) -> None:
    other = Journal.open(scene.folder, run="other")
    scene.at_step(STEPS - 1, other.close)


def slow_disk(scene: Scene, journal: Journal) -> None:
    scene.patch.setattr(journal_module, "PATIENCE_SECONDS", 0.01)
    journal._queue.maxsize = 1
    real = journal_module.writes.transaction

    def slowly(*values: Any) -> Any:
        time.sleep(1.5)
        return real(*values)

    scene.patch.setattr(journal_module.writes, "transaction", slowly)


# Receivers


def told(answer: Any) -> Mapping[str, Any]:
    """A fault in which the webhook's receiver always answers like this."""

    def plant(scene: Scene) -> None:
        scene.receiver.answers = [answer] * 50
        patience = 0.3 if answer in ("hang", "trickle") else 10.0
        hasty = DeliveryLimits(send_seconds=patience, first_wait_seconds=0.05)
        scene.patch.setattr(
            "wvmonitor.live.outputs.Outbox", functools.partial(Outbox, limits=hasty)
        )
        alarming(scene)

    return {"plant": plant, "settings": webhook, "after": kept}


def webhook(_: Path, receiver: Receiver) -> Mapping[str, Any]:
    return {"notifiers": [{"kind": "webhook", "url": receiver.url, "secret": "s"}]}


def no_such_host(_: Path, __: Receiver) -> Mapping[str, Any]:
    url = "https://no-such-host.invalid/hook"
    return {"notifiers": [{"kind": "webhook", "url": url, "secret": "s"}]}


def alarming(scene: Scene) -> None:
    """Every verdict is an alarm, so that there is something to tell."""
    from wvmonitor.detection import judge as module
    from wvmonitor.detection.verdict import State

    real = module.judge

    def judge(*values: Any, **more: Any) -> Any:
        verdicts, state = real(*values, **more)
        return {n: replace(v, state=State.ALARM) for n, v in verdicts.items()}, state

    scene.patch.setattr(module, "judge", judge)


def nobody_answers(scene: Scene) -> None:
    """Look-ups of names fail, as they do where there is no network."""

    def lookup(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    scene.patch.setattr("wvmonitor.outputs.http.socket.getaddrinfo", lookup)
    alarming(scene)


def kept(scene: Scene) -> None:
    """What was not delivered is in the journal, with the reason; the readings are all there."""
    measured(scene)
    with sqlite3.connect(JournalReader(scene.folder).path) as raw:
        rows = raw.execute("SELECT status, last_error FROM deliveries").fetchall()
    raw.close()
    assert rows
    assert {status for status, _ in rows} <= {"pending", "refused"}
    assert any(error for _, error in rows)


# Ports and processes


def taken(folder: Path) -> Any:
    listening = socket.create_server(("127.0.0.1", 0))
    (folder / "port").write_text(str(listening.getsockname()[1]))
    return listening


def on_taken_port(folder: Path, _: Receiver) -> Mapping[str, Any]:
    return {"prometheus": {"enabled": True, "port": int((folder / "port").read_text())}}


def textfile(folder: Path, _: Receiver) -> Mapping[str, Any]:
    return {"prometheus": {"textfile": folder / "gone" / "wvmonitor.prom"}}


def scraper_hangs(scene: Scene) -> None:
    """Scrapers connect, begin to ask, and stay."""

    def connect() -> None:
        (exporter,) = scene.callback.monitor._outputs._exporters[-1:]
        silent = [socket.create_connection(("127.0.0.1", exporter.port), 5) for _ in range(40)]
        for one in silent:
            one.sendall(b"GET /metr")
        scene.kept.extend(silent)

    scene.at_step(3, connect)


def clock(by: float) -> Callable[[Scene], None]:
    """The clock of the wall is set while the run goes on."""

    def jump(scene: Scene) -> None:
        real = time.time
        scene.patch.setattr(time, "time", lambda: real() + by)

    def plant(scene: Scene) -> None:
        alarming(scene)
        scene.at_step(3, lambda: jump(scene))

    return plant


def delivered(scene: Scene) -> None:
    """Alerts arrived in spite of it."""
    measured(scene)
    assert scene.receiver.received


FAULTS: dict[str, Fault] = {
    # an exception in whatever each hook calls
    "the start fails": Fault(in_monitor("start"), "failed at its start.*planted", after=counted),
    "the latched stop cannot be read": Fault(
        in_monitor("stop_latched"), "failed at its start.*planted", after=measured
    ),
    "the step hook fails": Fault(in_monitor("observe"), "failed at its step.*planted"),
    "measuring fails": Fault(in_bank(broken), "NOT being watched", after=counted),
    "judging fails": Fault(in_module("wvmonitor.detection.judge.judge"), "failed at its reading"),
    "the measurement interval fails": Fault(
        lambda s: s.patch.setattr("wvmonitor.live.readings.MeasurementInterval.due", broken),
        "failed at its reading",
    ),
    "naming the values fails": Fault(
        in_module(f"{HERE}.log_values"), "failed at its step.*planted", after=measured
    ),
    "deciding on an action fails": Fault(
        in_monitor("action"), "failed at its step.*planted", after=measured
    ),
    "the log hook fails": Fault(no_mapping, "failed at its log", after=measured),
    "the save hook fails": Fault(
        in_module("wvmonitor.outputs.checkpoint_record.write_json", full),
        "failed at its checkpoint.*No space",
        after=measured,
    ),
    "the end hook fails": Fault(in_monitor("close"), "failed at its end.*planted"),
    "an exporter fails": Fault(
        in_exporter("export"), "failed at its exporter.*planted", after=measured
    ),
    "an exporter fails, and at counting that too": Fault(
        in_exporter("export", "error", "close"), "cannot count a failure", after=measured
    ),
    "a library panics in measuring": Fault(in_bank(panicking), "Panic: planted", after=counted),
    "a library panics in an exporter": Fault(
        in_exporter("export", error=panicking), "Panic: planted", after=measured
    ),
    # the disk
    "the disk is full": Fault(on_journal(disk_full), "full", after=shown),
    "the disk fails": Fault(on_journal(disk_error), "disk I/O error", after=shown),
    "the disk hardly answers": Fault(
        on_journal(slow_disk), "takes no more readings", after=shown
    ),
    "the journal is deleted": Fault(on_journal(disk_gone), "cannot be written", after=shown),
    "the journal is overwritten": Fault(
        on_journal(overwritten), "failed at its|cannot be written|not a database|malformed",
        after=shown,
    ),
    "a folder in which nobody may write": Fault(
        said="cannot be written safely.*this run's journal is",
        settings={"journal_dir": "/proc/wvmonitor"},
        after=shown,
    ),
    "a second writer": Fault(second_writer, "is being written by.*this run's journal is"),
    "the flight recorder's disk is full": Fault(
        in_module("wvmonitor.journal.snapshot_writer.write_snapshot", full),
        "keeps nothing of step.*No space",
        settings={"record": True},
        after=measured,
    ),
    "the textfile's folder is gone": Fault(
        said="metrics not written to", settings=textfile, after=measured
    ),
    # receivers
    "a webhook answers 500": Fault(said="not delivered.*answered 500", **told(500)),
    "a webhook answers 400": Fault(said="not delivered.*answered 400", **told(400)),
    "a webhook answers 302": Fault(said="not delivered.*answered 302", **told(302)),
    "a webhook hangs": Fault(said="not delivered.*no complete answer", **told("hang")),
    "a webhook trickles": Fault(said="not delivered.*no complete answer", **told("trickle")),
    "a webhook's answer never ends": Fault(said=None, **{**told("huge"), "after": measured}),
    "a webhook hangs up": Fault(said="not delivered", **told("drop")),
    "a webhook without an address": Fault(
        nobody_answers, "not delivered.*Name or service", settings=no_such_host, after=kept
    ),
    # ports, processes, clocks
    "the port is taken": Fault(
        said="metrics are served on", settings=on_taken_port, prepare=taken, after=measured
    ),
    "no port is free": Fault(
        said="metrics are not served.*taken",
        settings=on_taken_port,
        prepare=taken,
        plant=lambda s: s.patch.setattr("wvmonitor.outputs.server.PORTS_TRIED", 1),
        after=measured,
    ),
    "forty scrapers hang": Fault(
        scraper_hangs, settings={"prometheus": {"enabled": True, "port": 0}}, after=measured
    ),
    "the clock jumps an hour ahead": Fault(clock(3600.0), settings=webhook, after=delivered),
    "the clock jumps an hour back": Fault(clock(-3600.0), settings=webhook, after=delivered),
    "forked workers load the data": Fault(
        settings={"prometheus": {"enabled": True, "port": 0}},
        arguments={"dataloader_num_workers": 2},
        after=measured,
    ),
    "the journal is moved away": Fault(
        on_journal(moved), "cannot be written|failed at its", after=shown
    ),
}  # fmt: skip
