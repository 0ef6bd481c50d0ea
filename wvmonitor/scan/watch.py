"""The sidecar: looks for checkpoints as they are saved, and monitors runs without touching them.

Each poll picks the checkpoints that are complete and new, measures and judges them in the order of
steps, and then does what a live monitor does: journal, metrics, alerts. All runs share one journal,
from which a sidecar that is started again goes on.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judgement import JudgeState
from wvmonitor.errors import MissingPathError, SettingsError, UnmeasurableModelError
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.outbox import Outbox
from wvmonitor.journal.reader import JournalReader
from wvmonitor.live.run import RUN_ID_LENGTH
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.live.validation import bank_folder, judge_of
from wvmonitor.outputs.exporter import Exporter, Observation
from wvmonitor.outputs.prometheus import PrometheusExporter
from wvmonitor.outputs.run_state import checkpoints_in
from wvmonitor.references import ReferenceBank
from wvmonitor.references.calibrated import calibration_of
from wvmonitor.scan.measure import find_base, read_target
from wvmonitor.scan.new_checkpoints import NewCheckpoints
from wvmonitor.scan.run_end import has_ended
from wvmonitor.scan.targets import Target, find_targets
from wvmonitor.scan.text import visible

logger = logging.getLogger(__name__)

STATE_FOLDER = ".wvmonitor"
"""In the folder of runs, by default: the sidecar's journal."""


@dataclass(frozen=True)
class WatchOptions:
    """What can be set of a sidecar beside the monitor's own settings.

    Attributes:
        every: seconds between two polls.
        settle: of `NewCheckpoints`.
        forget: seconds after its last reading at which a run leaves the metrics.
        optimizer: the runs' optimiser, which files do not say.
    """

    every: float = 10.0
    settle: float = 60.0
    forget: float = 86_400.0
    optimizer: str | None = None

    def __post_init__(self) -> None:
        if not self.every > 0:
            raise SettingsError(f"every must be a positive number of seconds, got {self.every}")


@dataclass
class _Run:
    """A run in the journal: its current attempt, and when the readings that count were made."""

    times: dict[int, float]
    attempt: int = 0


class Watcher:
    """Watches a folder of runs; a context manager.

    Example:
        with Watcher("runs", MonitorSettings(references="bank")) as watcher:
            watcher.run(stop=threading.Event())
    """

    def __init__(
        self,
        folder: str | Path,
        settings: MonitorSettings,
        options: WatchOptions | None = None,
        *,
        show: Callable[[Observation], None] | None = None,
    ) -> None:
        """Load the bank, open the journal, and show what it knows already.

        Args:
            folder: of the runs; a run is a folder that holds `checkpoint-STEP` folders.
            settings: as of a live monitor. `journal_dir` is where the sidecar's journal goes.
            options: of the sidecar itself.
            show: called with each new observation.

        Raises:
            MissingPathError: there is no such folder.
            WVMonitorError: the bank, its calibration or the journal cannot be used.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise MissingPathError(f"there is no folder '{folder}' to watch: make it first")
        self._settings, self._options = settings, options or WatchOptions()
        self._show = show or (lambda _: None)
        self._bank = ReferenceBank.load(bank_folder(settings))
        calibration = calibration_of(self._bank, settings.calibration)
        self._judge = judge_of(settings, self._bank, calibration)
        self._runs: dict[str, _Run] = {}
        self._folders: dict[str, Path] = {}
        self._shown: dict[str, float] = {}
        self._ended: set[str] = set()
        self._new_checkpoints = NewCheckpoints(
            self.folder, settle=self._options.settle, measured=self._measured_at
        )
        self._journal = Journal.open(
            settings.journal_dir or self.folder / STATE_FOLDER,
            alerts=settings.alert_policy(lambda run: checkpoints_in(self._folder(run))),
        )
        self._reader = JournalReader(self._journal.path)
        self._exporters: list[Exporter] = settings.build_exporters()
        self._served = [e for e in self._exporters if isinstance(e, PrometheusExporter)]
        senders = {name: n.send for name, n in settings.build_notifiers().items()}
        self._outbox = Outbox(self._journal, senders, on_pending=self._pending) if senders else None
        self._recall()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int | None:
        """The port on which metrics are served, if they are."""
        return next((exporter.port for exporter in self._served), None)

    def run(self, stop: threading.Event) -> None:
        """Poll until `stop` is set. A poll that fails is counted and said; the next one comes."""
        while not stop.is_set():
            try:
                self.poll()
            except Exception:  # a sidecar that dies would leave every run unwatched
                logger.exception("a look at '%s' failed", self.folder)
                self._failed("watch")
            stop.wait(self._options.every)

    def poll(self) -> int:
        """Look once, and judge what is new and complete; returns how many checkpoints that were."""
        if not self.folder.is_dir():
            raise MissingPathError(f"the folder '{self.folder}' is gone")
        count = 0
        for folder, checkpoints in self._new_checkpoints.look().items():
            # of these alone: each trainer's state holds the whole log up to its step
            names = {path.name for _, path in checkpoints}
            targets = [t for t in find_targets([folder], only=names) if t.run is not None]
            for step, path in checkpoints:
                # itself, or the adapter in it
                mine = (t for t in targets if Path(t.path).is_relative_to(path))
                target = next(mine, None)
                count += self._take(self._name(folder), step, path, target)
        self._look_for_ends()
        self._forget()
        return count

    def close(self) -> None:
        """Deliver and write what is left, and let go of journal, ports and threads."""
        if self._outbox is not None:
            self._outbox.close()
        self._journal.close()
        for exporter in self._exporters:
            exporter.close()

    # One checkpoint

    def _take(self, run: str, step: int, path: Path, target: Target | None) -> bool:
        """Measure, judge and publish one checkpoint; whether that could be done."""
        try:
            resume, state = self._before(run, step)
            observation, context = self._observe(run, _usable(target), state)
        except Exception as error:  # noqa: BLE001  one broken checkpoint must not hide the others
            if path.is_dir():  # else it was deleted meanwhile, as save_total_limit does
                again = self._new_checkpoints.failed(path)
                self._failed("checkpoint")
                logger.error(  # noqa: TRY400  the sentence says it all
                    "%s cannot be judged, and is %s: %s",
                    visible(path),
                    "tried again" if again else "left until its files change",
                    visible(error),
                )
            return False
        if not self._new_checkpoints.unchanged(path):  # it was being written after all
            return False
        self._record(observation, context, resume)
        self._new_checkpoints.done(path)
        return True

    def _observe(
        self, run: str, target: Target, state: JudgeState
    ) -> tuple[Observation, RunContext]:
        """One pass over a checkpoint, and what is thought of it after the readings before."""
        began = time.perf_counter()
        given = None if self._settings.base is None else str(self._settings.base)
        base, notes = find_base(target, given, self._bank)
        tau = read_target(target, given, base)
        reading = self._bank.measure(tau, step=target.step, progress=target.progress)
        beside = (*target.warnings, *notes, *(notice.message for notice in target.notices))
        reading = replace(reading, warnings=tuple(dict.fromkeys((*beside, *reading.warnings))))
        context = self._judge.context(tau.origin, target.context(self._options.optimizer))
        judgement = self._judge.of_base(base)(
            reading,
            context,
            state,
            acknowledged=self._reader.acknowledged(run),
            # the newest checkpoint of a run that trains is not its last one
            last=target.progress is not None and target.progress >= 1,
        )
        return Observation(run, judgement, time.perf_counter() - began, time.time()), context

    # The journal

    def _before(self, run: str, step: int) -> tuple[int, JudgeState]:
        """The last step before this one that was read, and what the judge carried on from it."""
        known = self._known(run)
        before = max((s for s in known.times if s < step), default=0)
        state = self._reader.latest_judge_state(run, at_step=before) if known.times else None
        return before, state or JudgeState()

    def _record(self, observation: Observation, context: RunContext, before: int) -> None:
        """Keep and show one observation; on disk before the next checkpoint is looked at."""
        run, step = observation.run, observation.scores.step or 0
        known = self._known(run)
        self._journal.run, self._journal.attempt = run, known.attempt
        # A step that is not beyond the last one: the run has gone back, and what followed is void.
        if known.attempt == 0 or step <= max(known.times, default=-1):
            known.attempt = self._journal.begin_attempt(
                context, self._bank.fingerprint, self._settings.redacted_json(), resume_step=before
            )
            known.times = {s: t for s, t in known.times.items() if s <= before}
        self._journal.record(
            observation.judgement,
            wall_time=observation.wall_time,
            measure_seconds=observation.measure_seconds,
        )
        self._journal.flush()
        known.times[step] = observation.wall_time
        self._export(observation)
        self._show(observation)

    def _known(self, run: str) -> _Run:
        if run not in self._runs:
            self._runs[run] = _Run(self._reader.times(run))
        return self._runs[run]

    def _measured_at(self, folder: Path, step: int) -> float | None:
        return self._known(self._name(folder)).times.get(step)

    def _name(self, folder: Path) -> str:
        """A run's id: its folder, seen from the folder of runs."""
        relative = folder.relative_to(self.folder)
        name = visible(self.folder.resolve().name if relative == Path() else relative.as_posix())
        if len(name) > RUN_ID_LENGTH:  # as long as any other run's
            digest = hashlib.sha256(name.encode()).hexdigest()[:12]
            name = f"{name[: RUN_ID_LENGTH - 13]}…{digest}"
        self._folders[name] = folder
        return name

    def _folder(self, run: str) -> Path:
        """Where a run's checkpoints are, by its id."""
        return self._folders.get(run, self.folder / run)

    # What is shown

    def _recall(self) -> None:
        """After a restart, show what the journal last knew of each run."""
        for run in self._reader.runs():
            row = self._reader.latest(run)
            if row is None or time.time() - row.wall_time > self._options.forget:
                continue
            reading = self._reader.reading(row)
            judgement = replace(
                row.judgement.acknowledging(self._reader.acknowledged(run)),
                reading=reading,
                component_shares=reading.component_shares(),
            )
            self._export(Observation(run, judgement, float("nan"), row.wall_time))

    def _export(self, observation: Observation) -> None:
        """Show an observation, and what its run could go back to."""
        checkpoints = checkpoints_in(self._folder(observation.run))
        for served in self._served:
            served.show_way_back(observation, checkpoints)
        for exporter in self._exporters:
            exporter.export(observation)
        self._shown[observation.run] = observation.wall_time
        self._ended.discard(observation.run)

    def _look_for_ends(self) -> None:
        """Show which runs have ended, so that nobody waits for their next reading."""
        for run in self._shown.keys() - self._ended:
            folder = self._folder(run)
            steps = checkpoints_in(folder)
            if steps and has_ended(folder, folder / f"checkpoint-{steps[-1]}"):
                self._ended.add(run)
                for exporter in self._served:
                    exporter.show_states("ended", run)

    def _forget(self) -> None:
        """Take runs off the metrics that have had no reading for long."""
        late = time.time() - self._options.forget
        for run in [run for run, shown in self._shown.items() if shown < late]:
            del self._shown[run]
            self._ended.discard(run)
            for exporter in self._served:
                exporter.forget(run)

    def _failed(self, where: str) -> None:
        for exporter in self._exporters:
            exporter.error(where)

    def _pending(self, count: int) -> None:
        for exporter in self._served:
            exporter.set_outbox_pending(count)


def _usable(target: Target | None) -> Target:
    """The target, unless it is known already that it cannot be read."""
    if target is None:
        raise MissingPathError("it is no checkpoint of its run any more")
    if target.error is not None:
        raise UnmeasurableModelError(target.error.message)
    return target
