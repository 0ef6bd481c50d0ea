"""WVMonitorCallback for Lightning: the monitor inside a `lightning.Trainer`.

Hooks used, in Lightning's order: `setup` (before a checkpoint is restored: the model still is where
training starts from), `load_state_dict`, `on_train_start`, `on_before_optimizer_step`,
`on_train_batch_end`, `on_train_end`, `on_exception`.
"""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from wvmonitor.errors import SettingsError, UnmeasurableModelError
from wvmonitor.integrations.decision import latched, together
from wvmonitor.journal.journal import PATIENCE_SECONDS
from wvmonitor.live.actions import Action
from wvmonitor.live.monitor import Monitor, Run
from wvmonitor.live.optimizer import optimizer_family, peak_learning_rate, weight_decay
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.trainer_log import log_values
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.sources.distributed import any_sharded, rank
from wvmonitor.sources.live_model import LiveModel


class WVMonitorCallback(Callback):
    """Watches a Lightning run; see `MonitorSettings` for what can be set.

    Scores go to every logger of the Trainer, in rows of their own. Each `fit()` is a run of its
    own, except where it goes on from a checkpoint. A step is an optimiser step, as
    `trainer.global_step` counts them (with several optimisers, all of theirs).

    Example:
        Trainer(callbacks=[WVMonitorCallback("path/to/bank", every_n_steps=10)])
    """

    def __init__(
        self,
        references: str | Path | ReferenceBank | None = None,
        *,
        model: str = "model",
        settings: MonitorSettings | None = None,
        **overrides: Any,
    ) -> None:
        """Load the bank and its calibration.

        Arguments as in `Monitor`; `model` is the attribute of the LightningModule that holds the
        Hugging Face model, and dots lead further in.
        """
        self.monitor = Monitor(references, settings=settings, **overrides)
        if self.monitor.settings.on_alarm == "rollback":
            raise SettingsError(
                "on_alarm='rollback' begins training again, which a Lightning callback cannot: "
                "take on_alarm='inoculate', or action='stop'"
            )
        self._attribute = model
        self._live: LiveModel | None = None
        self._restored: dict[str, Any] = {}
        self._last_step = 0
        self._begun = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note where training starts from, before a checkpoint is restored.

        Raises:
            WVMonitorError: this model cannot be measured, or was made from another base.
        """
        if stage != "fit":
            return
        # of the fit before nothing holds any more: a checkpoint is restored after this
        self._restored, self._live, self._begun = {}, None, False
        model = self._model(pl_module)
        if self._takes_part(model):
            self._look_at(model)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the journal and take the reading before the first step."""
        model = self._model(pl_module)
        self._last_step = trainer.global_step
        self.monitor.expect_run()
        self.monitor.remedies.begin(model, self._restored.get("inoculated"))
        self._carry_out(
            together(self.monitor, "start", lambda: self._begin(trainer, model)), trainer, model
        )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Note where parameters start that are unfrozen just now."""
        if self._live is not None:
            self.monitor.guarded("start", self._live.notice, None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a reading if one is due, and carry out what it asks for on every rank."""
        step = trainer.global_step
        if step == self._last_step or step % self.monitor.settings.every_n_steps:
            return  # gradients are being accumulated, or no reading is due
        self._last_step = step
        model = self._model(pl_module)
        self.monitor.remedies.check()
        self._carry_out(
            together(self.monitor, "step", lambda: self._read(trainer, model, step)), trainer, model
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the last reading and close the journal."""
        model = self._model(pl_module)
        self.monitor.remedies.end()
        self.monitor.guarded("end", lambda: self._end(trainer, model), None)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write and deliver what was read before training failed."""
        self.monitor.close()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the run's id, and how its adapter started."""
        live, journal = self._live, self.monitor.journal
        adapter = live is not None and live.method != "full"
        if journal:  # a run that goes on from here does not read this step again
            self.monitor.guarded("journal", lambda: journal.flush(PATIENCE_SECONDS), None)
        return {
            "run": self.monitor.run_name if journal else None,
            "initial": live.initial_state() if live is not None and adapter else {},
            "inoculated": dict(self.monitor.remedies.amounts),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what the checkpoint says until training starts."""
        self._restored = state_dict

    def _model(self, pl_module: LightningModule) -> Any:
        try:
            return attrgetter(self._attribute)(pl_module)
        except AttributeError:
            raise UnmeasurableModelError(
                f"{type(pl_module).__name__} has no attribute {self._attribute!r}: say where its "
                "Hugging Face model is, WVMonitorCallback(..., model='attribute')"
            ) from None

    def _look_at(self, model: Any, initial: Any = None) -> None:
        self._live = LiveModel(model, base=self.monitor.settings.base, initial=initial)
        self.monitor.bank.relation_to(self._live.base_digest)

    def _begin(self, trainer: Trainer, model: Any) -> Action:
        if not self._takes_part(model):
            return "none"
        self.monitor.guarded("start", lambda: self._start(trainer, model), None)
        return latched(self.monitor)

    def _start(self, trainer: Trainer, model: Any) -> None:
        initial, live = self._restored.get("initial"), self._live
        added = live is not None and live.unknown()
        if initial or added or any_sharded(model):  # sharded, or given adapters, since `setup`
            self._look_at(model, initial or None)
        self.monitor.start(model, self._run(trainer), live=self._live)
        self._begun = True

    def _run(self, trainer: Trainer) -> Run:
        """What is known of the run."""
        planned = trainer.estimated_stepping_batches
        optimizer = next(iter(trainer.optimizers), None)
        rates = [peak_learning_rate(each) for each in trainer.optimizers]
        return Run(
            folder=Path(trainer.log_dir or trainer.default_root_dir),
            planned_steps=int(planned) if planned != float("inf") else None,
            resume_step=trainer.global_step,
            optimizer=optimizer_family(optimizer),
            learning_rate=max(filter(None, rates), default=None),
            weight_decay=weight_decay(optimizer),
            run_id=self._restored.get("run"),
        )

    def _read(self, trainer: Trainer, model: Any, step: int) -> Action:
        if not self._takes_part(model):
            return "none"
        if not self._begun and not self.monitor.disabled:  # it failed at the start
            self.monitor.guarded("start", lambda: self._start(trainer, model), None, reading=True)
        if not self._begun:
            return "none"
        observation = self.monitor.observe(model, step)
        self._show(trainer, observation)
        return self.monitor.action(observation) if observation else "none"

    def _end(self, trainer: Trainer, model: Any) -> None:
        if self._takes_part(model):
            try:
                if self._begun:
                    last = self.monitor.observe(model, trainer.global_step, force=True)
                    self._show(trainer, last)
                else:
                    self.monitor.give_up_unbegun(self._run(trainer))
            finally:
                self.monitor.close()

    @staticmethod
    def _takes_part(model: Any) -> bool:
        """Whether this process measures: rank 0, and of a sharded model all of them."""
        return rank() == 0 or any_sharded(model)

    def _show(self, trainer: Trainer, observation: Any) -> None:
        if observation is None:
            return
        settings = self.monitor.settings
        values = log_values(
            observation, all_scores=settings.all_scores, per_layer=settings.per_layer
        )
        for each in trainer.loggers:
            each.log_metrics(values, step=observation.scores.step)

    def _carry_out(self, action: Action, trainer: Trainer, model: Any) -> None:
        if action == "inoculate":
            self.monitor.guarded("brake", lambda: self.monitor.inoculate(model), None)
        if action in ("save", "stop"):
            folder = Path(trainer.log_dir or trainer.default_root_dir)
            trainer.save_checkpoint(folder / f"wvmonitor-step={trainer.global_step}.ckpt")
        if action == "stop":
            trainer.should_stop = True
