"""Reading a journal, while its run still writes or long after."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judgement import Judgement, JudgeState, Verdict, named
from wvmonitor.detection.scores import ReferenceScores, Scores
from wvmonitor.errors import JournalError
from wvmonitor.journal import codec
from wvmonitor.journal.records import Attempt, Event, JournalRow, Outline
from wvmonitor.journal.schema import check_schema, connect, journal_file, legible
from wvmonitor.journal.search import no_journal
from wvmonitor.journal.selection import counting, telling_ones
from wvmonitor.reading import Reading


class JournalReader:
    """A journal's contents. Each call opens, reads and closes, so a live writer is never kept out.

    Do not copy or open the file by other means in the process that writes it: closing such a
    handle drops SQLite's own locks. Copy it with `sqlite3 wvmonitor.db ".backup copy.db"`.

    Raises:
        JournalError: there is no journal at `path`, or it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = journal_file(path)
        self._connection: sqlite3.Connection | None = None
        if not self.path.is_file():
            raise no_journal(self.path)
        with self.consistent():
            pass

    def attempts(self, run: str | None = None) -> tuple[Attempt, ...]:
        """Every start of `run`, or of every run, in the order they happened."""
        query = "SELECT * FROM attempts WHERE ?1 IS NULL OR run = ?1 ORDER BY rowid"
        rows = self._rows(query, (run,))
        contexts = [codec.read(RunContext, row["context"], str(self.path)) for row in rows]
        return tuple(
            Attempt(**{**dict(row), "context": context})
            for row, context in zip(rows, contexts, strict=True)
        )

    def runs(self) -> tuple[str, ...]:
        """The ids of the runs kept here, oldest first."""
        return tuple(dict.fromkeys(a.run for a in self.attempts()))

    def starts_of(self, name: str) -> tuple[str, ...]:
        """The runs that were started under one name, oldest first: `name`, `name-2` and on."""
        again = re.compile(rf"{re.escape(name)}(-\d+)?")
        return tuple(run for run in self.runs() if again.fullmatch(run))

    def trajectory(self, run: str) -> list[JournalRow]:
        """The readings of `run` by step, each step once.

        Where a run was resumed at step r, what earlier attempts measured after r did not lead to
        the weights at hand: it is kept in the file, but left out here. At r itself the latest
        reading counts.
        """
        with self.consistent() as connection:
            kept = counting(connection, run)
            scores = _grouped(connection, "scores", run)
            verdicts = _grouped(connection, "verdicts", run)
            rows = connection.execute(
                "SELECT attempt, step, wall_time, measure_seconds, scores, judge_state "
                "FROM readings WHERE run = ? ORDER BY step",
                (run,),
            ).fetchall()
        return [
            self._row(run, row, scores.get(key, []), verdicts.get(key, []))
            for row in rows
            if (key := (row["attempt"], row["step"])) in kept
        ]

    def outline(self, run: str, *, most: int = 5000, spans: int = 250) -> Outline:
        """What a picture of a run needs of its readings: all of them, or of a long run the telling.

        Of each span of steps that is its first reading, the smallest and the largest score of each
        behaviour, and the first and last time that a verdict became what it is; and the run's last
        reading. Only these are decoded: a long run has hundreds of thousands of records.

        Args:
            run: the run's id.
            most: a run of no more readings comes whole.
            spans: into how many equal spans a longer one is divided.
        """
        with self.consistent() as connection:
            kept = counting(connection, run)
            if len(kept) > most:
                telling = telling_ones(connection, run, kept, spans)
                return Outline([self._one(connection, run, key) for key in telling], len(kept))
        rows = self.trajectory(run)
        return Outline(rows, len(rows))

    def latest(self, run: str) -> JournalRow | None:
        """The reading of `run` that counts and has the highest step, if there is one."""
        with self.consistent() as connection:
            kept = counting(connection, run)
            if not kept:
                return None
            return self._one(connection, run, max(kept, key=lambda key: key[1]))

    def kept(self, run: str) -> set[tuple[int, int]]:
        """(attempt, step) of the readings that count, as `trajectory` explains."""
        with self.consistent() as connection:
            return counting(connection, run)

    def times(self, run: str) -> dict[int, float]:
        """When (seconds since 1970) the readings that count were made, by step."""
        with self.consistent() as connection:
            kept = counting(connection, run)
            rows = connection.execute(
                "SELECT attempt, step, wall_time FROM readings WHERE run = ? ORDER BY step", (run,)
            ).fetchall()
        return {r["step"]: r["wall_time"] for r in rows if (r["attempt"], r["step"]) in kept}

    def pending(self, run: str) -> int:
        """How many deliveries of `run`'s alerts still wait."""
        query = "SELECT count(*) FROM deliveries WHERE run = ? AND status = 'pending'"
        return int(self._rows(query, (run,))[0][0])

    def reading(self, row: JournalRow) -> Reading:
        """The reading behind a row, to the last bit: for calibrating, rescoring, pictures."""
        where = f"'{self.path}' (run {row.run!r}, step {row.step})"
        found = self._rows(
            "SELECT l.layout, r.detail, r.arrays FROM readings r JOIN layouts l ON l.id = r.layout "
            "WHERE r.run = ? AND r.attempt = ? AND r.step = ?",
            (row.run, row.attempt, row.step),
        )
        if not found:
            raise JournalError(f"{where} holds no such reading: was it pruned?")
        kept = found[0]
        return codec.unpack_reading(kept["layout"], kept["detail"], kept["arrays"], where)

    def latest_judge_state(self, run: str, at_step: int | None = None) -> JudgeState | None:
        """What the judge carried on from the last reading at or before `at_step`, if there is one.

        That is what a run resumed from a checkpoint of that step goes on with.
        """
        with self.consistent() as connection:
            kept = [
                key for key in counting(connection, run) if at_step is None or key[1] <= at_step
            ]
            if not kept:
                return None
            attempt, step = max(kept, key=lambda key: key[1])
            (text,) = connection.execute(
                "SELECT judge_state FROM readings WHERE run = ? AND attempt = ? AND step = ?",
                (run, attempt, step),
            ).fetchone()
        return codec.load_state(text, str(self.path))

    def events(self, run: str | None = None) -> tuple[Event, ...]:
        """Acknowledgements, stops and notes of `run`, or of every run, oldest first."""
        return tuple(
            Event(**dict(row))
            for row in self._rows(
                "SELECT run, time, kind, reference, detail FROM events "
                "WHERE ?1 IS NULL OR run = ?1 ORDER BY id",
                (run,),
            )
        )

    def stop_latched(self, run: str) -> str | None:
        """Why `run` was told to stop, if it was and nobody has cleared it."""
        rows = self._rows(
            "SELECT kind, detail FROM events WHERE run = ? AND kind IN ('stop', 'stop-cleared') "
            "ORDER BY id DESC LIMIT 1",
            (run,),
        )
        return str(rows[0]["detail"]) if rows and rows[0]["kind"] == "stop" else None

    def unwatched(self, run: str) -> str | None:
        """Why nobody watches the latest attempt of `run` any more, if the monitor gave up."""
        rows = self._rows(
            "SELECT detail FROM events WHERE run = ?1 AND kind = 'gave-up' AND time >= "
            "(SELECT started FROM attempts WHERE run = ?1 ORDER BY attempt DESC LIMIT 1) "
            "ORDER BY id DESC LIMIT 1",
            (run,),
        )
        return str(rows[0]["detail"]) if rows else None

    def acknowledged(self, run: str) -> dict[str, str]:
        """The references silenced in `run`, with the reason given."""
        rows = self._rows(
            "SELECT reference, detail FROM events WHERE run = ? AND kind = 'ack' ORDER BY id",
            (run,),
        )
        return {row["reference"]: row["detail"] for row in rows if row["reference"]}

    def _one(self, connection: sqlite3.Connection, run: str, key: tuple[int, int]) -> JournalRow:
        """The reading of one (attempt, step)."""
        row = connection.execute(
            "SELECT attempt, step, wall_time, measure_seconds, scores, judge_state "
            "FROM readings WHERE run = ? AND attempt = ? AND step = ?",
            (run, *key),
        ).fetchone()
        scores, verdicts = (
            connection.execute(
                f"SELECT reference, record FROM {table} "  # noqa: S608  # one of two names of ours
                "WHERE run = ? AND attempt = ? AND step = ? ORDER BY rowid",
                (run, *key),
            ).fetchall()
            for table in ("scores", "verdicts")
        )
        return self._row(run, row, scores, verdicts)

    def _row(
        self,
        run: str,
        row: sqlite3.Row,
        scores: list[sqlite3.Row],
        verdicts: list[sqlite3.Row],
    ) -> JournalRow:
        where = f"'{self.path}' (run {run!r}, step {row['step']})"
        references = {
            kept["reference"]: codec.read(ReferenceScores, kept["record"], where) for kept in scores
        }
        passed = [codec.read(Verdict, kept["record"], where) for kept in verdicts]
        columns = {**codec.load_object(row["scores"], where), "references": references}
        return JournalRow(
            run=run,
            attempt=row["attempt"],
            step=row["step"],
            wall_time=row["wall_time"],
            measure_seconds=row["measure_seconds"],
            judgement=named(
                Judgement(
                    reading=None,
                    scores=codec.record(Scores, columns, where),
                    verdicts={v.reference: v for v in passed},
                    state=codec.load_state(row["judge_state"], where),
                )
            ),
        )

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[sqlite3.Row]:
        with self.consistent() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def at_once(self) -> Iterator[JournalReader]:
        """A reader, for one thread, whose every answer is of one state of the file.

        It keeps one connection open for all of them; a writer waits for as long.
        """
        with self.consistent() as connection:
            reader = copy(self)
            reader._connection = connection
            yield reader

    @contextmanager
    def consistent(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one consistent state of the file, and cannot write.

        Raises:
            JournalError: the file cannot be read, or was written by a newer version.
        """
        if self._connection is not None:
            yield self._connection
            return
        try:
            with closing(connect(self.path, query_only=True)) as connection:
                connection.row_factory = sqlite3.Row
                connection.execute("BEGIN")
                with codec.whole(f"'{self.path}'"), legible():
                    check_schema(connection, self.path)
                    yield connection
        except sqlite3.OperationalError as error:
            raise JournalError(
                f"'{self.path}' cannot be read ({error}): if its folder is read-only, copy the "
                "file and any wvmonitor.db-journal beside it to a folder that is not"
            ) from None
        except sqlite3.Error as error:
            raise JournalError(
                f"'{self.path}' cannot be read ({error}): it is damaged; restore it from a copy, "
                "or give the run another journal_dir"
            ) from None


def read_journal(path: str | Path) -> JournalReader:
    """Open the journal at `path` (the file, or the folder that holds it) for reading only.

    Raises:
        JournalError: there is none, or it cannot be read by this version.
    """
    return JournalReader(path)


def _grouped(
    connection: sqlite3.Connection, table: str, run: str
) -> dict[tuple[int, int], list[sqlite3.Row]]:
    """The rows of `scores` or `verdicts`, by (attempt, step), in the order they were given."""
    groups: dict[tuple[int, int], list[sqlite3.Row]] = {}
    query = f"SELECT attempt, step, reference, record FROM {table} WHERE run = ? ORDER BY rowid"  # noqa: S608  # one of two names of ours
    for row in connection.execute(query, (run,)).fetchall():
        groups.setdefault((row["attempt"], row["step"]), []).append(row)
    return groups
