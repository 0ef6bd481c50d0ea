"""What the judge must know of a run beside its scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
        objective: what the loss asks for: "sft", "dpo", "grpo", …
        target_modules: the kinds of modules that an adapter changes, in alphabetical order.
        schedule: of the learning rate: "linear", "cosine", …
        weight_decay: as the optimiser was given it.
        data: digest of the training set.
        strict_coverage: whether a verdict must cover the whole change, embeddings and head
            included, rather than of the parts that scores look at.
        inoculated: the behaviours whose reference rides along while it trains.
    """

    method: str | None = None
    rank: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    base: Literal["same", "relative", "unknown"] = "same"
    lone: bool = False
    planned_steps: int | None = None
    readings_planned: int | None = None
    objective: str | None = None
    target_modules: tuple[str, ...] | None = None
    schedule: str | None = None
    weight_decay: float | None = None
    data: str | None = None
    strict_coverage: bool = False
    inoculated: tuple[str, ...] = ()
