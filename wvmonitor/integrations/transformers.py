"""WVMonitorCallback: the monitor inside a Hugging Face `Trainer` (and TRL's trainers).

Two ways in. `WVMonitorCallback.attach(trainer, ...)` puts the callback right after the Trainer's
own flow callback, so that scores reach every tracker (W&B, TensorBoard, MLflow, Trackio) in the
rows that the Trainer writes anyway; it also hears from which checkpoint `train()` resumes, and that
it failed. `callbacks=[WVMonitorCallback(...)]` works as well, but runs after the trackers: scores
reach `log_history`, `trainer_state.json`, the journal and the exporters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback
from transformers.trainer_utils import IntervalStrategy

from wvmonitor.integrations.checkpoints import KeptCheckpoints, Left, leave, left_in, riding_in
from wvmonitor.integrations.decision import latched, together
from wvmonitor.integrations.going_back import WayBack, check_trainer, go_back
from wvmonitor.integrations.starting_point import StartingPoint
from wvmonitor.integrations.train_calls import HeardTrain, TrainCalls, Training
from wvmonitor.integrations.trainer_actions import SAVING, carry_out
from wvmonitor.integrations.trainer_facts import Event, checkpoint_at, run_of
from wvmonitor.integrations.trainer_rows import TrainerRows, of_training
from wvmonitor.journal.journal import PATIENCE_SECONDS
from wvmonitor.live.actions import Action
from wvmonitor.live.behaviour_check import Probe
from wvmonitor.live.monitor import Monitor
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.live.validation import bank_for, replaced
from wvmonitor.outputs.exporter import Observation
from wvmonitor.outputs.trainer_log import log_values
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.sources.distributed import agreed, any_sharded, from_first

logger = logging.getLogger(__name__)


class WVMonitorCallback(TrainerCallback):
    """Watches a `Trainer`'s run; see `MonitorSettings` for what can be set.

    Settings that contradict each other, a bank that cannot be used and a model made from another
    base are errors before training starts. Later failures of the monitor never reach training,
    unless `on_monitor_failure="stop"`.

    Each call of `train()` is a run of its own, except where it goes on from a checkpoint, and where
    `auto_find_batch_size` begins again. Copies made by pickling (Ray, spawn) begin as new ones.

    Example:
        WVMonitorCallback.attach(trainer, references="path/to/bank", every_n_steps=10)
        trainer.train()
    """

    def __init__(
        self,
        references: str | Path | ReferenceBank | None = None,
        *,
        settings: MonitorSettings | None = None,
        probe: Probe | None = None,
        **overrides: Any,
    ) -> None:
        """Load the bank and its calibration; arguments as in `Monitor`."""
        self._set_up(Monitor(references, settings=settings, probe=probe, **overrides))

    def _set_up(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self._origin = StartingPoint(monitor.bank, monitor.settings.base)
        self._attached = False
        self._calls = TrainCalls()
        self._training: Training | None = None
        self._rows = TrainerRows()
        self._kept: KeptCheckpoints | None = None
        self._way_back: WayBack | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made from: it looks at the model and begins a run when it trains."""
        return {"monitor": self.monitor, "attached": self._attached}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set_up(state["monitor"])
        self._attached = state["attached"]

    @classmethod
    def attach(
        cls,
        trainer: Trainer,
        references: str | Path | ReferenceBank | None = None,
        *,
        settings: MonitorSettings | None = None,
        probe: Probe | None = None,
        **overrides: Any,
    ) -> WVMonitorCallback:
        """Make a callback and put it where every tracker sees its values.

        Without references the bank that was made for the model's base is taken, from the folder
        that the setting `banks` names or from those that were pulled.

        Returns:
            The callback; `callback.monitor` holds verdicts and journal.

        Raises:
            SettingsError: there is no bank for this model's base.
        """
        if references is None:
            known = replaced(settings, overrides)
            references = known.references or bank_for(trainer.model, known)
        callback = cls(references, settings=settings, probe=probe, **overrides)
        callback.attach_to(trainer)
        return callback

    def attach_to(self, trainer: Trainer) -> None:
        """Take a place right after the Trainer's own flow callback, and hear of `train()`.

        Raises:
            WVMonitorError: this model cannot be measured, or was made from another base.
        """
        if self._takes_part(trainer.state, trainer.model):
            self._origin.look_at(trainer.model)
        callbacks = trainer.callback_handler.callbacks
        check_trainer(trainer, self.monitor)
        if trainer.model is not None:  # what cannot ride along is an error now
            self.monitor.remedies.begin(trainer.model)
            self.monitor.remedies.end()
        self._take_place_of_others(callbacks)
        flow = [isinstance(c, DefaultFlowCallback) for c in callbacks]
        callbacks.insert(flow.index(True) + 1 if any(flow) else 0, self)
        self._attached = True
        if self._calls.trainer is not trainer:
            trainer.train = self.heard(trainer, trainer.train)  # type: ignore[method-assign]

    def _take_place_of_others(self, callbacks: list[TrainerCallback]) -> None:
        """Leave one monitor a bank: the cell that attaches it may be run again and again."""
        bank = self.monitor.bank.fingerprint
        for other in [c for c in callbacks if isinstance(c, WVMonitorCallback)]:
            if other.monitor.bank.fingerprint != bank:
                continue
            callbacks[:] = [c for c in callbacks if c is not other]
            if other is not self:
                logger.warning(
                    "a monitor was attached to this trainer with the same bank before: the new one "
                    "takes its place"
                )
                other.monitor.close()

    def heard(self, trainer: Trainer, train: Callable[..., Any]) -> Callable[..., Any]:
        """A trainer's `train()`, of which the monitor hears what no event tells."""
        self._calls.trainer = trainer
        return HeardTrain(self._hear, trainer, train)

    def _hear(self, trainer: Trainer, train: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a trainer's `train()`; where that ends by an error, so does the run."""
        self._way_back = None
        try:
            with self._calls.call(trainer, *args, **kwargs):
                done = train(*args, **kwargs)
        finally:
            self.monitor.remedies.end()
            if self._training is not None:  # an error, or Ctrl-C: no event says so
                self._training = None
                self.monitor.close()
        if self._way_back is None:
            return done
        rest = dict(zip(("trial", "ignore_keys_for_eval"), args[1:], strict=False))
        return go_back(trainer, self.monitor, self._way_back, **kwargs, **rest) or done

    @staticmethod
    def _takes_part(state: TrainerState, model: Any) -> bool:
        """Whether this process measures: rank 0, and of a sharded model all of them."""
        return state.is_world_process_zero or any_sharded(model)

    # The Trainer's events

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the model, so that one that cannot be watched is an error before training."""
        model = kwargs.get("model")
        if model is not None and self._takes_part(state, model):
            self._origin.look_at(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the journal and take the reading before the first step."""
        if not self._attached:
            logger.warning(
                "wvmonitor was given in callbacks=[...]: its values reach log_history, the journal "
                "and the exporters, but not W&B, TensorBoard or other trackers; use "
                "WVMonitorCallback.attach(trainer, ...) for those"
            )
        self._training = Training(
            resume_step=state.global_step,
            retry=self._training is not None and args.auto_find_batch_size,
        )
        self._begin(Event(args, state, control, kwargs))

    def _begin(self, now: Event) -> None:
        training, args, state, model = self._training, now.args, now.state, now.model
        assert training is not None  # noqa: S101  whoever calls has made it
        self.monitor.expect_run()
        self._rows = TrainerRows()
        self._kept = None
        wanted = self.monitor.settings
        keep = (args.save_total_limit and wanted.action != "log") or wanted.on_alarm == "rollback"
        if args.output_dir and keep and state.is_world_process_zero:
            self._kept = KeptCheckpoints(Path(self._calls.checkpoints_folder or args.output_dir))
        self._inoculate(now)

        def begin() -> Action:
            if not self._takes_part(state, model):
                return "none"
            self.monitor.guarded("start", lambda: self._start(now), None)
            if not training.begun:
                return "none"
            self._rows.begin(self.monitor.last)
            return latched(self.monitor)

        if together(self.monitor, "start", begin) == "stop":  # it was stopped before
            now.control.should_training_stop = True

    def _join(self, now: Event) -> None:
        """Begin in the middle of a training: the callback was added while it was under way."""
        logger.warning(
            "wvmonitor was added to a training that is at step %d already: what came before is "
            "not judged",
            now.state.global_step,
        )
        # whatever was looked at when it was attached was no start
        self._origin = StartingPoint(self.monitor.bank, self.monitor.settings.base)
        self._training = Training(resume_step=0, retry=False)
        self._begin(now)

    def _inoculate(self, now: Event) -> None:
        """Let k·w ride along, in every process; failing to is an error, for it was asked for.

        Raises:
            WVMonitorError: it cannot.
        """
        check_trainer(self._calls.trainer, self.monitor)
        args, state, at = now.args, now.state, self._calls.resumed_checkpoint
        resumed = state.global_step > 0
        before = from_first(lambda: riding_in(at(args, state))) if resumed else {}
        self.monitor.remedies.begin(now.model, before)

    def _start(self, now: Event) -> None:
        """Begin the run; where that failed before its first step, later than training did.

        Raises:
            UnmeasurableModelError: the weights at hand say no longer where training started.
        """
        training, args, state = self._training, now.args, now.state
        assert training is not None  # noqa: S101  `on_train_begin` sees to it
        if self.monitor.tokenizer is None:
            self.monitor.tokenizer = now.more.get("processing_class")
        resumed = training.resume_step > 0
        left = left_in(self._calls.resumed_checkpoint(args, state)) if resumed else Left()
        self._origin.look_again(now.model, left.initial, step=state.global_step, resumed=resumed)
        step, retry = training.resume_step, training.retry
        run = run_of(now, self._calls.trainer, left, resume_step=step, retry=retry)
        self.monitor.start(now.model, run, live=self._origin.live, step=state.global_step)
        training.begun = True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note where parameters start that are unfrozen just now."""
        if live := self._origin.live:
            self.monitor.guarded("start", live.notice, None)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take a reading if one is due, and carry out what it asks for on every rank."""
        if self._training is None:
            self._join(Event(args, state, control, kwargs))
        self.monitor.remedies.check()
        step = state.global_step
        last = step >= state.max_steps
        training = self._training
        if training is not None and training.owes_checkpoint:
            control.should_save = True
        if last or step % self.monitor.settings.every_n_steps == 0:
            self._read(Event(args, state, control, kwargs), last=last)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the last reading of a run that something has stopped, in time for its last rows."""
        if control.should_training_stop:
            self._read(Event(args, state, control, kwargs), last=True)

    def _read(self, now: Event, *, last: bool) -> None:
        args, state, control, model, row = now.args, now.state, now.control, now.model, False

        def read() -> Action:
            nonlocal row
            if not self._takes_part(state, model) or not self._has_begun(now):
                return "none"
            observation = self.monitor.observe(model, state.global_step, force=last)
            news = False
            if observation is not None:
                news = self._rows.note(observation, self._values(observation))
            if (news or last) and args.logging_strategy != IntervalStrategy.NO:
                row = self._rows.show(self._calls.trainer, state, control)
            return self.monitor.action(observation) if observation is not None else "none"

        self._carry_out(together(self.monitor, "step", read), now)
        # a row gathers the loss from every rank, so that every rank must write it
        control.should_log = bool(agreed(int(row))) or control.should_log

    def _has_begun(self, now: Event) -> bool:
        """Whether the run has begun; tried again until the monitor disables itself."""
        training = self._training
        if training is None:
            return False
        if not training.begun and not self.monitor.disabled:
            self.monitor.guarded("start", lambda: self._start(now), None, reading=True)
            if self.monitor.disabled:
                self._give_up(training, now)
        return training.begun

    def _give_up(self, training: Training, now: Event) -> None:
        """Let journal and notifiers know that nobody watches this run: it could not be begun."""
        if not training.given_up:
            training.given_up = True
            alone, step = replace(now, more={}), now.state.global_step
            self.monitor.give_up_unbegun(run_of(alone, None, Left(), resume_step=step, retry=False))

    def _values(self, observation: Observation) -> dict[str, float]:
        settings = self.monitor.settings
        return log_values(observation, all_scores=settings.all_scores, per_layer=settings.per_layer)

    def _carry_out(self, action: Action, now: Event) -> None:
        way = carry_out(action, self.monitor, self._kept, now)
        if action == "rollback":
            self._way_back = way
        if action in SAVING and self._training is not None:
            self._training.owes_checkpoint = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Let the latest values join the loss's row; read before the best model is loaded."""
        training = self._training
        if logs is None or training is None:
            return
        if of_training(logs):
            self.monitor.guarded("log", lambda: self._rows.join(logs, state), None)
        elif "train_runtime" in logs and not training.summed_up:
            training.summed_up = True
            self._rows.end()
            self._read(Event(args, state, control, kwargs), last=True)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave beside the checkpoint what resuming from it needs."""
        training = self._training
        folder = checkpoint_at(args, state, self._calls.checkpoints_folder)
        if training is not None and state.is_world_process_zero and folder is not None:
            if journal := self.monitor.journal:
                # a run that goes on from here does not read this step again
                self.monitor.guarded("journal", lambda: journal.flush(PATIENCE_SECONDS), None)
            self.monitor.guarded("checkpoint", lambda: self._leave(folder), None)
        if training is not None:
            training.owes_checkpoint = False

    def _leave(self, folder: Path) -> None:
        riding = self.monitor.remedies.amounts
        leave(folder, self.monitor.run_name, self._origin.to_leave(), riding)
        if self._kept is not None and self.monitor.last is not None:
            asked = self._training is not None and self._training.owes_checkpoint
            self._kept.keep(folder, self.monitor.last, asked=asked)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the last reading, if there was none, and that of the best model; close."""
        training, self._training = self._training, None
        self.monitor.remedies.end()
        if training is not None:
            now = Event(args, state, control, kwargs)
            self.monitor.guarded("end", lambda: self._end(training, now), None)

    def _end(self, training: Training, now: Event) -> None:
        args, state, model = now.args, now.state, now.model
        if not self._takes_part(state, model):
            return
        best = state.best_global_step if state.best_model_checkpoint else None
        try:
            if not training.begun:
                self._give_up(training, now)
            elif not training.summed_up:
                self.monitor.observe(model, state.global_step, force=True)
            elif args.load_best_model_at_end and best is not None and best != state.global_step:
                loaded = self.monitor.observe_loaded(best)
                if loaded is not None and args.logging_strategy != IntervalStrategy.NO:
                    values = {
                        key.replace("wv/", "wv/loaded/", 1): value
                        for key, value in self._values(loaded).items()
                    }
                    self._rows.write(values, self._calls.trainer, state, now.control)
        finally:
            self.monitor.close()
