"""The durable record of a run: written by one thread, off the training thread.

`record` puts a reading into a bounded queue and returns; the writer thread commits it together with
its scores, verdicts, judge state, and whatever alerts follow from them, in one transaction. While
the disk refuses (full, unreachable), readings wait in memory and are tried again until it takes
them. A reading is never dropped in silence: if even the queue is full, `record` waits a moment and
then raises.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import queue
import secrets
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judgement import Judgement, JudgeState
from wvmonitor.errors import JournalError
from wvmonitor.journal import writes
from wvmonitor.journal.alerts import AlertPolicy, event
from wvmonitor.journal.place import Claim, claim, local_file
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.records import JournalRow
from wvmonitor.journal.schema import journal_file
from wvmonitor.reading import Reading

logger = logging.getLogger(__name__)

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], Any]

QUEUE_SIZE = 1024
BATCH = 64
PATIENCE_SECONDS = 5.0
"""How long the disk may hold up training: where the queue is full, and at a checkpoint."""

_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


class Journal:
    """A run's journal, open for writing; get one from `Journal.open`.

    Attributes:
        fallback: why it is not the file asked for, or None.
        run: the run's id; None until `begin_attempt` has chosen one.
        attempt: which start of the run this is; 0 before `begin_attempt`.
        on_commit: called by the writer thread after each commit; the outbox listens here.
        on_loss: called by the writer thread, with the reason, when a reading is lost.
    """

    def __init__(
        self,
        path: Path,
        claim: Claim,
        run: str | None,
        alerts: AlertPolicy,
        fallback: str | None = None,
    ) -> None:
        self.path = path
        self.run = run
        self.attempt = 0
        self.fallback = fallback
        self.on_commit: Callable[[], None] | None = None
        self.on_loss: Callable[[str], None] | None = None
        self._alerts = alerts
        self._claim = claim
        self._reader = JournalReader(path)
        self._pid = os.getpid()
        self._queue: queue.Queue[tuple[Job, Future[Any]] | None] = queue.Queue(QUEUE_SIZE)
        self._lost: list[str] = []
        self._closing = threading.Event()
        self._closed = False
        self._crowded = False
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._write, name="wvmonitor-journal", daemon=True)
        self._thread.start()
        _journals.add(self)
        atexit.register(self._close_at_exit)

    @classmethod
    def open(
        cls, path: str | Path, *, run: str | None = None, alerts: AlertPolicy | None = None
    ) -> Journal:
        """Open the journal at `path` (a folder, or a `.db` file), creating what is not there.

        Without `run`, `begin_attempt` continues the latest run when it resumes, and starts a new
        one when it does not. Where the folder cannot be written or has no file locks, a local
        folder is used instead, which a warning and `fallback` name.

        Raises:
            JournalError: another process writes it, or a newer version or another program did.
        """
        preferred = journal_file(path)
        alerts = alerts or AlertPolicy()
        try:
            return cls(preferred, claim(preferred), run, alerts)
        except (OSError, sqlite3.OperationalError) as error:
            reason = f"'{preferred}' cannot be written safely ({error})"
        try:
            local = local_file(preferred)
            claimed = claim(local)
        except (OSError, sqlite3.OperationalError) as error:
            raise JournalError(
                f"{reason}, and neither can the temporary folder ({error}): set journal_dir to a "
                "folder on a local disk with room"
            ) from None
        logger.warning("%s: this run's journal is '%s' on this machine", reason, local)
        return cls(local, claimed, run, alerts, fallback=reason)

    def starts_of(self, name: str) -> tuple[str, ...]:
        """The runs that were started under one name, oldest first; see `JournalReader`."""
        self._check()
        return self._reader.starts_of(name)

    def begin_attempt(
        self, context: RunContext, bank: str, settings: str = "{}", *, resume_step: int = 0
    ) -> int:
        """Note that the run starts, or goes on from the checkpoint of `resume_step`.

        `bank` is the bank's fingerprint, `settings` JSON without secrets. Returns the attempt's
        number, from 1. It is on disk when this returns.
        """
        if self.run is None:
            known = self._reader.runs() if resume_step > 0 else ()
            stamp = time.strftime("%Y%m%d-%H%M%S")
            self.run = known[-1] if known else f"{stamp}-{secrets.token_hex(2)}"
        run = self.run
        self.attempt = self.execute(
            lambda connection: writes.attempt(
                connection, run, time.time(), resume_step, bank, context, settings
            )
        )
        return self.attempt

    def record(
        self,
        judgement: Judgement,
        wall_time: float | None = None,
        measure_seconds: float | None = None,
    ) -> None:
        """Hand over one judged reading; it is on disk once a later `flush` returns.

        A second reading of the same step in the same attempt is left out: the first one counts.

        Raises:
            JournalError: no attempt has begun, the reading is not at hand or has no step, or the
                disk has refused for so long that 1,024 readings wait already.
        """
        reading = judgement.reading
        if self.run is None or self.attempt == 0:
            raise JournalError("record was called before begin_attempt: call that first")
        if reading is None or reading.step is None:
            raise JournalError("a reading without a step cannot be kept: set Reading.step")
        row = JournalRow(
            run=self.run,
            attempt=self.attempt,
            step=reading.step,
            wall_time=time.time() if wall_time is None else wall_time,
            measure_seconds=measure_seconds,
            judgement=judgement,
        )
        policy = self._alerts
        future = self._submit(lambda connection: writes.reading(connection, row, reading, policy))
        future.add_done_callback(lambda done: self._note_loss(row.step, done))

    def flush(self, timeout: float = 30.0) -> None:
        """Return when everything handed over so far is on disk.

        Raises:
            JournalError: it could not all be written; the message says what is missing.
        """
        self._wait(self._submit(lambda _: None), timeout)
        self._raise_losses()

    def close(self, timeout: float = 30.0) -> None:
        """Write what waits, stop the writer and let the next one in. Closing twice is fine.

        Raises:
            JournalError: readings could not be written in time; the message says how many.
        """
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        atexit.unregister(self._close_at_exit)
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        with contextlib.suppress(queue.Full):  # the writer is awake then, and sees _closing
            self._queue.put_nowait(None)
        self._thread.join(timeout + 1.0)
        if self._thread.is_alive():  # it may still write, so the claim stays until the process ends
            raise JournalError(f"the disk of '{self.path}' does not answer: readings may be lost")
        self._claim.lock.release()
        self._raise_losses()

    def trajectory(self, run: str | None = None) -> list[JournalRow]:
        """The readings of this run (or another one kept here); see `JournalReader.trajectory`."""
        self.flush()
        return self._reader.trajectory(self._named(run))

    def reading(self, row: JournalRow) -> Reading:
        """The reading behind a row, to the last bit."""
        self._check()
        return self._reader.reading(row)

    def latest_judge_state(
        self, run: str | None = None, at_step: int | None = None
    ) -> JudgeState | None:
        """What the judge carried on from the last reading at or before `at_step`."""
        self.flush()
        return self._reader.latest_judge_state(self._named(run), at_step)

    def latch_stop(self, reason: str) -> None:
        """Remember, on disk before this returns, that the run was told to stop, and why."""
        self._event("stop", None, reason)

    def stop_latched(self) -> str | None:
        """Why this run was told to stop, in any attempt; None if it was not, or it was cleared."""
        self._check()
        return None if self.run is None else self._reader.stop_latched(self.run)

    def acknowledged(self) -> frozenset[str]:
        """The behaviours that someone has silenced in this run."""
        self._check()
        return frozenset(() if self.run is None else self._reader.acknowledged(self.run))

    def clear_stop(self, why: str = "") -> None:
        """Let the run go on after a stop."""
        self._event("stop-cleared", None, why)

    def note(self, detail: str, *, kind: str = "note", reference: str | None = None) -> None:
        """Keep a remark on the run (kind "end" for how it ended, "probe" for what one found)."""
        self._event(kind, reference, detail)

    def give_up(self, why: str) -> None:
        """Note that nobody watches the run any more; a later `flush` says that it is on disk."""
        alert = event("disabled", self._named(None), why, time.time())
        self._submit(lambda c: writes.give_up(c, alert, self._alerts))

    def execute(self, job: Callable[[sqlite3.Connection], T], timeout: float = 30.0) -> T:
        """Run `job` in a transaction on the writer thread, and return what it returns.

        It may run again if its commit fails, so it must do nothing but SQL.
        """
        return self._wait(self._submit(job), timeout)

    def _event(self, kind: str, reference: str | None, detail: str) -> None:
        run = self._named(None)
        self.execute(lambda c: writes.event(c, run, time.time(), kind, reference, detail))

    def _named(self, run: str | None) -> str:
        run = run or self.run
        if run is None:
            raise JournalError(
                "no run is named yet: call begin_attempt first, or open the journal with run=..."
            )
        return run

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise JournalError(
                f"'{self.path}' belongs to process {self._pid}, of which this one was forked: "
                "record readings in the training process only"
            )
        if self._closed:
            raise JournalError(f"'{self.path}' has been closed: open it again")

    def _submit(self, job: Callable[[sqlite3.Connection], T]) -> Future[T]:
        self._check()
        future: Future[T] = Future()
        try:
            self._queue.put_nowait((job, future))
        except queue.Full:
            if not self._crowded:
                logger.warning("'%s': %d readings wait, the disk is slow", self.path, QUEUE_SIZE)
            self._crowded = True
            try:
                self._queue.put((job, future), timeout=PATIENCE_SECONDS)
            except queue.Full:
                raise JournalError(
                    f"'{self.path}' takes no more readings ({self._queue.qsize()} wait): free or "
                    "replace its disk; this reading is not recorded"
                ) from None
        return future

    def _wait(self, future: Future[T], timeout: float) -> T:
        try:
            return future.result(timeout)
        except TimeoutError:
            raise JournalError(
                f"'{self.path}' has not been written for {timeout:g} s "
                f"({self._queue.qsize() + 1} entries wait in memory): is its disk full or gone?"
            ) from None
        except sqlite3.Error as error:
            raise JournalError(
                f"'{self.path}' cannot be written ({error}): is its disk full or gone?"
            ) from None

    def _raise_losses(self) -> None:
        """Say once what could not be written."""
        lost, self._lost = self._lost, []
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise JournalError(f"'{self.path}' lacks {lost[0]}{more}: see the log for the cause")

    def _note_loss(self, step: int, done: Future[Any]) -> None:
        error = done.exception()
        if error is not None:
            self._lost.append(f"the reading of step {step} ({error})")
            logger.error("the reading of step %d is not in '%s': %s", step, self.path, error)
            if self.on_loss is not None:
                self.on_loss(self._lost[-1])

    def _close_at_exit(self) -> None:
        try:
            self.close()
        except JournalError as error:
            logger.error("%s", error)  # noqa: TRY400  # the sentence says it all

    def _write(self) -> None:
        """The writer thread: batches of jobs, each batch one transaction, until closed."""
        connection = self._claim.connection
        try:
            while not (self._closing.is_set() and self._queue.empty()):
                batch = [self._queue.get()]
                while len(batch) < BATCH and not self._queue.empty():
                    batch.append(self._queue.get())
                self._commit(connection, [entry for entry in batch if entry is not None])
                self._crowded = self._crowded and not self._queue.empty()
        finally:
            connection.close()

    def _commit(self, connection: sqlite3.Connection, batch: list[tuple[Job, Future[Any]]]) -> None:
        """Write one batch, trying for as long as the disk refuses and nobody gives up waiting."""
        delay = 0.05
        while batch:
            try:
                outcomes = writes.transaction(connection, [job for job, _ in batch])
            except sqlite3.Error as error:
                # a disk that is full or away may come back, a file that is damaged does not
                lasting = not isinstance(error, sqlite3.OperationalError)
                if lasting or time.monotonic() >= self._deadline:
                    outcomes = [error] * len(batch)
                else:
                    if delay == 0.05:
                        logger.warning(
                            "'%s' cannot be written (%s): readings wait in memory, and are tried "
                            "again until it can",
                            self.path,
                            error,
                        )
                    if self._closing.wait(delay):
                        time.sleep(0.05)
                    delay = min(2 * delay, 5.0)
                    continue
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, BaseException):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
            if self.on_commit is not None:
                self.on_commit()
            return


def _orphan() -> None:
    """In a forked child (a data-loader worker): never touch, and never close, what the parent has.

    Closing the inherited connection would roll the parent's open transaction back under it, so the
    child keeps a reference that even the end of its interpreter does not drop.
    """
    for journal in list(_journals):
        journal._claim.lock.abandon()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(journal._claim.connection))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_orphan)
