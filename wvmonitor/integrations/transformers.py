"""WVMonitorCallback: the monitor inside a Hugging Face `Trainer` (and TRL's trainers).

Two ways in. `WVMonitorCallback.attach(trainer, ...)` puts the callback right after the Trainer's
own flow callback, so that scores reach every tracker (W&B, TensorBoard, MLflow, Trackio) in the
rows that the Trainer writes anyway; it also hears from which checkpoint `train()` resumes, and that
it failed. `callbacks=[WVMonitorCallback(...)]` works as well, but runs after the trackers: scores
reach `log_history`, `trainer_state.json`, the journal and the exporters.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback
from transformers.trainer_utils import IntervalStrategy

from wvmonitor.errors import SettingsError
from wvmonitor.integrations.checkpoints import KeptCheckpoints, Left, leave, left_in, riding_in
from wvmonitor.integrations.decision import latched, together
from wvmonitor.integrations.going_back import WayBack, check_trainer, go_back, told, way_back
from wvmonitor.integrations.starting_point import StartingPoint
from wvmonitor.integrations.trainer_facts import checkpoint_at, checkpoints_folder, run_of
from wvmonitor.integrations.trainer_rows import TrainerRows, of_training
from wvmonitor.journal.journal import PATIENCE_SECONDS
from wvmonitor.live.actions import Action
from wvmonitor.live.behaviour_check import Probe
from wvmonitor.live.monitor import Monitor
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.live.validation import replaced
from wvmonitor.outputs.exporter import Observation
from wvmonitor.outputs.trainer_log import log_values
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.inventory import bank_of, cache_folder
from wvmonitor.references.registry import registered
from wvmonitor.sources.distributed import agreed, any_sharded, from_first
from wvmonitor.sources.live_model import LiveModel

logger = logging.getLogger(__name__)


@dataclass
class _Training:
    """One call of `train()`.

    Attributes:
        resume_step: the step it goes on from.
        retry: whether it begins again what the call before could not finish.
        begun: whether the monitor has begun the run.
        given_up: whether it was told that the run cannot be begun.
        summed_up: whether the Trainer has logged its summary: it loads the best model after that.
        owes_checkpoint: whether a checkpoint was asked for and not yet saved.
    """

    resume_step: int
    retry: bool
    begun: bool = False
    given_up: bool = False
    summed_up: bool = False
    owes_checkpoint: bool = False


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
        self._attached_to: weakref.ref[Trainer] | None = None
        self._resumes_from: Any = None
        self._training: _Training | None = None
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
            references = known.references or _bank_for(trainer.model, known)
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
        heard = self._attached and self._trainer is trainer
        self._attached, self._attached_to = True, weakref.ref(trainer)
        if not heard:
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
        """A trainer's `train()`, of which we hear what no event tells: its start, and failure."""

        @wraps(train)
        def heard(*args: Any, **kwargs: Any) -> Any:
            self._attached_to = weakref.ref(trainer)
            self._resumes_from = args[0] if args else kwargs.get("resume_from_checkpoint")
            self._way_back = None
            try:
                done = train(*args, **kwargs)
            finally:
                self._resumes_from = None
                self.monitor.remedies.end()
                if self._training is not None:  # an error, or Ctrl-C: no event says so
                    self._training = None
                    self.monitor.close()
            if self._way_back is None:
                return done
            rest = dict(zip(("trial", "ignore_keys_for_eval"), args[1:], strict=False))
            return go_back(trainer, self.monitor, self._way_back, **kwargs, **rest) or done

        return heard

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
        self._training = _Training(
            resume_step=state.global_step,
            retry=self._training is not None and args.auto_find_batch_size,
        )
        self._begin(args, state, control, kwargs)

    def _begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        kwargs: Mapping[str, Any],
    ) -> None:
        training = self._training
        assert training is not None  # noqa: S101  whoever calls has made it
        self._rows = TrainerRows()
        self._kept = None
        wanted = self.monitor.settings
        keep = (args.save_total_limit and wanted.action != "log") or wanted.on_alarm == "rollback"
        if args.output_dir and keep and state.is_world_process_zero:
            self._kept = KeptCheckpoints(Path(self._checkpoints_folder() or args.output_dir))
        model = kwargs["model"]
        self._inoculate(args, state, model)

        def begin() -> Action:
            if not self._takes_part(state, model):
                return "none"
            self.monitor.guarded("start", lambda: self._start(args, state, kwargs), None)
            if not training.begun:
                return "none"
            self._rows.begin(self.monitor.last)
            return latched(self.monitor)

        if together(self.monitor, "start", begin) == "stop":  # it was stopped before
            control.should_training_stop = True

    def _join(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        kwargs: Mapping[str, Any],
    ) -> None:
        """Begin in the middle of a training: the callback was added while it was under way."""
        logger.warning(
            "wvmonitor was added to a training that is at step %d already: what came before is "
            "not judged",
            state.global_step,
        )
        # whatever was looked at when it was attached was no start
        self._origin = StartingPoint(self.monitor.bank, self.monitor.settings.base)
        self._training = _Training(resume_step=0, retry=False)
        self._begin(args, state, control, kwargs)

    def _inoculate(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Let k·w ride along, in every process; failing to is an error, for it was asked for.

        Raises:
            WVMonitorError: it cannot.
        """
        check_trainer(self._trainer, self.monitor)
        resumed = state.global_step > 0
        at = self._resumed_checkpoint
        before = from_first(lambda: riding_in(at(args, state))) if resumed else {}
        self.monitor.remedies.begin(model, before)

    @property
    def _trainer(self) -> Trainer | None:
        return self._attached_to() if self._attached_to else None

    def _checkpoints_folder(self) -> str | None:
        return checkpoints_folder(self._trainer)

    def _start(
        self, args: TrainingArguments, state: TrainerState, kwargs: Mapping[str, Any]
    ) -> None:
        """Begin the run; where that failed before its first step, later than training did.

        Raises:
            UnmeasurableModelError: the weights at hand say no longer where training started.
        """
        training, model = self._training, kwargs["model"]
        assert training is not None  # noqa: S101  `on_train_begin` sees to it
        if self.monitor.tokenizer is None:
            self.monitor.tokenizer = kwargs.get("processing_class")
        left = left_in(self._resumed_checkpoint(args, state)) if training.resume_step else Left()
        resumed = training.resume_step > 0
        self._origin.look_again(model, left.initial, step=state.global_step, resumed=resumed)
        known = run_of(
            args, state, kwargs.get("optimizer"), self._trainer, left, retry=training.retry
        )
        run = replace(known, resume_step=training.resume_step)
        self.monitor.start(model, run, live=self._origin.live, step=state.global_step)
        training.begun = True

    def _resumed_checkpoint(self, args: TrainingArguments, state: TrainerState) -> Path | None:
        """The folder that this training goes on from, as far as anybody says."""
        for said in (self._resumes_from, args.resume_from_checkpoint):
            if isinstance(said, str | Path) and Path(said).is_dir():
                return Path(said)
        return checkpoint_at(args, state, self._checkpoints_folder())

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
            self._join(args, state, control, kwargs)
        self.monitor.remedies.check()
        step = state.global_step
        last = step >= state.max_steps
        training = self._training
        if training is not None and training.owes_checkpoint:
            control.should_save = True
        if last or step % self.monitor.settings.every_n_steps == 0:
            self._read(args, state, control, kwargs, last=last)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the last reading of a run that something has stopped, in time for its last rows."""
        if control.should_training_stop:
            self._read(args, state, control, kwargs, last=True)

    def _read(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        kwargs: Mapping[str, Any],
        *,
        last: bool,
    ) -> None:
        model, row = kwargs["model"], False

        def read() -> Action:
            nonlocal row
            if not self._takes_part(state, model) or not self._has_begun(args, state, kwargs):
                return "none"
            observation = self.monitor.observe(model, state.global_step, force=last)
            news = False
            if observation is not None:
                news = self._rows.note(observation, self._values(observation))
            if (news or last) and args.logging_strategy != IntervalStrategy.NO:
                row = self._rows.show(self._trainer, state, control)
            return self.monitor.action(observation) if observation is not None else "none"

        self._carry_out(together(self.monitor, "step", read), state, control, model)
        # a row gathers the loss from every rank, so that every rank must write it
        control.should_log = bool(agreed(int(row))) or control.should_log

    def _has_begun(
        self, args: TrainingArguments, state: TrainerState, kwargs: Mapping[str, Any]
    ) -> bool:
        """Whether the run has begun; tried again where it failed, until the monitor gives up."""
        training = self._training
        if training is None:
            return False
        if not training.begun and not self.monitor.disabled:
            begin = lambda: self._start(args, state, kwargs)  # noqa: E731
            self.monitor.guarded("start", begin, None, reading=True)
            if self.monitor.disabled:
                self._give_up(training, args, state)
        return training.begun

    def _give_up(self, training: _Training, args: TrainingArguments, state: TrainerState) -> None:
        """Let journal and notifiers know that nobody watches this run: it could not be begun."""
        if not training.given_up:
            training.given_up = True
            self.monitor.give_up_unbegun(run_of(args, state, None, None, Left(), retry=False))

    def _values(self, observation: Observation) -> dict[str, float]:
        settings = self.monitor.settings
        return log_values(observation, all_scores=settings.all_scores, per_layer=settings.per_layer)

    def _carry_out(
        self, action: Action, state: TrainerState, control: TrainerControl, model: Any
    ) -> None:
        if action == "inoculate":
            self.monitor.guarded("brake", lambda: self.monitor.inoculate(model), None)
        elif action == "rollback":
            self._way_back = way_back(self.monitor, self._kept, state.global_step)
            if self._way_back is not None:
                self.monitor.remark(told(self.monitor, self._way_back), kind="rollback")
                if self.monitor.settings.after_rollback == "stop":
                    self.monitor.stop(told(self.monitor, self._way_back))
            action = "stop"
        if action in ("save", "stop"):
            control.should_save = True
            if self._training is not None:
                self._training.owes_checkpoint = True
            if self._kept is not None:
                self.monitor.guarded("checkpoint", self._kept.hold, None)
        if action == "stop":
            control.should_training_stop = True

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
            self._read(args, state, control, kwargs, last=True)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave beside the checkpoint what resuming from it needs."""
        training = self._training
        folder = checkpoint_at(args, state, self._checkpoints_folder())
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
            end = lambda: self._end(args, state, control, training, kwargs)  # noqa: E731
            self.monitor.guarded("end", end, None)

    def _end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        training: _Training,
        kwargs: Mapping[str, Any],
    ) -> None:
        model = kwargs["model"]
        if not self._takes_part(state, model):
            return
        best = state.best_global_step if state.best_model_checkpoint else None
        try:
            if not training.begun:
                self._give_up(training, args, state)
            elif not training.summed_up:
                self.monitor.observe(model, state.global_step, force=True)
            elif args.load_best_model_at_end and best is not None and best != state.global_step:
                loaded = self.monitor.observe_loaded(best)
                if loaded is not None and args.logging_strategy != IntervalStrategy.NO:
                    values = {
                        key.replace("wv/", "wv/loaded/", 1): value
                        for key, value in self._values(loaded).items()
                    }
                    self._rows.write(values, self._trainer, state, control)
        finally:
            self.monitor.close()


def _bank_for(model: Any, settings: MonitorSettings) -> Path:
    """The bank made for a model's base."""
    digest = LiveModel(model, base=settings.base).base_digest
    own = settings.banks
    found = registered(digest, own) if own is not None and own.is_file() else None
    if found is None:
        roots = [cache_folder(), *([own] if own else [])]
        found = bank_of(digest, [root for root in roots if root.is_dir()])
    if found is None:
        name = getattr(getattr(model, "config", None), "name_or_path", "") or "BASE"
        raise SettingsError(
            f"there is no bank of references for this model's base ({name}): `wvmonitor bank "
            f"{name} --out DIR` makes one, and with --dry-run says first what that costs on this "
            "machine; then give references=DIR"
        )
    return found
