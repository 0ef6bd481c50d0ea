"""When a run that is only seen by its files has ended."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from wvmonitor.scan.run_end import ABANDONED_SECONDS, has_ended


def checkpoint(run: Path, step: int, **state: Any) -> Path:
    """A checkpoint of a run of 60 steps, as the Trainer leaves it."""
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    content = {"global_step": step, "max_steps": 60, "save_steps": 20, **state}
    (folder / "trainer_state.json").write_text(json.dumps(content))
    return folder


def test_a_run_in_the_middle_goes_on(tmp_path: Path) -> None:
    """With steps left at which it will save, and nothing that says otherwise, it trains."""
    assert not has_ended(tmp_path, checkpoint(tmp_path, 40))


@pytest.mark.parametrize(
    ("step", "state"),
    [
        (60, {}),
        (40, {"save_steps": 40}),
        (
            40,
            {"stateful_callbacks": {"TrainerControl": {"args": {"should_training_stop": True}}}},
        ),
    ],
    ids=["all steps", "no further checkpoint", "stopped early"],
)
def test_the_trainers_state_says_that_it_was_the_last(
    tmp_path: Path, step: int, state: dict[str, Any]
) -> None:
    """All steps are done, none is left to save at, or training was told to stop."""
    assert has_ended(tmp_path, checkpoint(tmp_path, step, **state))


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.json", "all_results.json"])
def test_a_final_model_says_that_it_was_the_last(tmp_path: Path, name: str) -> None:
    """What is written to the run's folder at the end is younger than the last checkpoint."""
    last = checkpoint(tmp_path, 40)
    (tmp_path / name).write_text("{}")
    assert has_ended(tmp_path, last)
    old = time.time() - 60
    os.utime(tmp_path / name, (old, old))
    assert not has_ended(tmp_path, last)


def test_a_run_of_the_past_has_ended(tmp_path: Path) -> None:
    """Nobody is woken for a folder whose checkpoints are hours old."""
    last = checkpoint(tmp_path, 40)
    past = time.time() - ABANDONED_SECONDS - 60
    for path in last.iterdir():
        os.utime(path, (past, past))
    assert has_ended(tmp_path, last)


def test_what_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    """A damaged or missing state, or a checkpoint that is gone, is no end."""
    last = checkpoint(tmp_path, 40)
    (last / "trainer_state.json").write_text("{")
    assert not has_ended(tmp_path, last)
    assert not has_ended(tmp_path, tmp_path / "checkpoint-50")
