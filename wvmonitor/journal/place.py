"""Where a journal can be written, and the claim on that place."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from wvmonitor.errors import JournalError
from wvmonitor.journal.lock import WriterLock
from wvmonitor.journal.schema import connect, ensure_schema


@dataclass(frozen=True)
class Claim:
    """The right to write one journal, and the connection to do it by."""

    lock: WriterLock
    connection: sqlite3.Connection


def claim(path: Path) -> Claim:
    """Lock the journal at `path` for this process, and see that its tables are there.

    Raises:
        JournalError: someone else writes it, or it is nothing this version can write.
        OSError: the folder cannot be written, or has no file locks.
        sqlite3.OperationalError: the same, noticed by SQLite.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(path)
    try:
        connection = connect(path, create=True)
        try:
            ensure_schema(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.OperationalError:
        lock.release()
        raise
    except sqlite3.DatabaseError as error:
        lock.release()
        raise JournalError(
            f"'{path}' is damaged or no database ({error}): move it away to begin a new journal"
        ) from None
    except BaseException:
        lock.release()
        raise
    return Claim(lock, connection)


def local_file(preferred: Path) -> Path:
    """A private place on this machine for the journal that belongs at `wanted`, always the same."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    root = Path(tempfile.gettempdir()) / f"wvmonitor-{user}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    exposed = os.name == "posix" and status.st_mode & 0o077
    if root.is_symlink() or status.st_uid != user or exposed:  # someone else has put it there
        root = Path(tempfile.mkdtemp(prefix="wvmonitor-"))
    return root / sha256(str(preferred.absolute()).encode()).hexdigest()[:16] / preferred.name
