"""The record of one watched run: everything that keeps its readings, shows them and tells of them.

Journal, outbox and notifiers, snapshots, exporters; opened together, told together, closed
together. Whoever of them fails keeps a reading from nobody else.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wvmonitor.detection.context import RunContext
from wvmonitor.detection.verdict import JudgeState
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.outbox import Outbox
from wvmonitor.journal.snapshot_writer import SnapshotWriter
from wvmonitor.live.failures import Failures
from wvmonitor.live.run import Run
from wvmonitor.live.run_journal import open_journal, place_of
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.exporter import Exporter, Observation, unwatched
from wvmonitor.outputs.notifier import Attending
from wvmonitor.outputs.prometheus import PrometheusExporter

logger = logging.getLogger(__name__)

_at_work: set[Outputs] = set()
"""What monitors of this process hold open; whoever dies in training never closes it."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_at_work.clear)


class Outputs:
    """What keeps and shows the readings of one attempt; an unopened one keeps nothing.

    Attributes:
        journal: the durable record, where the run has a folder.
        snapshots: the writer of snapshots, where `record` is set.
        failures: where the record's own failures go.
        quiet: True keeps and shows nothing: what is read is no step of the run.
    """

    def __init__(self, settings: MonitorSettings, given: Sequence[Exporter]) -> None:
        """Open nothing yet.

        Args:
            settings: of the monitor.
            given: exporters beside those that the settings ask for; they outlive an attempt.
        """
        self.journal: Journal | None = None
        self.snapshots: SnapshotWriter | None = None
        self.failures = Failures(
            policy=settings.on_monitor_failure,
            disable_after=settings.disable_after,
            count=self.count,
        )
        self.quiet = False
        self._settings = settings
        self._given = tuple(given)
        self._exporters = list(given)
        self._outbox: Outbox | None = None
        self._attending: list[Attending] = []
        self._place: Path | None = None
        self._thread = threading.current_thread()
        self._displaced: tuple[Run, RunContext, str, bool] | None = None
        self._opened: tuple[Run, RunContext, str, bool] | None = None

    def open(self, run: Run, context: RunContext, bank: str, *, sharded: bool) -> JudgeState | None:
        """Open everything that the settings ask for.

        A journal that cannot be had costs nobody the run's verdicts: it is judged without one.

        Args:
            run: what is known of the run.
            context: what its verdicts depend on.
            bank: the bank's fingerprint.
            sharded: whether no process holds the whole model.

        Returns:
            Where judging had come to at the step from which the run resumes, if that is known.
        """
        self._place = place_of(self._settings, run)
        self._end_abandoned()
        return self._open(run, context, bank, sharded=sharded)

    def _open(
        self, run: Run, context: RunContext, bank: str, *, sharded: bool
    ) -> JudgeState | None:
        self._thread = threading.current_thread()
        self._opened, self._displaced = (run, context, bank, sharded), None
        self._exporters = [*self._given, *self._settings.build_exporters()]
        _at_work.add(self)
        state = self.failures.guarded(
            "journal", lambda: self._open_journal(run, context, bank), None
        )
        if self._place is not None and self.journal is None:
            logger.error("this run is judged, but without a journal no verdict of it is kept")
        if self._settings.record:
            self._open_snapshots(sharded=sharded)
        return state

    def _end_abandoned(self) -> None:
        """Close what a run of this thread left open at the same place: it trains no more.

        `train()` returns or raises before its thread can start another. A thread that lives may
        train still, and keeps what it holds.
        """
        here = threading.current_thread()
        for other in [o for o in _at_work if o is not self and o._place == self._place]:
            if other._place is not None and (other._thread is here or not other._thread.is_alive()):
                logger.warning(
                    "the run %s was never closed (an error or Ctrl-C ended its training?): its "
                    "journal is closed now, and the next run written there",
                    other.run,
                )
                other._displaced = other._opened
                other.close()

    def go_on(self) -> None:
        """Go on beside whoever took the place of this run, which trains after all."""
        if self._displaced is not None:
            run, context, bank, sharded = self._displaced
            self._open(replace(run, run_id=self.run), context, bank, sharded=sharded)

    def _open_journal(self, run: Run, context: RunContext, bank: str) -> JudgeState | None:
        settings = self._settings
        if self._place is None:
            return None
        self.journal, state = open_journal(self._place, settings, run, context, bank)
        notifiers = settings.build_notifiers()
        self._attending = [n for n in notifiers.values() if isinstance(n, Attending)]
        senders = {name: n.send for name, n in notifiers.items()}
        if senders:
            self._outbox = Outbox(self.journal, senders, on_pending=self._show_pending)
        return state

    def _open_snapshots(self, *, sharded: bool) -> None:
        if self.journal is None or self.journal.run is None or sharded:
            logger.warning(
                "record=True keeps nothing of this run: %s",
                "no process holds the whole of a sharded model"
                if sharded
                else "there is no folder for a journal (set journal_dir)",
            )
            return
        self.snapshots = SnapshotWriter(
            self.journal.path,
            self.journal.run,
            self.journal.attempt,
            rank=self._settings.record_rank,
            limit_bytes=self._settings.record_limit_gb * 1e9,
            on_failure=lambda: self.count("record"),
        )

    @property
    def run(self) -> str | None:
        """The run's id in the journal."""
        return self.journal.run if self.journal else None

    def acknowledged(self) -> frozenset[str]:
        """The behaviours whose drift somebody has acknowledged."""
        journal = self.journal
        if journal is None:
            return frozenset()
        return self.failures.guarded("journal", journal.acknowledged, frozenset())

    def publish(self, observation: Observation, state: JudgeState) -> None:
        """Keep and show a reading; nothing while `quiet` is set."""
        if self.quiet:
            return
        for notifier in self._attending:
            self.failures.guarded("notifier", notifier.attend, None)
        self.failures.guarded("journal", lambda: self._keep(observation, state), None)
        self._show(observation)

    def give_up(self, last: Observation | None, step: int) -> Observation | None:
        """Keep and show that nobody watches this run from `step` on.

        Args:
            last: the last observation, if there is one.
            step: at which the monitor gave up.

        Returns:
            What is known of the run now.
        """
        why = f"not watched since step {step}: the monitor has failed too often and gave up"
        if journal := self.journal:
            self.failures.guarded("journal", lambda: journal.give_up(why), None)
        if last is None:
            return None
        last = unwatched(last, why)
        self._show(last)
        return last

    def _show(self, observation: Observation) -> None:
        for exporter in self._exporters:
            self.failures.guarded("exporter", lambda e=exporter: e.export(observation), None)  # type: ignore[misc]

    def _keep(self, observation: Observation, state: JudgeState) -> None:
        if self.journal:
            self.journal.record(
                observation.reading,
                observation.scores,
                observation.verdicts,
                state,
                measure_seconds=observation.measure_seconds,
            )

    def count(self, where: str) -> None:
        """Count a failure where exporters show it."""
        for exporter in self._exporters:
            try:
                exporter.error(where)
            except Exception:
                logger.exception("%s cannot count a failure", type(exporter).__name__)

    def end_attempt(self) -> None:
        """Close what belongs to one attempt; the run goes on with another."""
        self._close(self._exporters[len(self._given) :])
        self.journal = self.snapshots = self._outbox = None
        self._attending = []
        self.failures.end_row()

    def close(self) -> None:
        """Deliver and write what is left, and let go of journal, ports and threads."""
        self._close(self._exporters)

    def _close(self, exporters: Sequence[Exporter]) -> None:
        _at_work.discard(self)
        try:
            if self._outbox and (journal := self.journal):
                # An alert of the last reading is delivered only once it is on disk.
                self.failures.guarded("close", lambda: journal.flush(5.0), None)
            for record in (self.snapshots, self._outbox, self.journal):
                if record:
                    self.failures.guarded("close", record.close, None)
        finally:
            for exporter in exporters:
                self.failures.guarded("close", exporter.close, None)

    def _show_pending(self, count: int) -> None:
        for exporter in self._exporters:
            if isinstance(exporter, PrometheusExporter):
                exporter.set_outbox_pending(count)
