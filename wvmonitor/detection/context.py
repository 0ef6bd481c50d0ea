"""What the judge must know of a run beside its scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RunPlan:
    """What a run, or what it left on disk, says of how it trains; None means not known.

    Attributes:
        optimizer: the optimiser's name, in lower case: "adamw", "sgd", …
        learning_rate: the peak learning rate.
        planned_steps: the run's planned number of optimiser steps.
        readings: about how many readings the run will have in all.
        single: True for a single checkpoint, which belongs to no trajectory.
    """

    optimizer: str | None = None
    learning_rate: float | None = None
    planned_steps: int | None = None
    readings: int | None = None
    single: bool = False


@dataclass(frozen=True)
class RunContext:
    """What the judge must know of the run beside its scores; None means not known.

    Attributes:
        method: how the weights are trained: "lora", "full", "dora", …
        rank: the adapter's largest rank.
        optimizer: the optimiser's name, lower case: "adamw", "sgd", …
        learning_rate: the peak learning rate.
        base: whether the run's base is the references' base, a declared relative, or not known.
        lone: True where each reading is judged by itself: of a single checkpoint without a
            trajectory, and of a run whose optimiser is not known.
        planned_steps: the run's planned number of optimiser steps.
        readings_planned: about how many readings the run will have in all.
    """

    method: str | None = None
    rank: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    base: Literal["same", "relative", "unknown"] = "same"
    lone: bool = False
    planned_steps: int | None = None
    readings_planned: int | None = None
