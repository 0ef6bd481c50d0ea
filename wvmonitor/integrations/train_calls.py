"""The calls of `Trainer.train()`: where each resumes, and that it failed, which no event tells."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState, TrainingArguments

from wvmonitor.integrations.trainer_facts import checkpoint_at, checkpoints_folder


@dataclass
class Training:
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


class TrainCalls:
    """Listens to the calls of one Trainer's `train()`; of none until `heard`."""

    def __init__(self) -> None:
        self._heard: weakref.ref[Trainer] | None = None
        self._resumes_from: Any = None

    @property
    def trainer(self) -> Trainer | None:
        """The Trainer, while there is one."""
        return self._heard() if self._heard else None

    @property
    def checkpoints_folder(self) -> str | None:
        """Where it keeps its checkpoints."""
        return checkpoints_folder(self.trainer)

    def heard(
        self,
        trainer: Trainer,
        train: Callable[..., Any],
        *,
        begun: Callable[[], None],
        ended: Callable[[], None],
        again: Callable[..., Any],
    ) -> Callable[..., Any]:
        """A Trainer's `train`, listened to.

        Args:
            trainer: whose it is.
            train: the method, bound.
            begun: called before each call.
            ended: called after each, whether it returned or raised.
            again: called with the same arguments where it returned; what it gives, if anything, is
                what `train()` gives.
        """
        self._heard = weakref.ref(trainer)

        @wraps(train)
        def heard(*args: Any, **kwargs: Any) -> Any:
            self._heard = weakref.ref(trainer)
            self._resumes_from = args[0] if args else kwargs.get("resume_from_checkpoint")
            begun()
            try:
                done = train(*args, **kwargs)
            finally:
                self._resumes_from = None
                ended()
            rest = dict(zip(("trial", "ignore_keys_for_eval"), args[1:], strict=False))
            return again(**kwargs, **rest) or done

        return heard

    def resumed_checkpoint(self, args: TrainingArguments, state: TrainerState) -> Path | None:
        """The folder that this training goes on from, as far as anybody says."""
        for named in (self._resumes_from, args.resume_from_checkpoint):
            if isinstance(named, str | Path) and Path(named).is_dir():
                return Path(named)
        return checkpoint_at(args, state, self.checkpoints_folder)
