"""Every statement that writes to a journal: plain functions on a connection."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judgement import Verdict
from wvmonitor.journal import codec
from wvmonitor.journal.alerts import Alert, AlertPolicy, Episode, advance, located
from wvmonitor.journal.alerts import event as event_alert
from wvmonitor.journal.records import JournalRow
from wvmonitor.journal.schema import legible
from wvmonitor.reading import Reading


def transaction(
    connection: sqlite3.Connection, jobs: Sequence[Callable[[sqlite3.Connection], Any]]
) -> list[Any]:
    """Run `jobs` in one transaction; a job that fails is undone alone, its exception the outcome.

    Raises:
        sqlite3.OperationalError: the file could not be written; nothing of the batch is kept.
    """
    outcomes: list[Any] = []
    connection.execute("BEGIN IMMEDIATE")
    try:
        for job in jobs:
            connection.execute("SAVEPOINT job")
            try:
                with legible():
                    outcomes.append(job(connection))
            except sqlite3.OperationalError:
                raise
            except Exception as error:  # noqa: BLE001  # one bad entry must not hold up the others
                connection.execute("ROLLBACK TO job")
                outcomes.append(error)
            connection.execute("RELEASE job")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return outcomes


def checked(connection: sqlite3.Connection, job: Callable[[sqlite3.Connection], Any]) -> Any:
    """Run one job in a transaction of its own, and raise what it raises."""
    (outcome,) = transaction(connection, [job])
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


_AFTER = 1e-3
"""Seconds by which one thing is later than another that it follows."""


def attempt(
    connection: sqlite3.Connection,
    run: str,
    started: float,
    resume_step: int,
    bank: str,
    context: RunContext,
    settings: str,
) -> int:
    """Note the start of an attempt; returns its number, from 1.

    It starts after the monitor gave up on the attempt before, whatever a clock says that was set.
    """
    (gave_up,) = connection.execute(
        "SELECT max(time) FROM events WHERE run = ? AND kind = 'gave-up'", (run,)
    ).fetchone()
    started = started if gave_up is None else max(started, gave_up + _AFTER)
    (number,) = connection.execute(
        "SELECT coalesce(max(attempt), 0) + 1 FROM attempts WHERE run = ?", (run,)
    ).fetchone()
    connection.execute(
        "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?)",
        (run, number, started, resume_step, bank, codec.dump(context), settings),
    )
    return int(number)


def event(
    connection: sqlite3.Connection,
    run: str,
    when: float,
    kind: str,
    reference: str | None,
    detail: str,
) -> None:
    """Append an event."""
    connection.execute(
        "INSERT INTO events (run, time, kind, reference, detail) VALUES (?, ?, ?, ?, ?)",
        (run, when, kind, reference, detail),
    )


def reading(
    connection: sqlite3.Connection, row: JournalRow, measured: Reading, policy: AlertPolicy
) -> None:
    """Write one reading, and the alerts that follow from it, all or nothing and only once."""
    key = (row.run, row.attempt, row.step)
    layout, layout_json, detail, arrays = codec.pack_reading(measured)
    scores = codec.plain(row.scores)
    references = scores.pop("references")
    connection.execute("INSERT OR IGNORE INTO layouts VALUES (?, ?)", (layout, layout_json))
    added = connection.execute(
        "INSERT OR IGNORE INTO readings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *key,
            row.wall_time,
            row.measure_seconds,
            codec.number(row.scores.norm),
            codec.number(row.scores.progress),
            layout,
            detail,
            codec.dump(scores),
            codec.dump_state(row.judge_state),
            arrays,
        ),
    ).rowcount
    if not added:
        return
    connection.executemany(
        "INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?)",
        [(*key, name, kept["kind"], codec.dump(kept)) for name, kept in references.items()],
    )
    connection.executemany(
        "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                *key,
                verdict.reference,
                verdict.state,
                codec.number(verdict.score),
                codec.number(verdict.threshold),
                codec.dump(verdict),
            )
            for verdict in row.verdicts
        ],
    )
    if policy.targets:
        _alert(connection, row, measured.bank, policy)


def _alert(connection: sqlite3.Connection, row: JournalRow, bank: str, policy: AlertPolicy) -> None:
    """Move each reference's episode on, and put what it says into the outbox."""
    acknowledged = dict(
        connection.execute(
            "SELECT reference, detail FROM events WHERE run = ? AND kind = 'ack'", (row.run,)
        ).fetchall()
    )
    for verdict in row.verdicts:
        before = _episode(connection, row.run, verdict.reference)
        after, alert, targets = advance(
            before,
            verdict,
            run=row.run,
            time=row.wall_time,
            policy=policy,
            bank=bank,
            acknowledged=acknowledged.get(verdict.reference),
        )
        if after != before:
            _keep_episode(connection, row.run, verdict.reference, after)
        if alert is not None:
            deliver(connection, _in_full(alert, row, policy), targets)
        quiet = {*policy.expected, *acknowledged}
        if verdict.state == "unknown" and verdict.reference not in quiet:
            unjudged = event_alert(
                "unjudged",
                row.run,
                verdict.reason,
                row.wall_time,
                reference=verdict.reference,
                step=row.step,
            )
            deliver(connection, _in_full(unjudged, row, policy), policy.targets)


def _in_full(alert: Alert, row: JournalRow, policy: AlertPolicy) -> Alert:
    """The alert with what the reading knows beside its verdict, and where the run is."""
    scores = row.scores.references.get(alert.reference)
    progress = row.scores.progress
    return located(
        alert,
        policy.where,
        planned_steps=round(row.step / progress) if progress else None,
        dose=None if scores is None else scores.dose,
        last_ok_step=row.judge_state.last_ok.get(alert.reference),
    )


def resolve(
    connection: sqlite3.Connection,
    run: str,
    verdict: Verdict,
    why: str,
    bank: str,
    policy: AlertPolicy,
) -> bool:
    """End the open episode of an acknowledged behaviour; whether there was one."""
    kept = _episode(connection, run, verdict.reference)
    after, alert, targets = advance(
        kept,
        verdict,
        run=run,
        time=time.time(),
        policy=policy,
        bank=bank,
        acknowledged=why,
    )
    if alert is None:
        return False
    _keep_episode(connection, run, verdict.reference, after)
    deliver(connection, located(alert, policy.where), targets)
    return True


def _episode(connection: sqlite3.Connection, run: str, reference: str) -> Episode:
    kept = connection.execute(
        "SELECT number, severity, since, clear, sent FROM episodes WHERE run = ? AND reference = ?",
        (run, reference),
    ).fetchone()
    return Episode(*kept) if kept else Episode()


def _keep_episode(
    connection: sqlite3.Connection, run: str, reference: str, episode: Episode
) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO episodes VALUES (?, ?, ?, ?, ?, ?, ?)",
        (run, reference, *asdict(episode).values()),
    )


def give_up(connection: sqlite3.Connection, alert: Alert, policy: AlertPolicy) -> None:
    """Note that nobody watches a run any more, and tell the notifiers.

    It is noted at no earlier time than the attempt's start, whatever a clock says that was set.
    """
    (started,) = connection.execute(
        "SELECT started FROM attempts WHERE run = ? ORDER BY attempt DESC LIMIT 1", (alert.run,)
    ).fetchone() or (alert.time,)
    event(connection, alert.run, max(alert.time, started), "gave-up", None, alert.reason)
    deliver(connection, located(alert, policy.where), policy.targets)


def deliver(connection: sqlite3.Connection, alert: Alert, targets: Sequence[str]) -> None:
    """Put an alert into the outbox, once for each target."""
    now = time.time()
    connection.executemany(
        "INSERT OR IGNORE INTO deliveries "
        "(key, target, run, alert, status, attempts, created, next_at) "
        "VALUES (?, ?, ?, ?, 'pending', 0, ?, ?)",
        [(alert.key, target, alert.run, codec.dump(alert), now, now) for target in targets],
    )
