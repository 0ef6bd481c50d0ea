"""The snapshot writer: each reading's task vector goes to disk beside the journal.

So a run can be measured later against references that did not exist when it ran. On the training
thread happens only what must read the weights: copying small factors, or the sketch's four thin
products. A thread of its own writes. It fails open: a snapshot that cannot be kept is logged and
counted, and neither training nor reading notices.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from wvmonitor.errors import NonFiniteError
from wvmonitor.journal.snapshots import Snapshot, folder_of, write_snapshot
from wvmonitor.vectors.sketch import sketch
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import LowRankUpdate, Update, clone, held

logger = logging.getLogger(__name__)

WAITING = 2
"""Snapshots in memory that wait for the disk; beyond that they are left out."""


class SnapshotWriter:
    """Keeps the snapshots of one attempt of a run.

    Attributes:
        missed: readings without a snapshot so far.
    """

    def __init__(
        self,
        journal: Path,
        run: str,
        attempt: int,
        *,
        rank: int,
        limit_bytes: float,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the writing thread.

        `rank` is of the sketch of dense updates; `limit_bytes` the most that the snapshots of this
        run may take on disk, earlier attempts included; `on_failure` is told, on any thread, of
        each that could not be kept.
        """
        self.missed = 0
        self._journal = journal
        self._run = run
        self._attempt = attempt
        self._rank = rank
        self._limit = limit_bytes
        self._on_failure = on_failure
        self._updates: dict[str, Update] = {}
        self._lost = 0.0
        self._broken: str | None = None
        self._said: set[str] = set()
        self._written = _size(folder_of(journal, run))
        self._queue: queue.Queue[tuple[Snapshot, float] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._write, name="wvmonitor-recorder", daemon=True)
        self._thread.start()

    def watching(self, tau: TaskVector) -> TaskVector:
        """The same task vector, each update of which is kept as it is measured."""
        self._updates, self._lost, self._broken = {}, 0.0, None

        def produce(name: str) -> Update:
            update = tau.update(name)
            self._keep(name, update)
            return update

        return TaskVector({n: tau.shape(n) for n in tau.names()}, produce, tau.origin)

    def record(self, tau: TaskVector, step: int) -> None:
        """Hand over what was kept of `tau` since `watching`; returns at once."""
        if self._broken is None and len(self._updates) < len(tau):
            self._broken = f"{len(tau) - len(self._updates)} parameters were not read"
        if self._broken is not None:
            self._miss(step, self._broken)
            return
        held, self._updates = TaskVector.of(self._updates, tau.origin), {}
        try:
            self._queue.put_nowait((Snapshot(self._run, self._attempt, step, held), self._lost))
        except queue.Full:
            self._miss(step, "the disk is slower than the readings")

    def close(self, timeout: float = 30.0) -> None:
        """Write what waits; what the disk has not taken by then is lost, and said."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout)
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.error("the flight recorder's last snapshots may be lost: the disk is too slow")

    def _keep(self, name: str, update: Update) -> None:
        if self._broken is not None:
            return
        try:
            update = held(update)
            if isinstance(update, LowRankUpdate):
                self._updates[name] = clone(update)
                return
            part = sketch(update, self._rank, name=name)
        except Exception as error:  # noqa: BLE001  recording must not cost the reading
            self._broken = f"{type(error).__name__}: {error}"
            return
        self._updates[name] = part.update
        self._lost += part.total - part.kept

    def _write(self) -> None:
        while (waiting := self._queue.get()) is not None:
            snapshot, lost = waiting
            try:
                if self._written >= self._limit:
                    self._miss(
                        snapshot.step,
                        f"the run's snapshots take {self._written / 1e9:.3g} GB, and "
                        f"record_limit_gb is {self._limit / 1e9:.3g}",
                    )
                    continue
                whole = _with_share(snapshot, lost)
                self._written += write_snapshot(whole, self._journal).stat().st_size
            except Exception as error:  # noqa: BLE001  whatever the disk does, training goes on
                self._miss(snapshot.step, f"{type(error).__name__}: {error}")

    def _miss(self, step: int, why: str) -> None:
        """Count a snapshot that is not there; say each reason once."""
        self.missed += 1
        if why not in self._said and len(self._said) < WAITING * 8:
            self._said.add(why)
            logger.warning("the flight recorder keeps nothing of step %d: %s", step, why)
        self._on_failure()


def _with_share(snapshot: Snapshot, lost: float) -> Snapshot:
    """The snapshot with the share of ‖τ‖² that it holds, given what of ‖τ‖² it does not."""
    vector = snapshot.vector
    squared = vector.squared_norm()
    if not math.isfinite(squared):
        raise NonFiniteError("the weights hold NaN or infinity")
    share = squared / (squared + lost) if lost else 1.0
    origin = replace(vector.origin, kept=vector.origin.kept * share)
    return replace(snapshot, vector=TaskVector.of(dict(vector.updates()), origin))


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else 0
