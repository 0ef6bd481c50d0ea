"""Monitor: watches one training run. The one data path, whatever the framework.

`source → TaskVector → bank.measure → Reading → scores → Verdict → journal → exporters`.

Framework integrations are thin: they say when training starts, hand over the model after each
optimiser step, and carry out the action that comes back.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from wvmonitor import preflight
from wvmonitor.actions import Action, Actions, log_raised
from wvmonitor.cadence import Cadence
from wvmonitor.detection.account import accounted
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.groups import layer_shares
from wvmonitor.detection.scores import ScoreName, score
from wvmonitor.detection.verdict import JudgeState, Verdict, judge
from wvmonitor.errors import MonitorFailedError, WVMonitorError
from wvmonitor.exporters.exporter import Exporter, Observation
from wvmonitor.exporters.prometheus import PrometheusExporter
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.outbox import Outbox
from wvmonitor.journal.recorder import Recorder
from wvmonitor.notifiers.notifier import Attending
from wvmonitor.probing import Probe, with_probe
from wvmonitor.reading import Geometry, Reading
from wvmonitor.references.background import background_of
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.calibrated import calibration_of, ridges
from wvmonitor.settings import MonitorSettings
from wvmonitor.sources.distributed import agreed, any_sharded, from_first, rank
from wvmonitor.sources.live_model import LiveModel
from wvmonitor.vectors.coverage import component_of
from wvmonitor.vectors.task_vector import TaskVector

logger = logging.getLogger(__name__)

T = TypeVar("T")

WARM_START_SHARE = 1e-3
"""‖τ‖ at the start above this share of ‖w‖ means a warm start, or a wrong base."""


@dataclass(frozen=True)
class Run:
    """What a framework knows of the run it is about to start; None means not known.

    Attributes:
        folder: the run's output folder; the journal goes into `folder/wvmonitor` by default.
        name: the run's name, for people.
        planned_steps: planned number of optimiser steps.
        resume_step: the step it goes on from; 0 for a start from the beginning.
        optimizer: the optimiser's name.
        learning_rate: the peak learning rate.
        run_id: id of the run that it resumes, where a checkpoint names it.
    """

    folder: Path | None = None
    name: str | None = None
    planned_steps: int | None = None
    resume_step: int = 0
    optimizer: str | None = None
    learning_rate: float | None = None
    run_id: str | None = None


@dataclass(frozen=True)
class _Anchor:
    """The task vector at which the current window began."""

    vector: TaskVector
    reading: Reading
    index: int


class Monitor:
    """Measures a model in training against a bank, judges it, and keeps the record.

    Example:
        monitor = Monitor("path/to/bank", every_n_steps=10)
        monitor.start(model, Run(planned_steps=1000))
        for step in range(1, 1001):
            ...  # one optimiser step
            monitor.observe(model, step)
        monitor.close()
    """

    def __init__(
        self,
        references: str | Path | ReferenceBank | None = None,
        *,
        settings: MonitorSettings | None = None,
        exporters: Sequence[Exporter] = (),
        probe: Probe | None = None,
        tokenizer: Any = None,
        **overrides: Any,
    ) -> None:
        """Load what the monitor needs; anything wrong with it is said here, before training.

        Args:
            references: the bank, or its folder; `settings.references` if not given.
            settings: all settings; `overrides` replace single ones.
            exporters: where readings are made visible, beside those that the settings ask for.
            probe: what asks the live model at an alarm, with `on_alarm="probe"`.
            tokenizer: handed to the probe.
            overrides: settings by name.

        Raises:
            SettingsError: the settings contradict each other.
            WVMonitorError: the bank or its calibration cannot be used.
        """
        if not isinstance(references, ReferenceBank) and references is not None:
            overrides["references"] = references
        self.settings = preflight.replaced(settings, overrides)
        self.bank = (
            references
            if isinstance(references, ReferenceBank)
            else ReferenceBank.load(preflight.bank_folder(self.settings))
        )
        self.calibration = calibration_of(self.bank, self.settings.calibration)
        preflight.check(self.settings, self.bank, self.calibration)
        self._probe = preflight.probe_of(self.settings, probe)
        self.tokenizer = tokenizer
        self.run_context = RunContext()
        self.journal: Journal | None = None
        self.last: Observation | None = None
        self.failures = 0
        self._failures_in_a_row = 0
        self._given = tuple(exporters)
        self._exporters = list(exporters)
        self._outbox: Outbox | None = None
        self._recorder: Recorder | None = None
        self._attending: list[Attending] = []
        self._live: LiveModel | None = None
        self._run = Run()
        self._cadence = Cadence(self.settings.every_n_steps, self.settings.max_overhead)
        self._state = JudgeState()
        self._anchor: _Anchor | None = None
        self._readings = 0
        self._actions = Actions(self.settings, calibrated=self.calibration is not None)
        self._background = background_of(self.bank, self.settings.base)
        self._ridge = ridges(self.bank, self.settings.components, self.calibration)

    # The run

    @property
    def started(self) -> bool:
        """Whether `start` has been called."""
        return self._live is not None

    @property
    def disabled(self) -> bool:
        """Whether the monitor has failed too often in a row and gave up, loudly."""
        return self._failures_in_a_row >= self.settings.disable_after

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The latest verdicts by reference."""
        return {v.reference: v for v in self.last.verdicts} if self.last else {}

    def start(self, model: Any, run: Run | None = None, *, live: LiveModel | None = None) -> None:
        """Note where training starts from. Call before the first optimiser step.

        Under distributed training, in every process and after the model has been wrapped.

        Args:
            model: the model to be trained.
            run: what is known of the run.
            live: how the model is read, where the caller has restored its initial state.

        Raises:
            WVMonitorError: this model cannot be measured, or was made from another base.
        """
        if self._live is not None:
            run = self._ended(run or Run())
        self._run = run or Run()
        live = live or LiveModel(model, base=self.settings.base)
        if live.sharded:
            from_first(lambda: self._open(live))
        elif rank() == 0:
            self._open(live)
        self._live = live
        if live.sharded or rank() == 0:
            self._observe_start()

    def _open(self, live: LiveModel) -> None:
        """Say what the run is, and open what keeps and shows its readings."""
        self.run_context = RunContext(
            method=live.method,
            rank=live.rank,
            optimizer=self._run.optimizer,
            learning_rate=self._run.learning_rate,
            base=self.bank.relation_to(live.base_digest),
            planned_steps=self._run.planned_steps,
            readings_planned=_readings_planned(self._run, self.settings.every_n_steps),
        )
        self._exporters = [*self._given, *self.settings.build_exporters()]
        self._open_journal()
        self._open_recorder(live)
        self._cadence = Cadence(self.settings.every_n_steps, self.settings.max_overhead)

    def _ended(self, run: Run) -> Run:
        """End an attempt that never said so (a smaller batch size is tried): the run goes on."""
        previous = self.journal.run if self.journal else None
        self._close_record()
        for exporter in self._exporters[len(self._given) :]:
            self.guarded("close", exporter.close, None)
        self.journal = self._outbox = self._recorder = self.last = self._anchor = None
        self._state = JudgeState()
        self._actions = Actions(self.settings, calibrated=self.calibration is not None)
        return run if run.run_id else replace(run, run_id=previous)

    def _open_journal(self) -> None:
        folder = self.settings.journal_dir or self._run.folder
        if folder is None:
            return
        self.journal = Journal.open(
            folder,
            run=self.settings.run or self._run.run_id,
            alerts=self.settings.alert_policy(),
        )
        self.journal.begin_attempt(
            self.run_context,
            self.bank.fingerprint,
            self.settings.redacted_json(),
            resume_step=self._run.resume_step,
        )
        if self._run.resume_step:
            state = self.journal.latest_judge_state(at_step=self._run.resume_step)
            self._state = state or self._state
        notifiers = self.settings.build_notifiers()
        self._attending = [n for n in notifiers.values() if isinstance(n, Attending)]
        senders = {name: n.send for name, n in notifiers.items()}
        if senders:
            self._outbox = Outbox(self.journal, senders, on_pending=self._show_pending)

    def _open_recorder(self, live: LiveModel) -> None:
        if not self.settings.record:
            return
        if self.journal is None or live.sharded:
            logger.warning(
                "record=True keeps nothing of this run: %s",
                "no process holds the whole of a sharded model"
                if live.sharded
                else "there is no folder for a journal (set journal_dir)",
            )
            return
        self._recorder = Recorder(
            self.journal.path,
            self.run_name,
            self.journal.attempt,
            rank=self.settings.record_rank,
            limit_bytes=self.settings.record_limit_gb * 1e9,
            on_failure=lambda: self._count("record"),
        )

    def _observe_start(self) -> None:
        """Measure before the first step: far from 0 is a warm start or a wrong base."""
        if self._run.resume_step:
            return
        observation = self._measure(0)
        if observation is None:
            return
        norm = observation.scores.norm
        squares = self.bank.gram.products["frobenius"].sum(axis=0).diagonal()
        longest = float(squares.max()) ** 0.5
        if norm > WARM_START_SHARE * longest:
            logger.warning(
                "training starts %.3g away from the base of the references (a reference's own "
                "length is %.3g): a warm start, or another base than you think; what was there "
                "before counts as this run's",
                norm,
                longest,
            )

    def stop_latched(self) -> str | None:
        """Why this run must not go on (it was stopped and nobody has lifted it), or None."""
        return self.journal.stop_latched() if self.journal else None

    # Readings

    def due(self, step: int) -> bool:
        """Whether `observe` would take a reading at this step."""
        return not self.disabled and self._cadence.due(step)

    def observe(self, model: Any, step: int, *, force: bool = False) -> Observation | None:
        """Take a reading if one is due.

        Under distributed training every process may call it: rank 0 takes the reading and keeps
        the record. Where the model is sharded every process must, since all measure together.

        A failure in here never reaches training: it is logged and counted, and after
        `disable_after` of them the monitor gives up (`on_monitor_failure="stop"` raises instead).

        Args:
            model: the model after `step` optimiser steps.
            step: optimiser steps so far.
            force: take a reading whether one is due or not (the end of training).

        Returns:
            The observation, or None where no reading was taken, or in other processes than rank 0.

        Raises:
            MonitorFailedError: only with `on_monitor_failure="stop"`.
        """
        return self.guarded("reading", lambda: self._observed(model, step, force=force), None)

    def _observed(self, model: Any, step: int, *, force: bool) -> Observation | None:
        if not self._wanted(model, step, force=force):
            return None
        if self._live is None:
            self.start(model)
            if self.last is not None and self.last.scores.step == step:
                return self.last
        observation = self._measure(step, model)
        self._failures_in_a_row = 0
        return observation

    def _wanted(self, model: Any, step: int, *, force: bool) -> bool:
        """Whether to read now: rank 0 decides, and of a sharded model all processes take part."""
        sharded = self._live.sharded if self._live else any_sharded(model)
        if not sharded and rank():
            return False
        if sharded and not force and step % self.settings.every_n_steps:
            return False
        seen = self.last is not None and self.last.scores.step == step
        wanted = not self.disabled and not seen and (force or self._cadence.due(step))
        return bool(agreed(int(wanted))) if sharded else wanted

    def guarded(self, where: str, work: Callable[[], T], otherwise: T) -> T:
        """What `work` gives, or `otherwise` where it fails: training must not die of its monitor.

        Args:
            where: what failed, for the log and the metrics.
            work: anything that the monitor does while training waits.
            otherwise: what training gets in its place.

        Raises:
            MonitorFailedError: only with `on_monitor_failure="stop"`.
        """
        try:
            return work()
        except (KeyboardInterrupt, SystemExit, GeneratorExit, MonitorFailedError):
            raise  # meant for training itself
        except BaseException as error:  # noqa: BLE001  a panic in a library of Rust is no Exception
            self.fail(where, error)
            return otherwise

    def fail(self, where: str, error: BaseException) -> None:
        """Count a failure and say it loudly; raise only where the settings ask for it."""
        self.failures += 1
        self._failures_in_a_row += 1
        self._count(where)
        message = f"wvmonitor failed at its {where}: {type(error).__name__}: {error}"
        logger.error(message, exc_info=error)
        if self.settings.on_monitor_failure == "stop":
            raise MonitorFailedError(
                f"{message}; training stops because on_monitor_failure='stop'"
            ) from error
        if self.disabled:
            logger.error(
                "wvmonitor gives up after %d failures: this run is NOT being watched any more",
                self._failures_in_a_row,
            )

    def _count(self, where: str) -> None:
        for exporter in self._exporters:
            try:
                exporter.error(where)
            except Exception:
                logger.exception("%s cannot count a failure", type(exporter).__name__)

    def _measure(self, step: int, model: Any = None) -> Observation | None:
        """Read, judge, keep and show; None in the processes that only take part in the reading."""
        assert self._live is not None  # noqa: S101  `observe` and `start` see to it
        began = time.perf_counter()
        planned = self._run.planned_steps
        progress = min(step / planned, 1.0) if planned else None
        earlier = self._anchor if self._window_ends() else None
        if self._live.sharded:
            reading = self._live.measure(self.bank, step, progress=progress)
            if rank():
                return None
        else:
            tau = self._live.task_vector(step)
            reading = self.bank.measure(
                self._recorder.watching(tau) if self._recorder else tau,
                progress=progress,
                earlier=earlier.vector if earlier else None,
            )
            if self._recorder:
                self._recorder.record(tau, step)
            self._keep(tau, reading)
        scores = score(
            reading,
            self.bank.gram,
            earlier=earlier.reading if earlier else None,
            components=self.settings.components,
            ridge=self._ridge,
        )
        alarmed = self._state.alarmed
        verdicts, self._state = judge(scores, self.run_context, self.calibration, self._state)
        verdicts = accounted(
            verdicts,
            scores,
            self._state,
            self._background,
            layers=layer_shares(reading, self.settings.components),
            calibration=self.calibration,
        )
        measured = time.perf_counter() - began
        if model is not None:
            verdicts = {n: self._probed(v, model, alarmed) for n, v in verdicts.items()}
        probing = time.perf_counter() - began - measured
        observation = Observation(
            run=self.run_name,
            reading=reading,
            scores=scores,
            verdicts=tuple(verdicts.values()),
            measure_seconds=measured,
            wall_time=time.time(),
            deciding=self._deciding(),
            acknowledged=self.guarded("journal", self._acknowledged, frozenset()),
        )
        self._publish(observation)
        self._cadence.note(time.perf_counter() - began - probing)
        return observation

    def _acknowledged(self) -> frozenset[str]:
        return self.journal.acknowledged() if self.journal else frozenset()

    def _probed(self, verdict: Verdict, model: Any, alarmed: tuple[str, ...]) -> Verdict:
        """A verdict with what its probe found, where it is a behaviour's first alarm of the run."""
        name = verdict.reference
        news = verdict.state == "alarm" and name not in (*alarmed, *self.settings.expected)
        if self._probe is None or self._live is None or not news:
            return verdict
        whole = None if self._live.sharded else model
        found = with_probe(verdict, self._probe, whole, self.tokenizer, self.settings.probe_seconds)
        if self.journal:
            self.journal.note(found.account[0], kind="probe", reference=name)
        return found

    def _window_ends(self) -> bool:
        return (
            self._anchor is not None and self._readings - self._anchor.index >= self.settings.window
        )

    def _keep(self, tau: TaskVector, reading: Reading) -> None:
        """Begin the next window here, if one has just ended (windows do not overlap).

        One copy of the scored LoRA factors is kept, no more: a copy of dense weights is not a price
        to pay unasked, and of a sharded model no process holds the whole.
        """
        if tau.origin.method == "lora" and (self._anchor is None or self._window_ends()):
            scored = set(self.settings.components)
            kept = tau.select(lambda name: component_of(name, tau.shape(name)) in scored)
            self._anchor = _Anchor(kept.held(), reading, self._readings)
        self._readings += 1

    def _publish(self, observation: Observation) -> None:
        """Keep and show a reading; whoever fails at that keeps it from nobody else."""
        log_raised(observation, self.verdicts, {*self.settings.expected, *observation.acknowledged})
        self.last = observation
        for notifier in self._attending:
            self.guarded("notifier", notifier.attend, None)
        self.guarded("journal", lambda: self._record(observation), None)
        for exporter in self._exporters:
            self.guarded("exporter", lambda e=exporter: e.export(observation), None)  # type: ignore[misc]

    def _record(self, observation: Observation) -> None:
        if self.journal:
            self.journal.record(
                observation.reading,
                observation.scores,
                observation.verdicts,
                self._state,
                measure_seconds=observation.measure_seconds,
            )

    # Consequences

    @property
    def run_name(self) -> str:
        """The run's id in the journal, or its name where there is no journal."""
        named = self.journal.run if self.journal else None
        return named or self.settings.run or self._run.name or "run"

    def action(self, observation: Observation) -> Action:
        """What the settings ask for after this observation.

        A checkpoint is asked for once for each behaviour that alarms; a stop is latched in the
        journal, so that it outlives the process.
        """
        action, reason = self._actions.after(observation)
        if action == "stop" and reason and self.journal:
            try:
                self.journal.latch_stop(reason)
            except WVMonitorError as error:
                self.fail("stop latch", error)
        return action

    def close(self) -> None:
        """Deliver and write what is left, and let go of journal, ports and threads."""
        try:
            self._close_record()
        finally:
            for exporter in self._exporters:
                self.guarded("close", exporter.close, None)

    def _close_record(self) -> None:
        for record in (self._recorder, self._outbox, self.journal):
            if record:
                self.guarded("close", record.close, None)

    def _show_pending(self, count: int) -> None:
        for exporter in self._exporters:
            if isinstance(exporter, PrometheusExporter):
                exporter.set_outbox_pending(count)

    def _deciding(self) -> tuple[Geometry, ScoreName] | None:
        return (self.calibration.geometry, self.calibration.score) if self.calibration else None


def _readings_planned(run: Run, every_n_steps: int) -> int | None:
    """Readings that will be judged: one every `every_n_steps` and the last; none where τ is 0."""
    return None if run.planned_steps is None else math.ceil(run.planned_steps / every_n_steps)
