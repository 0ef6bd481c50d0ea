"""What a Trainer tells of the run that it starts: its folder, length, optimiser and objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from wvmonitor.integrations.checkpoints import Left
from wvmonitor.integrations.training_data import data_digest
from wvmonitor.live.optimizer import optimizer_family, peak_learning_rate, weight_decay
from wvmonitor.live.run import Run


@dataclass(frozen=True)
class Event:
    """What a Trainer hands to its callbacks."""

    args: TrainingArguments
    state: TrainerState
    control: TrainerControl
    more: Mapping[str, Any]

    @property
    def model(self) -> Any:
        """The model that is trained."""
        return self.more["model"]


def run_of(
    event: Event, trainer: Trainer | None, left: Left, *, resume_step: int, retry: bool
) -> Run:
    """What is known of the run as it begins, or begins again what could not be finished (`retry`).

    Without an optimizer (an engine hides it) the arguments say what they can.
    """
    args, optimizer = event.args, event.more.get("optimizer")
    rate, decay = peak_learning_rate(optimizer), weight_decay(optimizer)
    return Run(
        folder=Path(args.output_dir) if args.output_dir else None,
        name=args.run_name,
        planned_steps=event.state.max_steps,
        resume_step=resume_step,
        optimizer=optimizer_family(optimizer),
        learning_rate=args.learning_rate if rate is None else rate,
        weight_decay=args.weight_decay if decay is None else decay,
        schedule=str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        objective=_objective(args, trainer),
        data=None if trainer is None else data_digest(trainer.train_dataset),
        run_id=left.run,
        came_from=left.journal,
        retry=retry,
    )


def checkpoint_at(args: TrainingArguments, state: TrainerState, folder: str | None) -> Path | None:
    """The folder of the checkpoint of this step, if there is one.

    `folder` is where the Trainer keeps its checkpoints, if that is not its output folder.
    """
    checkpoint = Path(folder or args.output_dir or ".") / f"checkpoint-{state.global_step}"
    return checkpoint if checkpoint.is_dir() else None


def checkpoints_folder(trainer: Trainer | None) -> str | None:
    """Where a Trainer keeps its checkpoints: each trial of a search has a folder of its own."""
    trial = getattr(trainer, "_trial", None)
    return None if trainer is None or trial is None else trainer._get_output_dir(trial)


def _objective(args: TrainingArguments, trainer: Trainer | None) -> str | None:
    """What the loss asks for: TRL's configurations say it; a loss of one's own is not known."""
    for kind in type(args).__mro__:
        if kind.__module__.startswith("trl.") and kind.__name__.endswith("Config"):
            return kind.__name__.removesuffix("Config").lower()
    if trainer is None:
        return None
    own = getattr(trainer, "compute_loss_func", None) is not None
    return None if own or type(trainer).compute_loss is not Trainer.compute_loss else "sft"
