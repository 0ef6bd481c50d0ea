"""What is known of a run when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """What a framework knows of the run it is about to start; None means not known.

    Attributes:
        folder: the run's output folder; the journal goes into `folder/wvmonitor` by default.
        name: the run's name, for people.
        planned_steps: planned number of optimiser steps.
        resume_step: the step it goes on from; 0 for a start from the beginning.
        optimizer: the optimiser's name.
        learning_rate: the peak learning rate.
        run_id: id of the run that it resumes, where a checkpoint names it.
    """

    folder: Path | None = None
    name: str | None = None
    planned_steps: int | None = None
    resume_step: int = 0
    optimizer: str | None = None
    learning_rate: float | None = None
    run_id: str | None = None
