"""One writer for a journal, on any machine that shares its file system.

The kernel holds the lock (`flock`), so that it falls with its holder, kill −9 included; the text in
the lock file only says who that is. A lock file left behind is therefore never in the way.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path

from wvmonitor.errors import JournalError


class WriterLock:
    """An exclusive claim on a journal, held until `release` or the end of the process.

    Raises:
        JournalError: another writer lives; the message names it.
        OSError: the folder cannot be written, or its file system has no locks.
    """

    def __init__(self, journal: Path) -> None:
        self.path = journal.with_name(journal.name + ".lock")
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(self._descriptor)
        except BlockingIOError:
            holder, way_out = _holder(self._descriptor)
            self.abandon()
            raise JournalError(
                f"'{journal}' is being written by {holder}: give this run another journal_dir, or "
                f"{way_out}"
            ) from None
        except BaseException:
            self.abandon()
            raise
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(note).encode(), 0)

    def release(self) -> None:
        """Let the next writer in. The (empty) file stays: removing it would race with that one."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):  # a full disk does not keep a lock from falling
                os.ftruncate(self._descriptor, 0)
        self.abandon()

    def abandon(self) -> None:
        """Close this process's handle only; in a forked child the parent keeps its lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_being_written(journal: Path) -> bool:
    """Whether a living process writes a journal, on any machine that shares its file system."""
    try:
        WriterLock(journal).release()
    except (JournalError, OSError):  # where nothing can be locked, nothing is known
        return True
    return False


def _lock(descriptor: int) -> None:
    """Take the kernel's lock without waiting. On Windows SQLite's own lock has to do."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(descriptor: int) -> tuple[str, str]:
    """Who holds the lock, in words, and what can be done about it."""
    try:
        note = json.loads(os.pread(descriptor, 4096, 0))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(note["since"])))
        pid, host = int(note["pid"]), str(note["host"])
    except (ValueError, KeyError, TypeError, OSError):
        return "another process that has not said its name", "end that process first"
    if (pid, host) == (os.getpid(), socket.gethostname()):
        return f"another monitor of this process since {since}", "attach one monitor to a run"
    return f"process {pid} on host {host!r} since {since}", "end that process first"
