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

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback

from wvmonitor.exporters.exporter import Observation
from wvmonitor.exporters.trainer_log import log_values
from wvmonitor.files.documents import read_json, write_json
from wvmonitor.monitor import Action, Monitor, Run
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.settings import MonitorSettings
from wvmonitor.sources.live_model import LiveModel

logger = logging.getLogger(__name__)

SIDECAR = "wvmonitor.json"
"""Beside a checkpoint's weights: which run it belongs to."""

_ACTIONS: tuple[Action, ...] = ("none", "save", "stop")


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
        **overrides: Any,
    ) -> None:
        """Load the bank and its calibration; arguments as in `Monitor`."""
        self.monitor = Monitor(references, settings=settings, **overrides)
        self._live: LiveModel | None = None
        self._pending: dict[str, float] = {}
        self._attached = False
        self._shown: dict[str, str] = {}

    @classmethod
    def attach(
        cls,
        trainer: Trainer,
        references: str | Path | ReferenceBank | None = None,
        *,
        settings: MonitorSettings | None = None,
        **overrides: Any,
    ) -> WVMonitorCallback:
        """Make a callback and put it where every tracker sees its values.

        Returns:
            The callback; `callback.monitor` holds verdicts and journal.
        """
        callback = cls(references, settings=settings, **overrides)
        callback._attached = True
        if trainer.is_world_process_zero():
            callback._live = LiveModel(trainer.model, base=callback.monitor.settings.base)
            callback.monitor.bank.relation_to(callback._live.task_vector().origin.base_digest)
        flow = [isinstance(c, DefaultFlowCallback) for c in trainer.callback_handler.callbacks]
        trainer.callback_handler.callbacks.insert(flow.index(True) + 1 if any(flow) else 0, callback)
        return callback

    # The Trainer's events

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the model's starting point before anything (a resumed checkpoint) is loaded into it."""
        if state.is_world_process_zero and kwargs.get("model") is not None:
            self._live = LiveModel(kwargs["model"], base=self.monitor.settings.base)
            self.monitor.bank.relation_to(self._live.task_vector().origin.base_digest)

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
        if not state.is_world_process_zero:
            return
        try:
            self._start(args, state, kwargs["model"])
        except Exception as error:  # noqa: BLE001  training must not die of its monitor
            self.monitor.fail("start", error)
        reason = self.monitor.stop_latched()
        if reason is not None:
            logger.error(
                "this run was stopped by wvmonitor (%s) and stays stopped: lift it with "
                "`wvmonitor journal clear-stop`",
                reason,
            )
            control.should_training_stop = True

    def _start(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        live = self._live if self._live is not None and self._live.model is model else None
        resumed = _resumed_from(args, state)
        self.monitor.start(
            model,
            Run(
                folder=Path(args.output_dir) if args.output_dir else None,
                name=args.run_name,
                planned_steps=state.max_steps,
                resume_step=state.global_step,
                optimizer=_optimizer_name(args),
                learning_rate=args.learning_rate,
                run_id=resumed,
            ),
            live=live,
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take a reading if one is due, and carry out what it asks for on every rank."""
        step = state.global_step
        if step % self.monitor.settings.every_n_steps:
            return
        action: Action = "none"
        if state.is_world_process_zero:
            observation = self.monitor.observe(kwargs["model"], step)
            if observation is not None:
                action = self._take(observation, control)
        action = _agreed(action)
        if action == "save":
            control.should_save = True
        if action == "stop":
            control.should_training_stop = True
            control.should_save = True

    def _take(self, observation: Observation, control: TrainerControl) -> Action:
        self._pending = log_values(observation)
        shown = {name: v.state for name, v in observation.verdicts.items()}
        if shown != self._shown:
            # asking for a row ends the loss's averaging window: only for news
            control.should_log = bool(self._shown) or control.should_log
            self._shown = shown
        return self.monitor.action(observation)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Let the latest values join the row that the Trainer is writing."""
        if not self._pending or logs is None:
            return
        logs.update(self._pending)
        if state.log_history:
            state.log_history[-1].update(self._pending)
        self._pending = {}

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave beside the checkpoint what resuming from it needs."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not state.is_world_process_zero or not folder.is_dir() or not self.monitor.journal:
            return
        try:
            write_json(folder / SIDECAR, {"format_version": 1, "run": self.monitor.run_name})
        except Exception as error:  # noqa: BLE001  training must not die of its monitor
            self.monitor.fail("checkpoint", error)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the last reading and close the journal."""
        if state.is_world_process_zero:
            self.monitor.observe(kwargs["model"], state.global_step, force=True)
            self.monitor.close()


def _resumed_from(args: TrainingArguments, state: TrainerState) -> str | None:
    """The run id that the checkpoint resumed from belongs to, if it says so."""
    if not state.global_step or not args.output_dir:
        return None
    sidecar = Path(args.output_dir) / f"checkpoint-{state.global_step}" / SIDECAR
    run = read_json(sidecar).get("run") if sidecar.is_file() else None
    return run if isinstance(run, str) else None


def _optimizer_name(args: TrainingArguments) -> str:
    """The optimiser's family: `adamw_torch_fused` is `adamw`."""
    name = str(getattr(args.optim, "value", args.optim)).lower()
    return name.split("_", maxsplit=1)[0]


def _agreed(action: Action) -> Action:
    """Rank 0's decision, on every rank: a stop that only one rank takes hangs the others."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return action
    if distributed.get_world_size() == 1:
        return action
    device = "cpu" if distributed.get_backend() == "gloo" else torch.cuda.current_device()
    code = torch.tensor([_ACTIONS.index(action)], device=device)
    distributed.broadcast(code, src=0)
    return _ACTIONS[int(code)]
