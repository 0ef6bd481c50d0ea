"""A reading's values in the rows of a Trainer's log, which is what its trackers show.

They join rows that hold the training loss, or make rows of their own. Rows of an evaluation, of a
prediction, or the summary that `train()` returns are the caller's: a hyperparameter search sums up
whatever it finds in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Trainer, TrainerControl, TrainerState

from wvmonitor.detection.judgement import State
from wvmonitor.outputs.exporter import Observation

_OF_TRAINING = frozenset({"loss", "learning_rate"})


def of_training(row: Mapping[str, Any]) -> bool:
    """Whether a row of the log is of training steps: it holds their loss, or their learning rate.

    A trainer with a `log` of its own may call the loss something else ("train/loss", "nll").
    """
    own = (key.rpartition("/") for key in row)
    held = any(name in _OF_TRAINING and not path.startswith("eval") for path, _, name in own)
    return held and "train_runtime" not in row


class TrainerRows:
    """The values that wait for a row, and what the last rows showed.

    Attributes:
        pending: values that no row holds yet.
    """

    def __init__(self) -> None:
        self.pending: Mapping[str, float] = {}
        self._shown: dict[str, State] = {}
        self._loss_step: int | None = None
        self._closed = False

    def begin(self, start: Observation | None) -> None:
        """Take the verdicts of the reading before the first step for shown, if there is one."""
        self._shown = _states(start) if start else {}

    def note(self, observation: Observation, values: Mapping[str, float]) -> bool:
        """Keep a reading's values for the next row; gives whether a verdict has changed."""
        self.pending = values
        shown, self._shown = self._shown, _states(observation)
        return shown != self._shown

    def show(self, trainer: Trainer | None, state: TrainerState, control: TrainerControl) -> bool:
        """See that what waits is shown at this step: with the loss if it can be, else by itself.

        Returns:
            Whether a row with the loss is to be asked for: it ends the loss's averaging window, and
            changes nothing else.
        """
        if not self.pending:
            return False
        if self._closed or self._loss_step == state.global_step:
            pending, self.pending = self.pending, {}
            self.write(pending, trainer, state, control)
            return False
        return True

    def end(self) -> None:
        """No row with the loss comes any more."""
        self._closed = True

    def join(self, logs: dict[str, Any], state: TrainerState) -> None:
        """Let what waits join a row that holds the training loss, in trackers and the history."""
        self._loss_step = state.global_step
        pending, self.pending = self.pending, {}
        logs.update(pending)
        for row in state.log_history[-1:]:
            if of_training(row) and row.get("step") == state.global_step:
                row.update(pending)

    def write(
        self,
        values: Mapping[str, float],
        trainer: Trainer | None,
        state: TrainerState,
        control: TrainerControl,
    ) -> None:
        """A row of its own: in the history, and in trackers where the trainer is at hand."""
        history = state.log_history
        summary = history[-1:] if history and "train_runtime" in history[-1] else []
        if trainer is None:
            own: dict[str, Any] = {**values, "epoch": state.epoch, "step": state.global_step}
            history.append(own)
        else:
            should_log = control.should_log
            # the Trainer's own method: subclasses put averages into a row, and begin them anew
            Trainer.log(trainer, dict(values))
            control.should_log = should_log  # writing a row takes back what was asked for
        if summary:  # it stays the last row
            history[-2:] = [history[-1], *summary]


def _states(observation: Observation) -> dict[str, State]:
    return {verdict.reference: verdict.state for verdict in observation.verdicts}
