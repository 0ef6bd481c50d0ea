"""The tables of `wvmonitor.db`, and how a connection to them is opened.

Durability comes from SQLite's oldest and plainest mode: `journal_mode=DELETE` with
`synchronous=EXTRA` survived every kill −9 tried on it; WAL needs shared memory, which network file
systems do not have. Numbers that are NaN or infinite are kept as text ("nan", "inf"), since SQLite
turns NaN into NULL.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wvmonitor.errors import JournalError

SCHEMA_VERSION = 1
FILE_NAME = "wvmonitor.db"
BUSY_SECONDS = 30.0

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE attempts (
    run TEXT NOT NULL, attempt INTEGER NOT NULL, started REAL NOT NULL,
    resume_step INTEGER NOT NULL, bank TEXT NOT NULL, context TEXT NOT NULL, settings TEXT NOT NULL,
    PRIMARY KEY (run, attempt));
CREATE TABLE layouts (id TEXT PRIMARY KEY, layout TEXT NOT NULL);
CREATE TABLE readings (
    run TEXT NOT NULL, attempt INTEGER NOT NULL, step INTEGER NOT NULL, wall_time REAL NOT NULL,
    measure_seconds REAL, norm REAL, progress REAL, layout TEXT NOT NULL, detail TEXT NOT NULL,
    scores TEXT NOT NULL, judge_state TEXT NOT NULL, arrays BLOB NOT NULL,
    PRIMARY KEY (run, attempt, step));
CREATE TABLE scores (
    run TEXT NOT NULL, attempt INTEGER NOT NULL, step INTEGER NOT NULL, reference TEXT NOT NULL,
    kind TEXT NOT NULL, record TEXT NOT NULL, PRIMARY KEY (run, attempt, step, reference));
CREATE TABLE verdicts (
    run TEXT NOT NULL, attempt INTEGER NOT NULL, step INTEGER NOT NULL, reference TEXT NOT NULL,
    state TEXT NOT NULL, score REAL, threshold REAL, record TEXT NOT NULL,
    PRIMARY KEY (run, attempt, step, reference));
CREATE TABLE episodes (
    run TEXT NOT NULL, reference TEXT NOT NULL, number INTEGER NOT NULL, severity TEXT,
    since REAL NOT NULL, clear INTEGER NOT NULL, sent REAL NOT NULL,
    PRIMARY KEY (run, reference));
CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, target TEXT NOT NULL, run TEXT NOT NULL,
    alert TEXT NOT NULL, status TEXT NOT NULL, attempts INTEGER NOT NULL, created REAL NOT NULL,
    next_at REAL NOT NULL, done REAL, last_error TEXT, UNIQUE (key, target));
CREATE INDEX pending_deliveries ON deliveries (status, id);
CREATE TABLE events (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL, time REAL NOT NULL, kind TEXT NOT NULL,
    reference TEXT, detail TEXT NOT NULL);
CREATE INDEX events_of_run ON events (run, kind, id);
"""


def journal_file(path: str | Path) -> Path:
    """The database file that `path` means: itself if it ends in `.db`, else one in that folder."""
    path = Path(path)
    return path if path.suffix == ".db" else path / FILE_NAME


@contextmanager
def legible() -> Iterator[None]:
    """In here, a complaint of SQLite that quotes bytes which are no text is one of SQLite, too.

    Raises:
        sqlite3.DatabaseError: in place of Python's error about the complaint.
    """
    try:
        yield
    except UnicodeDecodeError:
        raise sqlite3.DatabaseError("it is malformed") from None


@legible()
def connect(path: Path, *, create: bool = False, query_only: bool = False) -> sqlite3.Connection:
    """Open one connection in autocommit mode, for one thread at a time.

    A reader opens the file writable too (and then forbids itself to write): only so can it roll
    back what a killed writer left half done.
    """
    uri = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
    connection = sqlite3.connect(
        uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        if query_only:
            connection.execute("PRAGMA query_only=ON")
        else:
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("PRAGMA synchronous=EXTRA")
    except BaseException:
        connection.close()
        raise
    return connection


@legible()
def ensure_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Create the tables of an empty file, or check that the ones there can be used.

    Raises:
        JournalError: the file belongs to something else, or to a newer wvmonitor.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            for statement in TABLES.split(";\n"):
                connection.execute(statement)
            connection.execute(
                "INSERT INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),)
            )
        check_schema(connection, path)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that this version cannot read.

    Raises:
        JournalError: the file belongs to something else, or to a newer wvmonitor.
    """
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone()
    row = (
        connection.execute("SELECT value FROM meta WHERE key='schema_version'").fetchone()
        if known
        else None
    )
    if row is None or not str(row[0]).isdigit():
        raise JournalError(
            f"'{path}' is a database, but not a journal of wvmonitor: point journal_dir at another "
            "folder, or move the file away"
        )
    if int(row[0]) > SCHEMA_VERSION:
        raise JournalError(
            f"'{path}' was written by a newer wvmonitor (schema {row[0]}, this one reads up to "
            f"{SCHEMA_VERSION}): upgrade with `pip install -U wvmonitor`, or give the run another "
            "journal_dir"
        )
