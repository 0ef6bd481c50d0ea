"""Monitor: watches one training run. The one data path, whatever the framework.

`source → TaskVector → bank.measure → Reading → judge → Judgement → journal → outputs`.

Framework integrations are thin: they say when training starts, hand over the model after each
optimiser step, and carry out the action that comes back.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judgement import State, Verdict
from wvmonitor.errors import UnmeasurableModelError
from wvmonitor.journal.journal import Journal
from wvmonitor.live import validation
from wvmonitor.live.actions import Action, Actions
from wvmonitor.live.behaviour_check import Probe, with_probe
from wvmonitor.live.outputs import Outputs
from wvmonitor.live.readings import Readings
from wvmonitor.live.remedies import Remedies, words
from wvmonitor.live.run import Run
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.exporter import Exporter, Observation
from wvmonitor.outputs.run_state import state_at_end
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.calibrated import calibration_of
from wvmonitor.sources.distributed import from_first, rank
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
        self._given: dict[str, Any] = {"exporters": exporters, "probe": probe}
        self._probe = validation.probe_of(self.settings, probe)
        self.tokenizer = tokenizer
        self.last: Observation | None = None
        self.loaded: Observation | None = None
        self._outputs = Outputs(self.settings, exporters)
        self._readings: Readings | None = None
        self._run = Run()
        self._seen: tuple[Any, int] | None = None
        self._stopped = False
        self._actions = Actions(self.settings, calibrated=self.calibration is not None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies (for Ray, for `spawn`) begin anew with the same settings and the same bank."""
        bank = self.bank if self.bank.folder is None else self.bank.folder.resolve()
        known = {**self._given, "settings": self.settings, "tokenizer": self.tokenizer}
        return partial(Monitor, **known), (bank,)

    # The run

    @property
    def started(self) -> bool:
        """Whether `start` has been called."""
        return self._readings is not None

    @property
    def run_context(self) -> RunContext:
        """What the run's verdicts depend on beside the scores."""
        return self._readings.context if self._readings else RunContext()

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
            UnmeasurableModelError: training is past its first step (`step`, or the run's
                `resume_step`), and neither base nor `live` says where it started.
            WVMonitorError: this model cannot be measured, or was made from another base.
        """
        run = (run or Run()).with_usable_names()
        self._run = self._ended(run) if self._readings is not None else run
        self._begin(model, live, step=step)

    def _begin(self, model: Any, live: LiveModel | None, *, step: int) -> None:
        live = live or self._looked_at(model, step or self._run.resume_step)
        self.remedies.begin(model)
        readings = Readings(live, self.bank, self.judge, self.settings, self._run.planned_steps)
        if live.sharded:
            from_first(lambda: self._open(readings))
        elif readings.takes_part:
            self._open(readings)
        self._readings = readings
        at_start = readings.takes_part and not (self._run.resume_step or step)
        if at_start and (observation := self._measure(0)):
            # far from 0 is a warm start or a wrong base
            validation.warn_if_moved(observation.scores.norm, self.bank)

    def _looked_at(self, model: Any, step: int) -> LiveModel:
        """The model, of which nobody has restored how it started; refused where it tells no more.

        Raises:
            WVMonitorError: as `start` says.
        """
        live = LiveModel(model, base=self.settings.base)
        if step and live.starts_at_hand:
            raise UnmeasurableModelError(
                f"training is at step {step} already, and these weights say no longer where it "
                "started: give base=FOLDER of the base model, or live=LiveModel(model, "
                "initial=STATE) with what its `initial_state()` gave before the first step"
            )
        return live

    def expect_run(self) -> None:
        """Let failures of the runs before count against none that is about to begin."""
        self._outputs.failures.end_row()

    def give_up_unbegun(self, run: Run) -> None:
        """Keep and tell that a run is not watched, since `start` has failed for it; on rank 0.

        Args:
            run: what is known of it.
        """
        if rank():
            return
        run = run.with_usable_names()
        self._run = self._ended(run) if self._readings is not None else run
        self._readings = None
        self._outputs.never_begun(replace(self._run, resume_step=0), self.bank.fingerprint)

    def _open(self, readings: Readings) -> None:
        """Say what the run is, and open what keeps and shows its readings."""
        run, live, amounts = self._run, readings.live, self.remedies.amounts
        known = run.context(self.settings.every_n_steps, live.target_modules, amounts)
        readings.context = self.judge.context(live, known)
        state = self._outputs.open(
            run, readings.context, self.bank.fingerprint, sharded=live.sharded
        )
        readings.state = state or readings.state
        if amounts:
            self._note(f"{words(amounts)} rides along from step {run.resume_step}", "inoculated")

    def _ended(self, run: Run) -> Run:
        """End the attempt before, and say whether the new one is of the same run.

        It is where the one before begins again at once, or where a checkpoint says so; any other
        start is a run of its own, with a past of its own.
        """
        previous = self._outputs.run
        self._outputs.end_attempt()
        self._seen, self._stopped = None, False
        self.last = self.loaded = None
        self._actions = Actions(self.settings, calibrated=self.calibration is not None)
        again = run.retry and run.run_id is None
        return replace(run, run_id=previous if again else run.run_id, follows=True)

    def stop_latched(self) -> str | None:
        """Why this run must not go on (it was stopped and nobody has lifted it), or None."""
        return self.journal.stop_latched() if self.journal else None

    # Readings

    def due(self, step: int) -> bool:
        """Whether `observe` would take a reading at this step."""
        if self._readings is None:
            return not (self.disabled or step % self.settings.every_n_steps)
        return not self.disabled and self._readings.interval.due(step)

    def observe(self, model: Any, step: int, *, force: bool = False) -> Observation | None:
        """Take a reading if one is due.

        Under distributed training every process may call it: rank 0 takes the reading and keeps
        the record. Where the model is sharded every process must, since all measure together.

        A failure in here never reaches training: it is logged and counted, and after
        `disable_after` in a row the monitor disables itself: what was ok is unknown from then on
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
        work = lambda: self._observed(model, step, force=force)  # noqa: E731
        observation = self.guarded("reading", work, None, reading=True)
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
        return self.guarded("loaded model", lambda: self._observed_loaded(step), None)

    def _observed_loaded(self, step: int) -> Observation | None:
        readings = self._readings
        if readings is None or not readings.takes_part:
            return None
        began = time.perf_counter()
        judgement = readings.take_single(step, self._outputs)
        if judgement is None:
            return None
        seconds = time.perf_counter() - began
        self.loaded = Observation(self.run_name, judgement, seconds, time.time())
        self._outputs.log_raised(self.loaded, self.verdicts)
        verdicts = "; ".join(f"{v.reference} {v.state}: {v.reason}" for v in self.loaded.verdicts)
        self._note(f"the model of step {step} was put back: {verdicts}", "loaded")
        return self.loaded

    def _observed(self, model: Any, step: int, *, force: bool) -> Observation | None:
        if late := self._readings is None and not self.disabled:
            self._begin(model, None, step=step)
        seen = self.last is not None and self.last.scores.step == step
        if late and seen:
            return self.last
        able = not (self.disabled or seen)
        if self._readings is None or not self._readings.should_read(step, force=force, able=able):
            return None
        self._readings.live.require(model)
        self._outputs.go_on()
        observation = self._measure(step, model, last=force)
        self._outputs.failures.end_row()
        return observation

    def guarded(
        self, where: str, work: Callable[[], T], otherwise: T, *, reading: bool = False
    ) -> T:
        """What `work` gives, or `otherwise` where it fails; see `Failures.guarded`."""
        return self._outputs.failures.guarded(where, work, otherwise, reading=reading)

    def _measure(self, step: int, model: Any = None, *, last: bool = False) -> Observation | None:
        """Read, judge, keep and show; None in the processes that only take part in the reading."""
        readings = self._readings
        assert readings is not None  # noqa: S101  `observe` and `start` see to it
        began, alarmed = time.perf_counter(), readings.state.alarmed
        judgement = readings.take(step, self._outputs, last=last)
        if judgement is None:
            return None
        measured = time.perf_counter() - began
        if model is not None and self._probe is not None:
            probed = {n: self._probed(v, model, alarmed) for n, v in judgement.verdicts.items()}
            judgement = replace(judgement, verdicts=probed)
        probing = time.perf_counter() - began - measured
        observation = Observation(self.run_name, judgement, measured, time.time())
        before, self.last = self.verdicts, observation
        self._outputs.publish(observation, before)
        readings.interval.note(time.perf_counter() - began - probing)
        return observation

    def _probed(self, verdict: Verdict, model: Any, alarmed: frozenset[str]) -> Verdict:
        """A verdict with what its probe found, where it is a behaviour's first alarm of the run."""
        name, settings = verdict.reference, self.settings
        news = verdict.state == State.ALARM and name not in (*alarmed, *settings.expected)
        if self._probe is None or self._readings is None or not news:
            return verdict
        whole = None if self._readings.live.sharded else model
        probed = with_probe(verdict, self._probe, whole, self.tokenizer, settings.probe_seconds)
        self._note(probed.account[0], "probe", name)
        return probed

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
        decision = self._actions.after(observation, self.remedies.amounts)
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
        for name, text in self.remedies.brake(model, from_first(lambda: doses)).items():
            self.remark(text, kind="inoculated", reference=name)

    @property
    def alarmed(self) -> tuple[str, ...]:
        """The behaviours that the last action is about."""
        return self._actions.decision.behaviours

    def remark(self, text: str, *, kind: str, reference: str | None = None) -> None:
        """Say something about the run in the log and, where it has one, in its journal."""
        logger.warning("%s", text)
        self._note(text, kind, reference)

    def _note(self, text: str, kind: str, reference: str | None = None) -> None:
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
        # of a sharded model all processes would have to take part, and not all may close
        whole = self._readings is not None and not self._readings.live.sharded
        if seen is not None and whole and sys.exc_info()[0] is None:
            self.observe(*seen, force=True)
            self._seen = None
        self._outputs.close(state_at_end(stopped=self._stopped))
