"""The record of one watched run: everything that keeps its readings, shows them and tells of them.

Journal, outbox and notifiers, snapshots, exporters; opened together, told together, closed
together. Whoever of them fails keeps a reading from nobody else.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from wvmonitor.detection.context import RunContext
from wvmonitor.detection.explanation import in_full
from wvmonitor.detection.judgement import JudgeState, State, Verdict
from wvmonitor.errors import JournalError
from wvmonitor.journal.alerts import Alert, event, located
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.outbox import DeliveryError, Outbox
from wvmonitor.journal.snapshot_writer import SnapshotWriter
from wvmonitor.live.failures import Failures
from wvmonitor.live.run import Run
from wvmonitor.live.run_journal import open_journal, place_of
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.live.termination import LAST_SECONDS, before_sigterm
from wvmonitor.outputs.exporter import Exporter, Observation
from wvmonitor.outputs.notifier import Attending, Notifier
from wvmonitor.outputs.prometheus import PrometheusExporter
from wvmonitor.outputs.run_state import RunState, checkpoints_in

logger = logging.getLogger(__name__)

_at_work: set[Outputs] = set()
"""What monitors of this process hold open; whoever dies in training never closes it."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_at_work.clear)

DIRECT_TRIES = 3
DIRECT_SECONDS = 5.0
"""How hard what no journal can keep is sent."""


class Outputs:
    """What keeps and shows the readings of one attempt; an unopened one keeps nothing.

    Attributes:
        journal: the durable record, where the run has a folder.
        snapshots: the writer of snapshots, where `record` is set.
        failures: where the record's own failures go.
    """

    def __init__(self, settings: MonitorSettings, given: Sequence[Exporter]) -> None:
        """Open nothing yet.

        Exporters that are `given` beside those that the settings ask for outlive an attempt.
        """
        self.journal: Journal | None = None
        self.snapshots: SnapshotWriter | None = None
        self.failures = Failures(
            policy=settings.on_monitor_failure,
            disable_after=settings.disable_after,
            count=self.count,
        )
        self._settings = settings
        self._given = tuple(given)
        self._exporters = list(given)
        self._outbox: Outbox | None = None
        self._attending: list[Attending] = []
        self._place: Path | None = None
        self._thread = threading.current_thread()
        self._displaced: tuple[Run, RunContext, str, bool] | None = None
        self._opened: tuple[Run, RunContext, str, bool] | None = None
        self._notifiers: dict[str, Notifier] = {}
        self._folder: Path | None = None
        self._name = "run"
        self._journal_is_lost = False
        self._telling: list[threading.Thread] = []
        self._undo_sigterm: Callable[[], None] = lambda: None

    def open(self, run: Run, context: RunContext, bank: str, *, sharded: bool) -> JudgeState | None:
        """Open everything that the settings ask for.

        A journal that cannot be had costs nobody the run's verdicts: it is judged without one.

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
        self._folder = run.folder
        self._name = self._settings.run or run.run_id or run.name or "run"
        self._notifiers = self._settings.build_notifiers()
        self._journal_is_lost = False
        if any(self._metrics()):
            self._undo_sigterm = before_sigterm(self._terminated)
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
        here, place = threading.current_thread(), self._place
        if place is None:
            return
        for other in [o for o in _at_work if o is not self and o._place is not None]:
            same = other._place is not None and other._place.resolve() == place.resolve()
            if same and (other._thread is here or not other._thread.is_alive()):
                logger.warning(
                    "the run %s was never closed (an error or Ctrl-C ended its training?): its "
                    "journal is closed now, and the next run written there",
                    other.run,
                )
                other._displaced = other._opened
                other.close("stopped")

    def go_on(self) -> None:
        """Go on beside whoever took the place of this run, which trains after all."""
        if self._displaced is not None:
            run, context, bank, sharded = self._displaced
            self._open(replace(run, run_id=self.run), context, bank, sharded=sharded)

    def _open_journal(self, run: Run, context: RunContext, bank: str) -> JudgeState | None:
        settings = self._settings
        if self._place is None:
            return None
        try:
            self.journal, state = open_journal(self._place, settings, run, context, bank)
        except JournalError as error:
            self._journal_lost(str(error))
            raise
        self.journal.on_loss = self._journal_lost
        self._attending = [n for n in self._notifiers.values() if isinstance(n, Attending)]
        senders = {name: n.send for name, n in self._notifiers.items()}
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

    def publish(self, observation: Observation, before: Mapping[str, Verdict]) -> None:
        """Keep and show a reading."""
        self.log_raised(observation, before)
        for notifier in self._attending:
            self.failures.guarded("notifier", notifier.attend, None)
        self.failures.guarded("journal", lambda: self._keep(observation), None)
        for exporter in self._metrics():
            exporter.show_way_back(observation, checkpoints_in(self._folder))
        self._show(observation)

    def never_begun(self, run: Run, bank: str) -> None:
        """Keep and tell that nobody watches a run, which could not be begun."""
        failure = self.failures.last
        self._place = place_of(self._settings, run)
        self._end_abandoned()
        self._open(run, RunContext(), bank, sharded=False)
        self._unwatched(f"not watched: the monitor could not begin ({failure})", step=None)

    def log_raised(self, observation: Observation, before: Mapping[str, Verdict]) -> None:
        """Log what was not there before: warnings, alarms, and what cannot be judged.

        Behaviours that are expected or acknowledged are left out.
        """
        quiet = {*self._settings.expected, *observation.acknowledged}
        for verdict in observation.verdicts:
            earlier = before.get(verdict.reference)
            news = verdict.account or verdict.state == State.UNKNOWN
            risen = news and (earlier is None or earlier.state != verdict.state)
            if risen and verdict.reference not in quiet:
                text = in_full(verdict.reason, verdict.account)
                logger.warning(
                    "%s: %s at step %s: %s", verdict.state, verdict.reference, verdict.step, text
                )

    def give_up(self, last: Observation | None, step: int) -> Observation | None:
        """Keep and show that nobody watches this run from `step` on.

        Returns:
            What is known of the run now.
        """
        why = f"not watched since step {step}: the monitor has failed too often and gave up"
        self._unwatched(why, step=step)
        if last is None:
            return None
        last = replace(last, judgement=last.judgement.unwatched(why))
        self._show(last)
        self._show_state("disabled")
        return last

    def _unwatched(self, why: str, *, step: int | None) -> None:
        """Keep in the journal, or tell past it, that a run is not watched."""
        if journal := self.journal:
            self.failures.guarded("journal", lambda: journal.give_up(why), None)
        else:
            self._tell_directly(event("disabled", self._name, why, time.time(), step=step))

    def _metrics(self) -> Iterator[PrometheusExporter]:
        return (e for e in self._exporters if isinstance(e, PrometheusExporter))

    def _show_state(self, state: RunState) -> None:
        for exporter in self._metrics():
            self.failures.guarded("exporter", lambda e=exporter: e.show_states(state), None)  # type: ignore[misc]

    # What no journal can deliver

    def _journal_lost(self, why: str) -> None:
        """Tell the notifiers, past the journal, that it is lost; once."""
        if not self._journal_is_lost:
            self._journal_is_lost = True
            alert = event("journal lost", self.run or self._name, why, time.time())
            self._tell_directly(alert)

    def _tell_directly(self, alert: Alert) -> None:
        where = self._settings.alert_policy(lambda _: ()).where
        alert = located(alert, where)
        for name, notifier in self._notifiers.items():
            teller = threading.Thread(target=_tell, args=(name, notifier, alert), daemon=True)
            teller.start()
            self._telling.append(teller)

    # The end

    def _show(self, observation: Observation) -> None:
        for exporter in self._exporters:
            self.failures.guarded("exporter", lambda e=exporter: e.export(observation), None)  # type: ignore[misc]

    def _keep(self, observation: Observation) -> None:
        if self.journal is None:
            return
        try:
            self.journal.record(observation.judgement, measure_seconds=observation.measure_seconds)
        except JournalError as error:
            self._journal_lost(str(error))
            raise

    def count(self, where: str) -> None:
        """Count a failure where exporters show it."""
        for exporter in self._exporters:
            try:
                exporter.error(where)
            except Exception:
                logger.exception("%s cannot count a failure", type(exporter).__name__)

    def end_attempt(self) -> None:
        """Close what belongs to one attempt; the run goes on with another."""
        for exporter in self._metrics():
            exporter.linger = 0.0
        self._close(self._exporters[len(self._given) :])
        self.journal = self.snapshots = self._outbox = None
        self._attending = []
        self.failures.end_row()

    def close(self, state: RunState | None) -> None:
        """Deliver and write what is left, and let go of journal, ports and threads.

        Args:
            state: what has become of the run, if it did not fail.
        """
        if state is not None:
            self._show_state(state)
        self._close(self._exporters)

    def _terminated(self) -> None:
        """SIGTERM: say that the run was stopped, and stay until that was seen."""
        end = time.monotonic() + LAST_SECONDS
        self.close("stopped")
        for exporter in self._metrics():
            exporter.wait_closed(end - time.monotonic())

    def _close(self, exporters: Sequence[Exporter]) -> None:
        _at_work.discard(self)
        try:
            if self._outbox and (journal := self.journal):
                # An alert of the last reading is delivered only once it is on disk.
                self.failures.guarded("close", lambda: journal.flush(5.0), None)
            for record in (self.snapshots, self._outbox, self.journal):
                if record:
                    self.failures.guarded("close", record.close, None)
            self._undo_sigterm()
            for teller in self._telling:
                teller.join(DIRECT_SECONDS)
        finally:
            for exporter in exporters:
                self.failures.guarded("close", exporter.close, None)

    def _show_pending(self, count: int) -> None:
        for exporter in self._metrics():
            exporter.set_outbox_pending(count)


def _tell(name: str, notifier: Notifier, alert: Alert) -> None:
    """Deliver one alert with no journal to keep it: now, in a few tries, or not at all."""
    for number in range(DIRECT_TRIES):
        time.sleep(number)
        try:
            notifier.send(alert, DIRECT_SECONDS)
        except DeliveryError as error:
            logger.warning("%r is not told that %s: %s", name, alert.title, error)
            if not error.retryable:
                return
        except Exception as error:  # noqa: BLE001  a notifier's bug must not stop the others
            logger.warning("%r is not told that %s: %s", name, alert.title, type(error).__name__)
            return
        else:
            return
