"""WVMonitorCallback: the monitor inside a Hugging Face `Trainer` (and TRL's trainers).

Two ways in. `WVMonitorCallback.attach(trainer, ...)` puts the callback right after the Trainer's
own flow callback, so that scores reach every tracker (W&B, TensorBoard, MLflow, Trackio) in the
rows that the Trainer writes anyway. `callbacks=[WVMonitorCallback(...)]` works as well, but runs
after the trackers: scores reach `log_history`, `trainer_state.json`, the journal and the exporters.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback

from wvmonitor.detection.verdict import State
from wvmonitor.errors import UnmeasurableModelError
from wvmonitor.files.documents import read_json, write_json
from wvmonitor.files.safetensors import SafetensorsFile, write_safetensors
from wvmonitor.integrations.decision import latched, together
from wvmonitor.journal.journal import PATIENCE_SECONDS
from wvmonitor.live.actions import Action
from wvmonitor.live.behaviour_check import Probe
from wvmonitor.live.monitor import Monitor, Run
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.trainer_log import log_values
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.sources.distributed import any_sharded
from wvmonitor.sources.live_model import LiveModel

logger = logging.getLogger(__name__)

SIDECAR = "wvmonitor.json"
"""Beside a checkpoint's weights: which run it belongs to."""

INITIAL = "wvmonitor.safetensors"
"""Beside a checkpoint's weights: how its adapter started, where that was not at the base."""


class WVMonitorCallback(TrainerCallback):
    """Watches a `Trainer`'s run; see `MonitorSettings` for what can be set.

    Settings that contradict each other, a bank that cannot be used and a model made from another
    base are errors before training starts. Later failures of the monitor never reach training,
    unless `on_monitor_failure="stop"`.

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
        self.monitor = Monitor(references, settings=settings, probe=probe, **overrides)
        self._live: LiveModel | None = None
        self._model: Any = None
        self._pending: dict[str, float] = {}
        self._attached = False
        self._shown: dict[str, State] = {}

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

        Returns:
            The callback; `callback.monitor` holds verdicts and journal.
        """
        callback = cls(references, settings=settings, probe=probe, **overrides)
        callback.attach_to(trainer)
        return callback

    def attach_to(self, trainer: Trainer) -> None:
        """Take a place right after the Trainer's own flow callback.

        Raises:
            WVMonitorError: this model cannot be measured, or was made from another base.
        """
        if self._takes_part(trainer.state, trainer.model):
            self._look_at(trainer.model)
        callbacks = trainer.callback_handler.callbacks
        flow = [isinstance(c, DefaultFlowCallback) for c in callbacks]
        callbacks.insert(flow.index(True) + 1 if any(flow) else 0, self)
        self._attached = True

    @staticmethod
    def _takes_part(state: TrainerState, model: Any) -> bool:
        """Whether this process measures: rank 0, and of a sharded model all of them."""
        return state.is_world_process_zero or any_sharded(model)

    def _look_at(self, model: Any) -> None:
        """Note the model's starting point before a resumed checkpoint is loaded into it."""
        self._model = model
        self._live = LiveModel(model, base=self.monitor.settings.base)
        self.monitor.bank.relation_to(self._live.base_digest)
        if not self._live.sharded:
            self._live.task_vector()  # what cannot be read is an error now, not at the first step

    def _starts_in_memory(self) -> bool:
        live = self._live
        return live is not None and live.method == "full" and self.monitor.settings.base is None

    # The Trainer's events

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the model, so that one that cannot be watched is an error before training."""
        model = kwargs.get("model")
        if model is not None and self._takes_part(state, model):
            self._look_at(model)

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
        model, tokenizer = kwargs["model"], kwargs.get("processing_class")
        self._carry_out(
            together(self.monitor, "start", lambda: self._begin(args, state, model, tokenizer)),
            control,
        )

    def _begin(
        self, args: TrainingArguments, state: TrainerState, model: Any, tokenizer: Any
    ) -> Action:
        if not self._takes_part(state, model):
            return "none"
        self.monitor.guarded("start", lambda: self._start(args, state, model, tokenizer), None)
        return latched(self.monitor)

    def _start(
        self, args: TrainingArguments, state: TrainerState, model: Any, tokenizer: Any
    ) -> None:
        if self.monitor.tokenizer is None:
            self.monitor.tokenizer = tokenizer
        sharded = any_sharded(model)
        if self._live is None or self._model is not model or sharded:
            self._look_at(model)  # made by `model_init`, or sharded since
        if sharded and state.global_step and self._starts_in_memory():
            raise UnmeasurableModelError(
                "a sharded full fine-tune goes on from a checkpoint, and its weights say no longer "
                "where it started: give base=FOLDER of the base model"
            )
        folder = _checkpoint(args, state) if state.global_step else None
        if folder is not None and (folder / INITIAL).is_file():
            with SafetensorsFile(folder / INITIAL) as file:
                initial = {name: file.read(name) for name in file.tensors}
            self._live = LiveModel(model, base=self.monitor.settings.base, initial=initial)
        self.monitor.start(
            model,
            Run(
                folder=Path(args.output_dir) if args.output_dir else None,
                name=args.run_name,
                planned_steps=state.max_steps,
                resume_step=state.global_step,
                optimizer=_optimizer_name(args),
                learning_rate=args.learning_rate,
                run_id=_run_id(folder),
            ),
            live=self._live,
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take a reading if one is due, and carry out what it asks for on every rank."""
        step = state.global_step
        last = step >= state.max_steps
        if step % self.monitor.settings.every_n_steps and not last:
            return
        model = kwargs["model"]

        def read() -> Action:
            takes_part = self._takes_part(state, model)
            return self._read(model, step, last, control) if takes_part else "none"

        self._carry_out(together(self.monitor, "step", read), control)

    def _read(self, model: Any, step: int, last: bool, control: TrainerControl) -> Action:  # noqa: FBT001
        observation = self.monitor.observe(model, step, force=last)
        if observation is None:
            return "none"
        self._pending = log_values(observation, per_layer=self.monitor.settings.per_layer)
        shown = {v.reference: v.state for v in observation.verdicts}
        if shown != self._shown:
            # asking for a row ends the loss's averaging window: only for news
            control.should_log = control.should_log or bool(self._shown)
            self._shown = shown
        return self.monitor.action(observation)

    @staticmethod
    def _carry_out(action: Action, control: TrainerControl) -> None:
        if action in ("save", "stop"):
            control.should_save = True
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
        """Let the latest values join the row that the Trainer is writing."""
        if self._pending and logs is not None:
            self.monitor.guarded("log", lambda: self._join([logs, *state.log_history[-1:]]), None)

    def _join(self, rows: list[dict[str, Any]]) -> None:
        pending, self._pending = self._pending, {}
        for row in rows:
            row.update(pending)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave beside the checkpoint what resuming from it needs."""
        folder, journal = _checkpoint(args, state), self.monitor.journal
        if state.is_world_process_zero and folder is not None and journal:
            # a run that goes on from here does not read this step again
            self.monitor.guarded("journal", lambda: journal.flush(PATIENCE_SECONDS), None)
            self.monitor.guarded("checkpoint", lambda: self._leave(folder), None)

    def _leave(self, folder: Path) -> None:
        write_json(folder / SIDECAR, {"format_version": 1, "run": self.monitor.run_name})
        if self._live is not None and self._live.method != "full":
            initial = self._live.initial_state()
            if initial:
                write_safetensors(folder / INITIAL, initial)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the last reading and close the journal."""
        self.monitor.guarded("end", lambda: self._end(state, kwargs["model"]), None)

    def _end(self, state: TrainerState, model: Any) -> None:
        if self._takes_part(state, model):
            try:
                self.monitor.observe(model, state.global_step, force=True)
            finally:
                self.monitor.close()


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path | None:
    """The folder of the checkpoint at this step, if there is one."""
    folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
    return folder if folder.is_dir() else None


def _run_id(checkpoint: Path | None) -> str | None:
    """The id of the run that a checkpoint belongs to, if it says so."""
    if checkpoint is None or not (checkpoint / SIDECAR).is_file():
        return None
    run = read_json(checkpoint / SIDECAR).get("run")
    return run if isinstance(run, str) else None


def _optimizer_name(args: TrainingArguments) -> str:
    """The optimiser's family: `adamw_torch_fused` is `adamw`."""
    name = str(getattr(args.optim, "value", args.optim)).lower()
    return name.split("_", maxsplit=1)[0]
