"""Throwing away what is old: runs, and readings that a resumed run has superseded.

It takes the writer's lock first, so that a run that is being recorded is never pruned under its own
feet. The snapshots of what goes are deleted before the rows: if that is
interrupted, the same again deletes the rest.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wvmonitor.errors import JournalError
from wvmonitor.journal import writes
from wvmonitor.journal.place import claim
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.snapshots import folder_of, path_of
from wvmonitor.journal.tools import require_run

RUN_TABLES = ("readings", "scores", "verdicts", "attempts", "episodes", "deliveries", "events")
_Key = tuple[str, int, int]


@dataclass(frozen=True)
class Pruning:
    """What was thrown away, or would be.

    Attributes:
        readings: how many readings, those of the runs included.
        kept: runs that were asked for and stay, with the reason.
        bytes_after: its size now; the same as before in a trial.
    """

    path: str
    runs: tuple[str, ...]
    readings: int
    snapshots: int
    snapshot_bytes: int
    kept: dict[str, str]
    bytes_before: int
    bytes_after: int


def prune(
    path: str | Path,
    *,
    runs: Sequence[str] = (),
    older_than_days: float | None = None,
    superseded: bool = False,
    dry_run: bool = False,
) -> Pruning:
    """Throw away runs, or readings that a resumed run has superseded, and shrink the file.

    The snapshots of these readings go with them.

    A run stays, whatever is asked, while an alert of it waits to be delivered or a stop is latched:
    the next start of it must still meet that stop.

    Args:
        path: the journal.
        runs: these runs.
        older_than_days: every run whose last reading (or start) is older than so many days.
        superseded: of every run that stays, the readings that did not lead to its last weights.
        dry_run: only say what would go.

    Raises:
        JournalError: nothing was asked for, a run is not there, the journal is being written, or
            the disk refuses.
    """
    if not (runs or superseded or older_than_days is not None):
        raise JournalError("nothing to prune was named: name runs, an age, or superseded readings")
    reader = JournalReader(path)
    for run in runs:
        require_run(reader, run)
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
        snapshots = _snapshots(reader.path, going, stale)
        size = sum(file.stat().st_size for file in snapshots)
        if not dry_run:
            _remove(snapshots)
            writes.checked(connection, lambda c: _delete(c, going, stale))
            connection.execute("VACUUM")
    except sqlite3.Error as error:
        raise JournalError(
            f"'{reader.path}' cannot be pruned ({error}): is the disk full?"
        ) from None
    finally:
        connection.close()
        claimed.lock.release()
    after = reader.path.stat().st_size
    return Pruning(str(reader.path), going, count, len(snapshots), size, kept, before, after)


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


def _snapshots(journal: Path, runs: Sequence[str], readings: Sequence[_Key]) -> list[Path]:
    """The files of snapshots of whole runs and of single readings."""
    whole = [file for run in runs for file in folder_of(journal, run).glob("*") if file.is_file()]
    single = [path_of(journal, *key) for key in readings]
    return whole + [file for file in single if file.is_file()]


def _remove(snapshots: Sequence[Path]) -> None:
    """Delete files, and the folders that are empty then."""
    try:
        for file in snapshots:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise JournalError(
            f"the snapshot '{error.filename}' cannot be deleted ({error.strerror}): the journal "
            "itself is as it was; run this where the folder of snapshots is writable"
        ) from None
    for folder in {file.parent for file in snapshots}:
        with contextlib.suppress(OSError):  # others are left
            folder.rmdir()
            folder.parent.rmdir()


def _delete(connection: sqlite3.Connection, runs: Sequence[str], readings: Sequence[_Key]) -> None:
    for table in RUN_TABLES:
        connection.executemany(f"DELETE FROM {table} WHERE run = ?", [(run,) for run in runs])  # noqa: S608  # names of ours
    for table in ("readings", "scores", "verdicts"):
        connection.executemany(
            f"DELETE FROM {table} WHERE run = ? AND attempt = ? AND step = ?",  # noqa: S608  # names of ours
            readings,
        )
    connection.execute("DELETE FROM layouts WHERE id NOT IN (SELECT layout FROM readings)")
