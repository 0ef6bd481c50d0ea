"""Looking after journals: is this one whole, give me what it holds, note what a person decides.

Everything here works from any process, also while the run is being recorded: acknowledging and
lifting a stop are single rows, and need no lock.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wvmonitor.errors import JournalError
from wvmonitor.files.documents import json_line
from wvmonitor.journal import codec, writes
from wvmonitor.journal.alerts import Alert
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.records import JournalRow
from wvmonitor.journal.schema import connect

EXPORT_VERSION = 1
MOST_PROBLEMS = 100


@dataclass(frozen=True)
class Verification:
    """What was found in a journal.

    Attributes:
        readings: how many readings, all of which were decoded.
        pending: alerts that still wait to be delivered.
        problems: what is wrong, in words; empty for a journal that is whole.
    """

    path: str
    runs: int
    readings: int
    pending: int
    problems: tuple[str, ...]


def verify(path: str | Path) -> Verification:
    """Read everything a journal holds: SQLite's own check, then every record and every array.

    Raises:
        JournalError: there is no journal, or this version cannot read it at all.
    """
    reader = JournalReader(path)
    problems: list[str] = []
    with reader.consistent() as connection:
        found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check").fetchall()]
        problems += [f"SQLite: {line}" for line in found if line != "ok"]
        problems += _missing_end(connection, reader.path)
        problems += _orphans(connection)
        (pending,) = connection.execute(
            "SELECT count(*) FROM deliveries WHERE status = 'pending'"
        ).fetchone()
        for delivery, text in connection.execute("SELECT id, alert FROM deliveries"):
            problems += _complaint(lambda t=text, d=delivery: codec.read(Alert, t, f"delivery {d}"))
    runs, readings = 0, 0
    for run in _runs_of(reader, problems):
        runs += 1
        try:
            rows = reader.trajectory(run)
        except (JournalError, TypeError) as error:
            problems.append(f"run {run!r}: {error}")
            continue
        for row in rows:
            readings += 1
            problems += _complaint(lambda r=row: reader.reading(r))
    return Verification(str(reader.path), runs, readings, pending, tuple(problems[:MOST_PROBLEMS]))


def _runs_of(reader: JournalReader, problems: list[str]) -> tuple[str, ...]:
    try:
        return reader.runs()
    except JournalError as error:
        problems.append(str(error))
        return ()


def _complaint(read: Any) -> list[str]:
    """What is wrong with one record, if anything is."""
    try:
        read()
    except JournalError as error:
        return [str(error)]
    except (TypeError, ValueError, KeyError) as error:
        return [f"a record is damaged ({type(error).__name__}: {error})"]
    return []


def _missing_end(connection: sqlite3.Connection, path: Path) -> list[str]:
    """A file that lost less than its last page, which SQLite takes for zeros."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    missing = pages * size - path.stat().st_size
    return [f"the file lacks its last {missing} bytes"] if missing > 0 else []


def _orphans(connection: sqlite3.Connection) -> list[str]:
    """Rows that belong to nothing, which only a foreign hand can leave."""
    orphans = []
    for table in ("scores", "verdicts"):
        (count,) = connection.execute(
            f"SELECT count(*) FROM {table} t WHERE NOT EXISTS (SELECT 1 FROM readings r "  # noqa: S608  # one of two names of ours
            "WHERE r.run = t.run AND r.attempt = t.attempt AND r.step = t.step)"
        ).fetchone()
        if count:
            orphans.append(f"{count} rows of {table} belong to no reading")
    for what, query in (
        ("attempt", "attempts a WHERE a.run = r.run AND a.attempt = r.attempt"),
        ("layout", "layouts l WHERE l.id = r.layout"),
    ):
        (count,) = connection.execute(
            f"SELECT count(*) FROM readings r WHERE NOT EXISTS (SELECT 1 FROM {query})"  # noqa: S608  # one of two texts of ours
        ).fetchone()
        if count:
            orphans.append(f"{count} readings have no {what}")
    return orphans


def export(path: str | Path, runs: Sequence[str] = ()) -> Iterator[str]:
    """Everything but the arrays, as lines of JSON, oldest run first.

    Each line has a `type`: journal (the first), attempt, reading (with its scores and verdicts),
    event or delivery. Numbers that are no JSON are `{"$float": "nan"}`. Readings that a resumed run
    has superseded are left out. Secrets were never in the journal.

    Raises:
        JournalError: there is no such journal or run.
    """
    reader = JournalReader(path)
    chosen = runs or reader.runs()
    for run in chosen:
        require_run(reader, run)
    yield _line("journal", {"export_version": EXPORT_VERSION, "runs": list(chosen)})
    for run in chosen:
        for attempt in reader.attempts(run):
            values = codec.plain(attempt)
            settings = codec.plain(codec.load(attempt.settings, f"'{reader.path}'"))
            yield _line("attempt", {**values, "settings": settings})
        for row in reader.trajectory(run):
            yield _line("reading", _reading(row))
        for event in reader.events(run):
            yield _line("event", codec.plain(event))
        with reader.consistent() as connection:
            deliveries = connection.execute(
                "SELECT target, status, attempts, created, done, last_error, alert "
                "FROM deliveries WHERE run = ? ORDER BY id",
                (run,),
            ).fetchall()
        names = ("target", "status", "attempts", "created", "done", "last_error")
        for *values, alert in deliveries:
            line = dict(zip(names, values, strict=True))
            shown_alert = codec.plain(codec.load(alert, f"'{reader.path}'"))
            yield _line("delivery", {"run": run, **line, "alert": shown_alert})


def _reading(row: JournalRow) -> dict[str, Any]:
    """A reading as the export has it."""
    return {
        "run": row.run,
        "attempt": row.attempt,
        "step": row.step,
        "wall_time": row.wall_time,
        "measure_seconds": row.measure_seconds,
        "scores": codec.plain(row.scores),
        "verdicts": codec.plain(row.verdicts),
        "judge_state": json.loads(codec.dump_state(row.judge_state)),
    }


def _line(kind: str, values: dict[str, Any]) -> str:
    return json_line({"type": kind, **values})


def ack(path: str | Path, run: str, reference: str, why: str) -> None:
    """Silence one reference in one run, once it is sure that there is such a reference.

    Raises:
        JournalError: there is no such journal, run or reference, no reason is given, or the file
            cannot be written.
    """
    if not why.strip():
        raise JournalError("an acknowledgement needs a reason: say --why")
    reader = JournalReader(path)
    require_run(reader, run)
    latest = reader.latest(run)
    known = [v.reference for v in latest.verdicts] if latest else []
    if reference not in known:
        raise JournalError(
            f"run {run!r} has no verdict on {reference!r}: it has {', '.join(known) or 'none yet'}"
        )
    acknowledge(reader.path, run, reference, why)


def acknowledge(path: str | Path, run: str, reference: str, why: str) -> None:
    """Silence one reference in one run, whether or not it has a verdict yet.

    Raises:
        JournalError: there is no such journal or run, or it cannot be written.
    """
    reader = JournalReader(path)
    require_run(reader, run)
    _note(reader.path, run, "ack", reference, why)


def clear_stop(path: str | Path, run: str | None = None, why: str = "") -> str:
    """Let a stopped run go on at its next start; returns the run's id.

    Without `run` it is the one run that is stopped.

    Raises:
        JournalError: there is no such journal or run, none is stopped, or several are.
    """
    reader = JournalReader(path)
    if run is not None:
        require_run(reader, run)
    stopped = [r for r in reader.runs() if reader.stop_latched(r) is not None]
    if run is None and len(stopped) > 1:
        raise JournalError(f"several runs are stopped ({', '.join(stopped)}): name one with --run")
    if not stopped or run not in (None, *stopped):
        raise JournalError(
            f"'{reader.path}': {'no run' if run is None else f'run {run!r}'} is stopped, so there "
            "is nothing to lift"
        )
    chosen = run or stopped[0]
    _note(reader.path, chosen, "stop-cleared", None, why)
    return chosen


def _note(path: Path, run: str, kind: str, reference: str | None, why: str) -> None:
    """Append one event."""
    try:
        with closing(connect(path)) as connection:
            writes.checked(
                connection, lambda c: writes.event(c, run, time.time(), kind, reference, why)
            )
    except sqlite3.Error as error:
        raise JournalError(
            f"'{path}' cannot be written ({error}): run this where its folder is writable"
        ) from None


def require_run(reader: JournalReader, run: str) -> None:
    """Raise `JournalError`, naming the runs there are, where a journal does not hold this one."""
    known = reader.runs()
    if run not in known:
        raise JournalError(
            f"'{reader.path}' holds no run {run!r}: it holds {', '.join(known) or 'none'}"
        )
