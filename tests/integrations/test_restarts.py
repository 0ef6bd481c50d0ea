"""Runs that end early, start again or go back: one run, every step read once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from tests import forks
from tests.integrations.test_transformers import trainer
from wvmonitor import WVMonitorCallback
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.records import JournalRow

EVERY = {"save_strategy": "steps", "save_steps": 3}


def rows_of(folder: Path) -> list[JournalRow]:
    reader = JournalReader(folder)
    (run,) = reader.runs()
    return reader.trajectory(run)


def watched(base: Path, bank: Path, out: Path, **arguments: Any) -> Any:
    run = trainer(base, out, **arguments)
    return run, WVMonitorCallback.attach(run, bank, every_n_steps=1)


@pytest.fixture(scope="module")
def whole(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[JournalRow]:
    """The readings of the run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    watched(tiny_base, tiny_bank_folder, out)[0].train()
    return rows_of(out)


def assert_same_readings(rows: list[JournalRow], expected: list[JournalRow]) -> None:
    assert [r.step for r in rows] == [r.step for r in expected]
    for mine, theirs in zip(rows, expected, strict=True):
        assert mine.scores.norm == theirs.scores.norm


class Killed(TrainerCallback):
    """SIGTERM, as a scheduler sends it, at a step; nobody handles it."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)


def run_until_killed(base: Path, bank: Path, out: Path) -> None:
    run, _ = watched(base, bank, out, **EVERY)
    run.add_callback(Killed())
    run.train()


def test_a_preempted_run_goes_on_as_if_nothing_had_been(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, whole: list[JournalRow]
) -> None:
    """Killed by SIGTERM between two checkpoints: same run, next attempt, the same readings."""
    killed = forks.ended(run_until_killed, tiny_base, tiny_bank_folder, tmp_path)
    assert killed == -signal.SIGTERM
    run, _ = watched(tiny_base, tiny_bank_folder, tmp_path, **EVERY)
    run.train(resume_from_checkpoint=True)
    rows = rows_of(tmp_path)
    assert_same_readings(rows, whole)
    assert [r.attempt for r in rows] == [1, 1, 1, 1, 2, 2, 2]


class OutOfMemory(TrainerCallback):
    """The first attempt does not fit."""

    def __init__(self) -> None:
        self.happened = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.happened:
            self.happened = True
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 TiB")


def test_a_smaller_batch_size_found_on_the_way_is_the_next_attempt(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """`auto_find_batch_size` begins again inside `train`: nothing counts twice, nothing fails."""
    run, callback = watched(tiny_base, tiny_bank_folder, tmp_path, auto_find_batch_size=True)
    out_of_memory = OutOfMemory()
    run.add_callback(out_of_memory)
    run.train()
    assert out_of_memory.happened
    assert run._train_batch_size == 1
    assert callback.monitor.failures == 0
    rows = rows_of(tmp_path)
    assert [r.step for r in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert {r.attempt for r in rows} == {2}


def test_the_best_model_loaded_at_the_end_is_not_taken_for_the_last_step(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, whole: list[JournalRow]
) -> None:
    """`load_best_model_at_end` puts an earlier checkpoint back: the journal keeps what was."""
    run = trainer(
        tiny_base,
        tmp_path,
        **EVERY,
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the worst, so that it is not the last
    )
    callback = WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=1)
    run.train()
    assert callback.monitor.failures == 0
    assert_same_readings(rows_of(tmp_path), whole)
