"""Which readings of a run count after its restarts, and which of them tell its course."""

from __future__ import annotations

import sqlite3

_EXTREMES = """
SELECT step, min(score) FROM of_attempt GROUP BY reference, span
UNION ALL SELECT step, max(score) FROM of_attempt GROUP BY reference, span
"""  # beside an aggregate that is min or max, SQLite gives the columns of the row that has it
_CHANGES = """
SELECT min(step), max(step) FROM (
    SELECT *, lag(state) OVER (PARTITION BY reference ORDER BY step) AS earlier FROM of_attempt)
WHERE state IS NOT earlier GROUP BY reference, state, span
"""


def _bounds(connection: sqlite3.Connection, run: str) -> tuple[dict[int, float], float]:
    """The last step of each attempt that counts, and that of readings of no known attempt."""
    bound: dict[int, float] = {}
    least = float("inf")
    for attempt, resume_step in connection.execute(
        "SELECT attempt, resume_step FROM attempts WHERE run = ? ORDER BY attempt DESC", (run,)
    ).fetchall():
        bound[attempt] = least
        least = min(least, resume_step)
    return bound, least


def counting(connection: sqlite3.Connection, run: str) -> set[tuple[int, int]]:
    """(attempt, step) of the readings that count: see `JournalReader.trajectory`."""
    bound, least = _bounds(connection, run)
    latest: dict[int, int] = {
        step: attempt
        for attempt, step in connection.execute(
            "SELECT attempt, step FROM readings WHERE run = ? ORDER BY attempt", (run,)
        ).fetchall()
        if step <= bound.get(attempt, least)
    }
    return {(attempt, step) for step, attempt in latest.items()}


def telling_ones(
    connection: sqlite3.Connection, run: str, kept: set[tuple[int, int]], spans: int
) -> list[tuple[int, int]]:
    """(attempt, step) of the readings that tell a run's course, by step.

    Args:
        connection: to the journal.
        run: its id.
        kept: of the readings that count; at least one.
        spans: into how many stretches the course is cut; of each the first reading, the smallest
            and the largest score, and those where a verdict changed are chosen, and the last one.
    """
    ordered = sorted(kept, key=lambda key: key[1])
    first, last = ordered[0][1], ordered[-1][1]
    width = last - first + 1
    starts = {(step - first) * spans // width: (attempt, step) for attempt, step in ordered[::-1]}
    chosen = {*starts.values(), ordered[-1]}
    for attempt, bound in _bounds(connection, run)[0].items():
        of_attempt = (
            "WITH of_attempt AS (SELECT step, reference, state, score, "
            "(step - ?) * ? / ? AS span FROM verdicts WHERE run = ? AND attempt = ? AND step <= ?) "
        )
        values = (first, spans, width, run, attempt, min(bound, last))
        for step, _ in connection.execute(of_attempt + _EXTREMES, values):
            chosen.add((attempt, step))
        for pair in connection.execute(of_attempt + _CHANGES, values):
            chosen.update((attempt, step) for step in pair)
    return sorted(chosen & kept, key=lambda key: key[1])
