"""Looking after journals: is this one whole, give me what it holds, throw away what is old.

Everything here works from any process. What changes a file takes the writer's lock first, so that a
run that is being recorded is never pruned under its own feet; acknowledging and lifting a stop are
single rows, and need no lock.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wvmonitor.errors import JournalError
from wvmonitor.journal import codec, writes
from wvmonitor.journal.alerts import Alert
from wvmonitor.journal.journal import acknowledge
from wvmonitor.journal.place import claim
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.schema import connect

EXPORT_VERSION = 1
RUN_TABLES = ("readings", "scores", "verdicts", "attempts", "episodes", "deliveries", "events")
MOST_PROBLEMS = 100


@dataclass(frozen=True)
class Verification:
    """What was found in a journal.

    Attributes:
        path: the database file.
        runs: how many runs it holds.
        readings: how many readings, all of which were decoded.
        pending: alerts that still wait to be delivered.
        problems: what is wrong, in words; empty for a journal that is whole.
    """

    path: str
    runs: int
    readings: int
    pending: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Pruning:
    """What was thrown away, or would be.

    Attributes:
        path: the database file.
        runs: whole runs, by id.
        readings: how many readings, those of the runs included.
        kept: runs that were asked for and stay, with the reason.
        bytes_before: size of the file.
        bytes_after: its size now; the same as before in a trial.
    """

    path: str
    runs: tuple[str, ...]
    readings: int
    kept: dict[str, str]
    bytes_before: int
    bytes_after: int


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
            problems += _complaint(
                lambda t=text, d=delivery: codec.record(
                    Alert, codec.load(t, f"delivery {d}"), f"delivery {d}"
                )
            )
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
    found = []
    for table in ("scores", "verdicts"):
        (count,) = connection.execute(
            f"SELECT count(*) FROM {table} t WHERE NOT EXISTS (SELECT 1 FROM readings r "  # noqa: S608  # one of two names of ours
            "WHERE r.run = t.run AND r.attempt = t.attempt AND r.step = t.step)"
        ).fetchone()
        if count:
            found.append(f"{count} rows of {table} belong to no reading")
    for what, query in (
        ("attempt", "attempts a WHERE a.run = r.run AND a.attempt = r.attempt"),
        ("layout", "layouts l WHERE l.id = r.layout"),
    ):
        (count,) = connection.execute(
            f"SELECT count(*) FROM readings r WHERE NOT EXISTS (SELECT 1 FROM {query})"  # noqa: S608  # one of two texts of ours
        ).fetchone()
        if count:
            found.append(f"{count} readings have no {what}")
    return found


def export(path: str | Path, runs: Sequence[str] = ()) -> Iterator[str]:
    """Everything but the arrays, as lines of JSON, oldest run first.

    Each line has a `type`: journal (the first), attempt, reading (with its scores and verdicts),
    event or delivery. Numbers that are no JSON are `{"$float": "nan"}`. Readings that a resumed run
    has superseded are left out. Secrets were never in the journal.

    Raises:
        JournalError: there is no such journal or run.
    """
    reader = JournalReader(path)
    wanted = runs or reader.runs()
    for run in wanted:
        _require_run(reader, run)
    yield _line("journal", {"export_version": EXPORT_VERSION, "runs": list(wanted)})
    for run in wanted:
        for attempt in reader.attempts(run):
            values = codec.plain(attempt)
            settings = codec.plain(codec.load(attempt.settings, f"'{reader.path}'"))
            yield _line("attempt", {**values, "settings": settings})
        for row in reader.trajectory(run):
            yield _line("reading", codec.plain(row))
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
            told = codec.plain(codec.load(alert, f"'{reader.path}'"))
            yield _line("delivery", {"run": run, **line, "alert": told})


def _line(kind: str, values: dict[str, Any]) -> str:
    return json.dumps({"type": kind, **values}, ensure_ascii=False, allow_nan=False)


def prune(
    path: str | Path,
    *,
    runs: Sequence[str] = (),
    older_than_days: float | None = None,
    superseded: bool = False,
    dry_run: bool = False,
) -> Pruning:
    """Throw away runs, or readings that a resumed run has superseded, and shrink the file.

    A run stays, whatever is asked, while an alert of it waits to be delivered or a stop is latched:
    the next start of it must still meet that stop.

    Args:
        path: the journal.
        runs: these runs.
        older_than_days: every run whose last reading (or start) is older than so many days.
        superseded: of every run that stays, the readings that did not lead to its last weights.
        dry_run: only say what would go.

    Raises:
        JournalError: nothing was asked for, a run is not there, or the journal is being written.
    """
    if not (runs or superseded or older_than_days is not None):
        raise JournalError("nothing to prune was named: name runs, an age, or superseded readings")
    reader = JournalReader(path)
    for run in runs:
        _require_run(reader, run)
    before = reader.path.stat().st_size
    claimed = claim(reader.path)
    connection = claimed.connection
    try:
        chosen = list(dict.fromkeys((*runs, *_older(connection, older_than_days))))
        kept = {r: why for r in chosen if (why := _needed(reader, connection, r)) is not None}
        going = tuple(r for r in chosen if r not in kept)
        rest = [r for r in reader.runs() if r not in going] if superseded else []
        stale = [(r, *key) for r in rest for key in _superseded(reader, connection, r)]
        count = len(stale) + sum(_count(connection, r) for r in going)
        if not dry_run:
            writes.checked(connection, lambda c: _delete(c, going, stale))
            connection.execute("VACUUM")
    except sqlite3.Error as error:
        raise JournalError(
            f"'{reader.path}' cannot be pruned ({error}): is the disk full?"
        ) from None
    finally:
        connection.close()
        claimed.lock.release()
    return Pruning(str(reader.path), going, count, kept, before, reader.path.stat().st_size)


def _older(connection: sqlite3.Connection, days: float | None) -> list[str]:
    if days is None:
        return []
    rows = connection.execute(
        "SELECT a.run FROM attempts a GROUP BY a.run HAVING max(a.started, coalesce("
        "(SELECT max(wall_time) FROM readings r WHERE r.run = a.run), 0)) < ? ORDER BY a.rowid",
        (time.time() - 86_400 * days,),
    ).fetchall()
    return [str(run) for (run,) in rows]


def _needed(reader: JournalReader, connection: sqlite3.Connection, run: str) -> str | None:
    """Why a run must stay, if it must."""
    if (reason := reader.stop_latched(run)) is not None:
        return f"it is stopped ({reason}): lift that with `wvmonitor journal clear-stop` first"
    (waiting,) = connection.execute(
        "SELECT count(*) FROM deliveries WHERE run = ? AND status = 'pending'", (run,)
    ).fetchone()
    return f"{waiting} of its alerts wait to be delivered" if waiting else None


def _superseded(
    reader: JournalReader, connection: sqlite3.Connection, run: str
) -> list[tuple[int, int]]:
    kept = reader.kept(run)
    keys = connection.execute("SELECT attempt, step FROM readings WHERE run = ?", (run,)).fetchall()
    return [(int(a), int(s)) for a, s in keys if (a, s) not in kept]


def _count(connection: sqlite3.Connection, run: str) -> int:
    (count,) = connection.execute("SELECT count(*) FROM readings WHERE run = ?", (run,)).fetchone()
    return int(count)


def _delete(
    connection: sqlite3.Connection, runs: Sequence[str], readings: Sequence[tuple[str, int, int]]
) -> None:
    for table in RUN_TABLES:
        connection.executemany(f"DELETE FROM {table} WHERE run = ?", [(run,) for run in runs])  # noqa: S608  # names of ours
    for table in ("readings", "scores", "verdicts"):
        connection.executemany(
            f"DELETE FROM {table} WHERE run = ? AND attempt = ? AND step = ?",  # noqa: S608  # names of ours
            readings,
        )
    connection.execute("DELETE FROM layouts WHERE id NOT IN (SELECT layout FROM readings)")


def ack(path: str | Path, run: str, reference: str, why: str) -> None:
    """Silence one reference in one run, once it is sure that there is such a reference.

    Raises:
        JournalError: there is no such journal, run or reference, no reason is given, or the file
            cannot be written.
    """
    if not why.strip():
        raise JournalError("an acknowledgement needs a reason: say --why")
    reader = JournalReader(path)
    _require_run(reader, run)
    latest = reader.latest(run)
    known = [v.reference for v in latest.verdicts] if latest else []
    if reference not in known:
        raise JournalError(
            f"run {run!r} has no verdict on {reference!r}: it has {', '.join(known) or 'none yet'}"
        )
    acknowledge(reader.path, run, reference, why)


def clear_stop(path: str | Path, run: str | None = None, why: str = "") -> str:
    """Let a stopped run go on at its next start; returns the run's id.

    Without `run` it is the one run that is stopped.

    Raises:
        JournalError: there is no such journal or run, none is stopped, or several are.
    """
    reader = JournalReader(path)
    if run is not None:
        _require_run(reader, run)
    stopped = [r for r in reader.runs() if reader.stop_latched(r) is not None]
    if run is None and len(stopped) > 1:
        raise JournalError(f"several runs are stopped ({', '.join(stopped)}): name one with --run")
    if not stopped or run not in (None, *stopped):
        raise JournalError(
            f"'{reader.path}': {'no run' if run is None else f'run {run!r}'} is stopped, so there "
            "is nothing to lift"
        )
    chosen = run or stopped[0]
    try:
        connection = connect(reader.path)
        try:
            writes.checked(
                connection,
                lambda c: writes.event(c, chosen, time.time(), "stop-cleared", None, why),
            )
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise JournalError(
            f"'{reader.path}' cannot be written ({error}): run this where its folder is writable"
        ) from None
    return chosen


def _require_run(reader: JournalReader, run: str) -> None:
    known = reader.runs()
    if run not in known:
        raise JournalError(
            f"'{reader.path}' holds no run {run!r}: it holds {', '.join(known) or 'none'}"
        )
