"""What is known of a run when it starts."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from wvmonitor.detection.context import RunContext

logger = logging.getLogger(__name__)


RUN_ID_LENGTH = 200


def run_id(text: str) -> str:
    """The text, if it can be a run's id: it is a label in metrics, a name in logs and on pages.

    Raises:
        ValueError: it is empty, long, or holds what cannot be shown as it is.
    """
    if not text or not text.isprintable() or text != text.strip():
        raise ValueError("must be printable text without spaces around it")
    if len(text) > RUN_ID_LENGTH:
        raise ValueError(f"must have at most {RUN_ID_LENGTH} characters")
    return text


def known_id(text: str | None, origin: str) -> str | None:
    """A run's id or name from outside, or None, with a warning, where it cannot be one.

    `origin` is where it was found, for the warning.
    """
    if text is None:
        return None
    try:
        return run_id(text)
    except ValueError as error:
        logger.warning("the run's name in %s %s: it gets another one", origin, error)
        return None


@dataclass(frozen=True)
class Run:
    """What a framework knows of the run it is about to start; None means not known.

    Attributes:
        folder: the run's output folder; the journal goes into `folder/wvmonitor` by default.
        resume_step: the step it goes on from; 0 for a start from the beginning.
        optimizer: the optimiser's family, lower case: "adamw", "sgd", …
        learning_rate: the peak learning rate.
        schedule: of the learning rate: "linear", "cosine", …
        objective: what the loss asks for: "sft", "dpo", "grpo", …
        data: digest of the training set.
        run_id: id of the run that it resumes, where a checkpoint names it.
        came_from: journal of the attempts before, where it may be another than this run's own.
        retry: whether this begins again what the attempt just before could not finish (a smaller
            batch size is tried): then it is the same run. Any other start from the beginning is a
            run of its own.
        follows: whether another run was watched by the same monitor before: what became of that
            one is not this one's.
    """

    folder: Path | None = None
    name: str | None = None
    planned_steps: int | None = None
    resume_step: int = 0
    optimizer: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    objective: str | None = None
    data: str | None = None
    run_id: str | None = None
    came_from: Path | None = None
    retry: bool = False
    follows: bool = False

    def with_usable_names(self) -> Run:
        """The same run; an id or name that cannot be one is left out, with a warning."""
        return replace(
            self,
            run_id=known_id(self.run_id, "the checkpoint"),
            name=known_id(self.name, "the trainer's arguments"),
        )

    def context(
        self,
        every_n_steps: int,
        target_modules: tuple[str, ...] | None,
        inoculated: Iterable[str],
    ) -> RunContext:
        """What verdicts depend on beside the scores, as far as the framework knows it."""
        steps = self.planned_steps
        return RunContext(
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            planned_steps=steps,
            # one every `every_n_steps` and the last; none at step 0, where τ is 0
            readings_planned=None if steps is None else math.ceil(steps / every_n_steps),
            objective=self.objective,
            target_modules=target_modules,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            data=self.data,
            inoculated=tuple(sorted(inoculated)),
        )
