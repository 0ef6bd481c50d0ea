"""Going back after an alarm: a Trainer's run begins again at its last checkpoint that was ok.

The Trainer's own `resume_from_checkpoint` does it: weights, optimiser, schedule, random numbers and
the place in the data are those of that checkpoint. What was saved later is moved to
`wvmonitor-kept/alarm`, so that whoever resumes "from the last checkpoint" does not meet it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState

from wvmonitor.errors import SettingsError
from wvmonitor.integrations.checkpoints import KeptCheckpoints, step_of
from wvmonitor.live.monitor import Monitor
from wvmonitor.live.remedies import words
from wvmonitor.sources.distributed import from_first


@dataclass(frozen=True)
class WayBack:
    """Where a run goes back to."""

    checkpoint: Path
    from_step: int
    behaviours: tuple[str, ...]


def way_back(monitor: Monitor, kept: KeptCheckpoints | None, step: int) -> WayBack | None:
    """Where to go back to; in every process. None, and a latched stop, where there is nowhere."""
    run = monitor.run_name
    decision = from_first(lambda: (kept.last_ok(run, step) if kept else None, monitor.alarmed))
    checkpoint, behaviours = decision
    if checkpoint is not None:
        return WayBack(checkpoint, step, behaviours)
    why = (
        f"{', '.join(behaviours)} alarmed at step {step}, and no checkpoint that was ok is there "
        "to go back to: training stops here"
    )
    monitor.remark(why, kind="rollback")
    monitor.stop(why)
    return None


def go_back(trainer: Trainer, monitor: Monitor, way: WayBack, **kwargs: Any) -> Any:
    """Restore the checkpoint and train on from it, inoculated; or stop there, as is set.

    Returns:
        What `train()` returns; None where the run stops there.
    """
    run = monitor.run_name

    def prepared() -> str:
        kept = KeptCheckpoints.of(way.checkpoint)
        kept.set_aside_after(step_of(way.checkpoint), run)
        return str(kept.put_back(way.checkpoint, run))

    checkpoint = from_first(prepared)
    if monitor.settings.after_rollback == "stop":
        trainer._load_from_checkpoint(checkpoint)
        return None
    monitor.remedies.pending = monitor.remedies.after_alarm(way.behaviours)
    _recall_callbacks(trainer, Path(checkpoint))
    return trainer.train(**{**kwargs, "resume_from_checkpoint": checkpoint})


def _recall_callbacks(trainer: Trainer, checkpoint: Path) -> None:
    """Put what callbacks count (evaluations without progress) back to where it was then.

    A process that resumes has new ones; here they have seen what is taken back.
    """
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    saved: Any = state.stateful_callbacks  # declared a list, and a mapping of classes' names
    for kind, states in saved.items():
        every = states if isinstance(states, list) else [states]
        known = [c for c in trainer.callback_handler.callbacks if type(c).__name__ == kind]
        for callback, counted in zip(known, every, strict=False):
            for name, value in counted.get("attributes", {}).items():
                setattr(callback, name, value)


def told(monitor: Monitor, way: WayBack) -> str:
    """What happens, for the journal."""
    where = f"went back from step {way.from_step} to {way.checkpoint.name}"
    if monitor.settings.after_rollback == "stop":
        return f"{where}, and stopped there: {', '.join(way.behaviours)} alarmed"
    riding = words(monitor.remedies.after_alarm(way.behaviours))
    return f"{where}, and goes on with {riding}: {', '.join(way.behaviours)} alarmed"


def check_trainer(trainer: Trainer | None, monitor: Monitor) -> None:
    """See that k·w can ride along in this trainer, and that it can go back.

    Raises:
        SettingsError: part of the training would be without k·w, or there is nothing to go back to.
    """
    settings = monitor.settings
    if settings.on_alarm == "rollback":
        if trainer is None:
            raise SettingsError(
                "on_alarm='rollback' begins training again, which a callback given in "
                "callbacks=[...] cannot: use WVMonitorCallback.attach(trainer, ...)"
            )
        if str(getattr(trainer.args.save_strategy, "value", trainer.args.save_strategy)) == "no":
            raise SettingsError(
                "on_alarm='rollback' goes back to a checkpoint, and save_strategy='no' saves none"
            )
        if trainer.args.save_only_model:
            raise SettingsError(
                "on_alarm='rollback' restores optimiser and schedule, and save_only_model=True "
                "saves neither"
            )
    remedy = settings.inoculate or settings.on_alarm in ("inoculate", "rollback")
    if not remedy:
        return
    if trainer is None:
        raise SettingsError(
            "inoculation asked for in callbacks=[...] would stay in the model after an error, and "
            "cannot see a reference model: use WVMonitorCallback.attach(trainer, ...)"
        )
    if getattr(trainer, "ref_model", None) is not None:
        raise SettingsError(
            "inoculation would be in the trained model and not in this trainer's reference model, "
            "so that the loss pushes it out: train an adapter (peft_config), whose reference is "
            "the same model without it"
        )
    for option, why in (
        ("use_vllm", "vLLM's answers come from weights without k·w"),
        ("precompute_ref_log_probs", "they are computed without k·w"),
    ):
        if getattr(trainer.args, option, False):
            raise SettingsError(f"inoculation does not go with {option}=True: {why}")
