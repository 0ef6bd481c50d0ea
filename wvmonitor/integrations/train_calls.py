"""The calls of `Trainer.train()`: where each resumes, and that it failed, which no event tells."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import update_wrapper
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


class HeardTrain:
    """A Trainer's `train()`, of which somebody hears.

    An object and no function, so that a copy of the Trainer (`deepcopy`, Ray's trials) has one that
    trains the copy, and is heard by the copy's own callback.
    """

    def __init__(
        self, hear: Callable[..., Any], trainer: Trainer, train: Callable[..., Any]
    ) -> None:
        """Look like `train`; `hear` is called with Trainer, `train` and its arguments."""
        self._hear, self._trainer, self._train = hear, trainer, train
        update_wrapper(self, train, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Train."""
        return self._hear(self._trainer, self._train, *args, **kwargs)


class TrainCalls:
    """What the calls of one Trainer's `train()` say; of none until there is one."""

    def __init__(self) -> None:
        self._heard: weakref.ref[Trainer] | None = None
        self._resumes_from: Any = None

    @property
    def trainer(self) -> Trainer | None:
        """The Trainer, while there is one."""
        return self._heard() if self._heard else None

    @trainer.setter
    def trainer(self, trainer: Trainer) -> None:
        self._heard = weakref.ref(trainer)

    @property
    def checkpoints_folder(self) -> str | None:
        """Where it keeps its checkpoints."""
        return checkpoints_folder(self.trainer)

    @contextmanager
    def call(self, trainer: Trainer, *args: Any, **kwargs: Any) -> Iterator[None]:
        """The time of one call of a Trainer's `train()`, with the call's arguments."""
        self.trainer = trainer
        self._resumes_from = args[0] if args else kwargs.get("resume_from_checkpoint")
        try:
            yield
        finally:
            self._resumes_from = None

    def resumed_checkpoint(self, args: TrainingArguments, state: TrainerState) -> Path | None:
        """The folder that this training goes on from, as far as anybody says."""
        for named in (self._resumes_from, args.resume_from_checkpoint):
            if isinstance(named, str | Path) and Path(named).is_dir():
                return Path(named)
        return checkpoint_at(args, state, self.checkpoints_folder)
