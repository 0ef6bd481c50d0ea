"""Whether a run that is only seen by its files has ended, by what the Trainer leaves behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from wvmonitor.errors import WVMonitorError
from wvmonitor.files.documents import read_json
from wvmonitor.scan.trainer_state import TRAINER_STATE, TRAINER_STATE_BYTES

ABANDONED_SECONDS = 6 * 3600.0
"""A checkpoint so old when it is first seen belongs to a run of the past."""

_FINAL = (TRAINER_STATE, "all_results.json", "train_results.json")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def has_ended(folder: Path, checkpoint: Path) -> bool:
    """Whether nothing is to be expected after a run's last checkpoint.

    So it is where the checkpoint says that training was to stop (all steps done, or stopped
    early), where no step is left at which one would be saved, where the folder holds a final model
    or final results that are younger, and where the checkpoint is hours old.
    """
    try:
        saved = max(p.stat().st_mtime for p in checkpoint.iterdir())
        final = [p.stat().st_mtime for name in (*_FINAL, *_WEIGHTS) for p in folder.glob(name)]
    except (OSError, ValueError):  # deleted meanwhile, or empty
        return False
    if max(final, default=0.0) >= saved or time.time() - saved > ABANDONED_SECONDS:
        return True
    try:
        return _says_so(read_json(checkpoint / TRAINER_STATE, limit=TRAINER_STATE_BYTES))
    except WVMonitorError:  # there is none, or it is damaged: then nothing is known
        return False


def _says_so(state: dict[str, Any]) -> bool:
    """Whether a trainer's state says that it was the last."""
    control: Any = state.get("stateful_callbacks")
    for key in ("TrainerControl", "args", "should_training_stop"):
        control = control.get(key) if isinstance(control, dict) else None
    step, planned, every = (state.get(n) for n in ("global_step", "max_steps", "save_steps"))
    if control is True:
        return True
    if not (isinstance(step, int) and isinstance(planned, int) and planned > 0):
        return False
    left = planned - step
    return left <= 0 or (isinstance(every, int) and every > left)
