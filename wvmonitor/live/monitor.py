"""Monitor: watches one training run. The one data path, whatever the framework.

`source → TaskVector → bank.measure → Reading → judge → Judgement → journal → outputs`.

Framework integrations are thin: they say when training starts, hand over the model after each
optimiser step, and carry out the action that comes back.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from wvmonitor.detection.context import RunContext
from wvmonitor.detection.state import JudgeState
from wvmonitor.detection.verdict import State, Verdict
from wvmonitor.journal.journal import Journal
from wvmonitor.live import validation
from wvmonitor.live.actions import Action, Actions, Decision, log_raised
from wvmonitor.live.behaviour_check import Probe, with_probe
from wvmonitor.live.interval import MeasurementInterval
from wvmonitor.live.outputs import Outputs
from wvmonitor.live.remedies import Remedies, words
from wvmonitor.live.run import Run, known_id
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.live.window import Window
from wvmonitor.outputs.exporter import Exporter, Observation
from wvmonitor.outputs.run_state import RunState
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.calibrated import calibration_of
from wvmonitor.sources.distributed import agreed, any_sharded, from_first, rank
from wvmonitor.sources.live_model import LiveModel

__all__ = ["Monitor", "Run"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
        self.settings = validation.replaced(settings, overrides)
        self.bank = (
            references
            if isinstance(references, ReferenceBank)
            else ReferenceBank.load(validation.bank_folder(self.settings))
        )
        self.calibration = calibration_of(self.bank, self.settings.calibration)
        self.judge = validation.judge_of(self.settings, self.bank, self.calibration)
        validation.warn_if_weak(self.bank)
        validation.check_remedy(self.settings, calibrated=self.calibration is not None)
        self.remedies = Remedies(self.settings, self.bank)
        self._given = exporters, probe
        self._probe = validation.probe_of(self.settings, probe)
        self.tokenizer = tokenizer
        self.run_context = RunContext()
        self.last: Observation | None = None
        self.loaded: Observation | None = None
        self._outputs = Outputs(self.settings, exporters)
        self._live: LiveModel | None = None
        self._run = Run()
        self._interval = MeasurementInterval(
            self.settings.every_n_steps, self.settings.max_overhead
        )
        self._state = JudgeState()
        self._window = Window(self.settings.window, self.judge.components)
        self._seen: tuple[Any, int] | None = None
        self._stopped = False
        self._actions = Actions(self.settings, calibrated=self.calibration is not None)
        self._decision = Decision()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies (for Ray, for `spawn`) begin anew with the same settings and the same bank."""
        exporters, probe = self._given
        bank = self.bank if self.bank.folder is None else self.bank.folder.resolve()
        return _copied, (bank, self.settings, exporters, probe, self.tokenizer)

    # The run

    @property
    def started(self) -> bool:
        """Whether `start` has been called."""
        return self._live is not None

    @property
    def disabled(self) -> bool:
        """Whether too many readings in a row have failed, and the monitor gave up, loudly."""
        return self._outputs.failures.too_many

    @property
    def failures(self) -> int:
        """How often the monitor itself has failed."""
        return self._outputs.failures.total

    @property
    def journal(self) -> Journal | None:
        """The run's durable record, while it has one."""
        return self._outputs.journal

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The latest verdicts by reference."""
        return dict(self.last.judgement.verdicts) if self.last else {}

    def start(
        self, model: Any, run: Run | None = None, *, live: LiveModel | None = None, step: int = 0
    ) -> None:
        """Note where training starts from. Call before the first optimiser step.

        Under distributed training, in every process and after the model has been wrapped.

        Args:
            model: the model to be trained.
            run: what is known of the run.
            live: how the model is read, where the caller has restored its initial state.
            step: optimiser steps so far, where this is called later than training begins.

        Raises:
            WVMonitorError: this model cannot be measured, or was made from another base.
        """
        run = run or Run()
        run = replace(
            run,
            run_id=known_id(run.run_id, "the checkpoint"),
            name=known_id(run.name, "the trainer's arguments"),
        )
        self._run = self._ended(run) if self._live is not None else run
        self._begin(model, live, step=step)

    def _begin(self, model: Any, live: LiveModel | None, *, step: int) -> None:
        live = live or LiveModel(model, base=self.settings.base)
        self.remedies.begin(model)
        if live.sharded:
            from_first(lambda: self._open(live))
        elif rank() == 0:
            self._open(live)
        self._live = live
        if (live.sharded or rank() == 0) and not (self._run.resume_step or step):
            self._observe_start()

    def give_up_unbegun(self, run: Run) -> None:
        """Keep and tell that a run is not watched, since `start` has failed for it.

        Args:
            run: what is known of it.
        """
        self._run = self._ended(run) if self._live is not None else run
        self._live = None
        self._outputs.never_begun(replace(self._run, resume_step=0), self.bank.fingerprint)

    def _open(self, live: LiveModel) -> None:
        """Say what the run is, and open what keeps and shows its readings."""
        said = RunContext(
            optimizer=self._run.optimizer,
            learning_rate=self._run.learning_rate,
            planned_steps=self._run.planned_steps,
            readings_planned=_readings_planned(self._run, self.settings.every_n_steps),
            objective=self._run.objective,
            target_modules=live.target_modules,
            schedule=self._run.schedule,
            weight_decay=self._run.weight_decay,
            data=self._run.data,
            inoculated=tuple(sorted(self.remedies.amounts)),
        )
        self.run_context = self.judge.context(live, said)
        state = self._outputs.open(
            self._run, self.run_context, self.bank.fingerprint, sharded=live.sharded
        )
        self._state = state or self._state
        if self.remedies.amounts and (journal := self.journal):
            told = f"{words(self.remedies.amounts)} rides along from step {self._run.resume_step}"
            self.guarded("journal", lambda: journal.note(told, kind="inoculated"), None)
        self._interval = MeasurementInterval(
            self.settings.every_n_steps, self.settings.max_overhead
        )

    def _ended(self, run: Run) -> Run:
        """End the attempt before, and say whether the new one is of the same run.

        It is where the one before begins again at once, or where a checkpoint says so; any other
        start is a run of its own, with a past of its own.
        """
        previous = self._outputs.run
        self._outputs.end_attempt()
        self._seen, self._stopped = None, False
        self.last = self.loaded = None
        self._window = Window(self.settings.window, self.judge.components)
        self._state = JudgeState()
        self._actions = Actions(self.settings, calibrated=self.calibration is not None)
        again = run.retry and run.run_id is None
        return replace(run, run_id=previous if again else run.run_id, follows=True)

    def _observe_start(self) -> None:
        """Measure before the first step: far from 0 is a warm start or a wrong base."""
        observation = self._measure(0)
        if observation is not None:
            validation.warn_if_moved(observation.scores.norm, self.bank)

    def stop_latched(self) -> str | None:
        """Why this run must not go on (it was stopped and nobody has lifted it), or None."""
        return self.journal.stop_latched() if self.journal else None

    # Readings

    def due(self, step: int) -> bool:
        """Whether `observe` would take a reading at this step."""
        return not self.disabled and self._interval.due(step)

    def observe(self, model: Any, step: int, *, force: bool = False) -> Observation | None:
        """Take a reading if one is due.

        Under distributed training every process may call it: rank 0 takes the reading and keeps
        the record. Where the model is sharded every process must, since all measure together.

        A failure in here never reaches training: it is logged and counted, and after
        `disable_after` in a row the monitor gives up, and what was ok is unknown from then on
        (`on_monitor_failure="stop"` raises instead).

        Args:
            model: the model after `step` optimiser steps.
            step: optimiser steps so far.
            force: take a reading whether one is due or not (the end of training).

        Returns:
            The observation, or None where no reading was taken, or in other processes than rank 0.

        Raises:
            MonitorFailedError: only with `on_monitor_failure="stop"`, or where what is to ride
                along does not.
        """
        if self.remedies.unchecked and step > self._run.resume_step:
            self.remedies.check()
        watched = not self.disabled
        self._seen = (model, step)
        observation = self._outputs.failures.guarded(
            "reading", lambda: self._observed(model, step, force=force), None, reading=True
        )
        if watched and self.disabled:
            self.last = self._outputs.give_up(self.last, step)
        return observation

    def observe_loaded(self, step: int) -> Observation | None:
        """Read weights that were put back after training: those of the best checkpoint, usually.

        They are judged by themselves, as a single checkpoint is, and kept as a remark on the run:
        they are no step of its trajectory. `loaded` holds the observation.

        Args:
            step: the step whose weights they are.

        Returns:
            The observation, or None in other processes than rank 0.

        Raises:
            MonitorFailedError: only with `on_monitor_failure="stop"`.
        """
        return self._outputs.failures.guarded(
            "loaded model", lambda: self._observed_loaded(step), None
        )

    def _observed_loaded(self, step: int) -> Observation | None:
        if self._live is None or not (self._live.sharded or rank() == 0):
            return None
        began = time.perf_counter()
        reading = self._live.measure(self.bank, step)
        if rank():
            return None
        alone = replace(self.run_context, lone=True)
        silenced = self._outputs.acknowledged()
        judgement = self.judge(reading, alone, JudgeState(), acknowledged=silenced, last=True)
        seconds = time.perf_counter() - began
        self.loaded = Observation(self.run_name, judgement, seconds, time.time())
        log_raised(self.loaded, self.verdicts, {*self.settings.expected, *silenced})
        if journal := self.journal:
            said = "; ".join(f"{v.reference} {v.state}: {v.reason}" for v in self.loaded.verdicts)
            journal.note(f"the model of step {step} was put back: {said}", kind="loaded")
        return self.loaded

    def _observed(self, model: Any, step: int, *, force: bool) -> Observation | None:
        if not self._wanted(model, step, force=force):
            return None
        if self._live is None:
            self._begin(model, None, step=step)
            if self.last is not None and self.last.scores.step == step:
                return self.last
        self._outputs.go_on()
        if self._live is not None and self._live.incomplete:
            self.run_context = replace(self.run_context, base="unknown")
        planned = self._run.planned_steps
        last = force or (planned is not None and step >= planned)
        observation = self._measure(step, model, last=last)
        self._outputs.failures.end_row()
        return observation

    def _wanted(self, model: Any, step: int, *, force: bool) -> bool:
        """Whether to read now: rank 0 decides, and of a sharded model all processes take part."""
        sharded = self._live.sharded if self._live else any_sharded(model)
        if not sharded and rank():
            return False
        if sharded and not force and step % self.settings.every_n_steps:
            return False
        seen = self.last is not None and self.last.scores.step == step
        wanted = not self.disabled and not seen and (force or self._interval.due(step))
        return bool(agreed(int(wanted))) if sharded else wanted

    def guarded(
        self, where: str, work: Callable[[], T], otherwise: T, *, reading: bool = False
    ) -> T:
        """What `work` gives, or `otherwise` where it fails; see `Failures.guarded`."""
        return self._outputs.failures.guarded(where, work, otherwise, reading=reading)

    def _measure(self, step: int, model: Any = None, *, last: bool = False) -> Observation | None:
        """Read, judge, keep and show; None in the processes that only take part in the reading."""
        assert self._live is not None  # noqa: S101  `observe` and `start` see to it
        began = time.perf_counter()
        planned = self._run.planned_steps
        progress = min(step / planned, 1.0) if planned else None
        earlier = self._window.ended
        if self._live.sharded:
            reading = self._live.measure(self.bank, step, progress=progress)
            if rank():
                return None
        else:
            tau = self._live.task_vector(step)
            snapshots = self._outputs.snapshots
            reading = self.bank.measure(
                snapshots.watching(tau) if snapshots else tau,
                progress=progress,
                earlier=earlier.vector if earlier else None,
            )
            if snapshots:
                snapshots.record(tau, step)
            self._window.add(tau, reading)
        alarmed = self._state.alarmed
        judgement = self.judge(
            reading,
            self.run_context,
            self._state,
            earlier=earlier.reading if earlier else None,
            acknowledged=self._outputs.acknowledged(),
            last=last,
        )
        self._state = judgement.state
        measured = time.perf_counter() - began
        if model is not None:
            probed = {n: self._probed(v, model, alarmed) for n, v in judgement.verdicts.items()}
            judgement = replace(judgement, verdicts=probed)
        probing = time.perf_counter() - began - measured
        observation = Observation(self.run_name, judgement, measured, time.time())
        log_raised(observation, self.verdicts, {*self.settings.expected, *observation.acknowledged})
        self.last = observation
        self._outputs.publish(observation)
        self._interval.note(time.perf_counter() - began - probing)
        return observation

    def _probed(self, verdict: Verdict, model: Any, alarmed: frozenset[str]) -> Verdict:
        """A verdict with what its probe found, where it is a behaviour's first alarm of the run."""
        name = verdict.reference
        news = verdict.state == State.ALARM and name not in (*alarmed, *self.settings.expected)
        if self._probe is None or self._live is None or not news:
            return verdict
        whole = None if self._live.sharded else model
        found = with_probe(verdict, self._probe, whole, self.tokenizer, self.settings.probe_seconds)
        if self.journal:
            self.journal.note(found.account[0], kind="probe", reference=name)
        return found

    # Consequences

    @property
    def run_name(self) -> str:
        """The run's id in the journal, or its name where there is no journal."""
        return self._outputs.run or self.settings.run or self._run.name or "run"

    def action(self, observation: Observation) -> Action:
        """What the settings ask for after this observation.

        A checkpoint, `inoculate` or going back is asked for once for each behaviour that alarms; a
        stop is latched in the journal, so that it outlives the process. "inoculate" is carried out
        by `inoculate`; "rollback" is the framework's, which holds the checkpoints.
        """
        self._decision = decision = self._actions.after(observation, self.remedies.amounts)
        if decision.action == "stop":
            self.stop(decision.reason)
        return decision.action

    def stop(self, reason: str | None) -> None:
        """Note that training is told to stop; latched in the journal where the reason is news."""
        self._stopped = True
        if reason and (journal := self.journal):
            self.guarded("stop latch", lambda: journal.latch_stop(reason), None)

    def inoculate(self, model: Any) -> None:
        """Carry out the action "inoculate", in every process: the brake.

        The dose that was measured is taken out of what is trained, as far as that can hold it, and
        k·w rides along from now on.

        Args:
            model: the model in training, between two steps.

        Raises:
            WVMonitorError: the references cannot ride along in this model.
        """
        scores = self.last.scores.references if self.last else {}
        doses = {name: scores[name].dose for name in self.alarmed if name in scores}
        for name, told in self.remedies.brake(model, from_first(lambda: doses)).items():
            self.remark(told, kind="inoculated", reference=name)

    @property
    def alarmed(self) -> tuple[str, ...]:
        """The behaviours that the last action is about."""
        return self._decision.behaviours

    def remark(self, text: str, *, kind: str, reference: str | None = None) -> None:
        """Say something about the run in the log and, where it has one, in its journal."""
        logger.warning("%s", text)
        if journal := self.journal:
            work = lambda: journal.note(text, kind=kind, reference=reference)  # noqa: E731
            self.guarded("journal", work, None)

    def close(self) -> None:
        """Take the last reading if one is due, deliver and write what is left, and let go.

        Metrics then say that the run has ended, or was stopped; where an exception is on its way
        they don't, for it has failed, and nothing is read: who pressed Ctrl-C has waited enough.
        """
        self.remedies.end()
        seen, self._seen = self._seen, None
        if seen is not None and sys.exc_info()[0] is None:
            self._observe_end(*seen)
        self._outputs.close(self._ended_as())

    def _observe_end(self, model: Any, step: int) -> None:
        """The weights that training ends with, where `observe` has seen and not read them.

        Of a sharded model all processes would have to take part, and not all may close.
        """
        if self._live is not None and not self._live.sharded:
            self.observe(model, step, force=True)
            self._seen = None

    def _ended_as(self) -> RunState | None:
        error = sys.exc_info()[0]
        if self._stopped or (error and issubclass(error, (KeyboardInterrupt, SystemExit))):
            return "stopped"
        return "ended" if error is None else None


def _copied(
    bank: Any, settings: MonitorSettings, exporters: Any, probe: Any, tokenizer: Any
) -> Any:
    return Monitor(bank, settings=settings, exporters=exporters, probe=probe, tokenizer=tokenizer)


def _readings_planned(run: Run, every_n_steps: int) -> int | None:
    """Readings that will be judged: one every `every_n_steps` and the last; none where τ is 0."""
    return None if run.planned_steps is None else math.ceil(run.planned_steps / every_n_steps)
