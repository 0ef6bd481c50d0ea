"""Habits under which a run was once watched by nobody, or by somebody whom nobody could hear."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer

from tests.integrations.test_left_alone import At, runs_in
from tests.integrations.test_transformers import trainer
from tests.live.test_monitor import dense_delta
from tests.receiver import Receiver
from wvmonitor import WVMonitorCallback
from wvmonitor.journal.overview import summaries


def full(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


class Renaming(Trainer):
    """Calls its loss something else, as teams with a convention of their own do."""

    prefix = "train/"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        named = {f"{self.prefix}{k}" if k == "loss" else k: v for k, v in logs.items()}
        super().log(named, start_time)


@pytest.mark.parametrize("prefix", ["train/", "mean_"])
def test_a_trainer_that_names_its_loss_otherwise_shows_every_value(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, prefix: str
) -> None:
    """The values join the rows of training steps, whatever a `log` of one's own calls the loss."""
    run = trainer(tiny_base, tmp_path, eval_strategy="steps", eval_steps=2)
    run.__class__ = type("Ours", (Renaming,), {"prefix": prefix})
    WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=2)
    run.train()
    rows = [r for r in run.state.log_history if "wv/step" in r]
    assert [(r["step"], r["wv/step"]) for r in rows] == [(2, 2), (4, 4), (6, 6)]
    assert all(f"{prefix}loss" in r for r in rows)


@pytest.mark.parametrize("way", ["attach", "add_callback"])
def test_a_monitor_that_is_added_in_the_middle_watches_the_rest(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, way: str, caplog: Any
) -> None:
    """Added while training runs, it says so, and measures an adapter from its base all the same."""
    run = trainer(tiny_base, tmp_path)
    watching: list[WVMonitorCallback] = []

    def add() -> None:
        if way == "attach":
            watching.append(WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=1))
        else:
            watching.append(WVMonitorCallback(tiny_bank_folder, every_n_steps=1))
            run.add_callback(watching[0])

    run.add_callback(At(2, add))
    with caplog.at_level(logging.WARNING):
        run.train()
    (watch,) = watching
    assert watch.monitor.failures == 0
    assert [s for s in runs_in(tmp_path)[0] if s > 2] == [3, 4, 5, 6]
    assert "added to a training that is at step" in caplog.text
    assert watch.monitor.last is not None
    delta = dense_delta(run.model, tiny_base)
    oracle = sum(float((d**2).sum()) for d in delta.values()) ** 0.5
    assert watch.monitor.last.scores.norm == pytest.approx(oracle, rel=1e-5)


def test_the_weights_at_hand_are_no_start(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Added in the middle of a full fine-tune, only the base's folder tells where it started."""
    for base in (None, tiny_base):
        run = trainer(tiny_base, tmp_path / str(base is None), model=full(tiny_base))
        watch = WVMonitorCallback(tiny_bank_folder, every_n_steps=1, base=base)
        run.add_callback(At(2, lambda run=run, watch=watch: run.add_callback(watch)))
        run.train()
        (summary,) = summaries(tmp_path / str(base is None))
        if base is None:
            assert summary.verdict == "unknown"
            assert "give base=FOLDER" in (summary.unwatched or "")
        else:
            start = {n: p.detach().double() for n, p in full(tiny_base).named_parameters()}
            moved = {n: p.detach().double() - start[n] for n, p in run.model.named_parameters()}
            norm = torch.cat([d.reshape(-1) for d in moved.values()]).norm()
            assert summary.norm == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("every", [1, 4])
def test_a_run_that_cannot_be_begun_is_told(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, receiver: Receiver, every: int
) -> None:
    """A start that fails for good is in the journal and at the notifiers, with what to do: however
    few readings the run would have had.
    """
    trainer(tiny_base, tmp_path, model=full(tiny_base), save_strategy="steps", save_steps=2).train()
    there = {"url": receiver.url, "secret": "s" * 32}
    watch = WVMonitorCallback(tiny_bank_folder, every_n_steps=every, notifiers={"webhook": there})
    run = trainer(tiny_base, tmp_path, model=full(tiny_base), max_steps=8)
    run.add_callback(watch)  # too late to see where the weights start
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert run.state.global_step == 8
    (summary,) = summaries(tmp_path)
    assert summary.verdict == "unknown"
    assert "give base=FOLDER" in (summary.unwatched or "")
    (told,) = [json.loads(body)["data"] for _, _, body in receiver.received]
    assert told["kind"] == "disabled"
    assert "give base=FOLDER" in told["reason"]
    again = trainer(tiny_base, tmp_path / "again", callbacks=[watch])
    again.train()  # the next run is none the worse for it
    assert watch.monitor.last is not None
    assert watch.monitor.last.scores.step == 6


def test_the_cell_that_attaches_is_run_again(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, caplog: Any
) -> None:
    """Attached again and again, with the same bank, one monitor watches, and it is the newest."""
    run = trainer(tiny_base, tmp_path)
    with caplog.at_level(logging.WARNING):
        for every in (1, 3, 2):
            watch = WVMonitorCallback.attach(run, tiny_bank_folder, every_n_steps=every)
        watch.attach_to(run)
        run.train()
    assert runs_in(tmp_path) == [[0, 2, 4, 6]]
    assert caplog.text.count("takes its place") == 2
    assert "never closed" not in caplog.text


def test_relative_paths_mean_what_they_meant(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that goes elsewhere after it has attached (Hydra does) is watched all the same: the
    base is read, and the metrics are written, where they were when they were named.
    """
    monkeypatch.chdir(tmp_path)
    for name, place in (("base", tiny_base), ("bank", tiny_bank_folder)):
        Path(name).symlink_to(place)
    run = trainer(tiny_base, tmp_path / "out", model=full(tiny_base))
    watch = WVMonitorCallback.attach(
        run, "bank", every_n_steps=2, base="base", prometheus={"textfile": "wv.prom"}
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run.train()
    assert watch.monitor.failures == 0
    assert runs_in(tmp_path / "out") == [[0, 2, 4, 6]]
    assert (tmp_path / "wv.prom").is_file()
    assert list(Path().iterdir()) == []
