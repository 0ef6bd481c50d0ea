"""`wvmonitor calibrate`: harmless runs read back from disk, and what they promise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments
from typer.testing import CliRunner

from wvmonitor import Monitor, ReferenceBank, Run, WVMonitorCallback
from wvmonitor.cli.app import app
from wvmonitor.detection.calibration import Calibration
from wvmonitor.errors import CalibrationError, MissingPathError
from wvmonitor.scan.benign import benign_runs
from wvmonitor.testing import random_rows

DATASETS = 39  # what 5 % needs, for two behaviours


def adapted(base: Path, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))


def watched(model: Any, bank: Path, out: Path, seed: int, **settings: Any) -> Monitor:
    """A run of four noisy steps."""
    monitor = Monitor(bank, every_n_steps=1, **settings)
    monitor.start(model, Run(folder=out, planned_steps=4, optimizer="adamw", learning_rate=1e-3))
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, 5):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise * 0.02)
        monitor.observe(model, step)
    monitor.close()
    return monitor


@pytest.fixture(scope="module")
def runs(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Harmless runs with their journals."""
    root = tmp_path_factory.mktemp("benign")
    for seed in range(DATASETS):
        watched(adapted(tiny_base, seed), tiny_bank_folder, root / f"run-{seed:02}", seed)
    return sorted(root.iterdir())


def calibrate(runs: list[Path], bank: Path, out: Path, *more: str) -> Any:
    given = [word for run in runs for word in ("--runs", str(run))]
    command = ["calibrate", *given, "--references", str(bank), "--out", str(out), *more]
    return CliRunner().invoke(app, command)


def test_a_calibration_from_journals_is_what_the_next_run_is_judged_by(
    runs: list[Path], tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """From folders to a file, from the file to a verdict that is no rule of thumb."""
    out = tmp_path / "calibration.json"
    result = calibrate(runs, tiny_bank_folder, out, "--each-run-has-its-own-dataset", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["status"] == "calibrated"
    assert (summary["datasets"], summary["n"], summary["needed"]) == (DATASETS,) * 3
    assert 0.05 < summary["rate_bound"] < 0.2
    made = Calibration.load(out, bank=ReferenceBank.load(tiny_bank_folder).fingerprint)
    assert made.support.methods == {"lora": (2, 2)}
    assert made.support.optimizers == ("adamw",)
    monitor = watched(
        adapted(tiny_base, 99), tiny_bank_folder, tmp_path / "next", 99, calibration=out
    )
    assert {v.calibration for v in monitor.verdicts.values()} == {"calibrated"}
    assert {v.state for v in monitor.verdicts.values()} <= {"ok", "warn", "alarm"}


def test_runs_below_one_folder_are_named_by_their_own_folders(
    runs: list[Path], tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """One --runs for all of them, and each run's dataset by its path or its folder's name."""
    sets = {str(run) if i % 2 else run.name: f"set {i}" for i, run in enumerate(runs)}
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    given = ("--datasets", str(tmp_path / "sets.json"), "--json")
    result = calibrate([runs[0].parent], tiny_bank_folder, tmp_path / "c.json", *given)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["datasets"] == DATASETS


def test_the_runs_of_one_dataset_count_once(
    runs: list[Path], tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Which runs are repeats is asked for; repeats are refused, not counted."""
    out = tmp_path / "calibration.json"
    unsaid = calibrate(runs, tiny_bank_folder, out)
    assert unsaid.exit_code == 4
    assert "--datasets" in unsaid.output
    names = {run.name: f"set {i // 2}" for i, run in enumerate(runs)}
    (tmp_path / "sets.json").write_text(json.dumps(names))
    repeated = calibrate(runs, tiny_bank_folder, out, "--datasets", str(tmp_path / "sets.json"))
    assert repeated.exit_code == 2
    assert "keep one of each" in repeated.output
    first, *_ = names
    (tmp_path / "sets.json").write_text(json.dumps({first: "set"}))
    missing = calibrate(runs, tiny_bank_folder, out, "--datasets", str(tmp_path / "sets.json"))
    assert "run-01" in missing.output
    assert not out.exists()


def test_too_few_runs_say_how_many_it_takes(
    runs: list[Path], tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """One per cent needs 199 datasets for two behaviours; so few cannot even be provisional."""
    out = tmp_path / "calibration.json"
    result = calibrate(
        runs, tiny_bank_folder, out, "--each-run-has-its-own-dataset", "--alpha", "0.01"
    )
    assert result.exit_code == 2
    assert "199" in result.output
    assert not out.exists()


def test_a_provisional_calibration_grows_until_it_is_calibrated(
    runs: list[Path], tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """From ten runs it may alarm and promises nothing; run by run it becomes a guarantee."""
    bank = shutil.copytree(tiny_bank_folder, tmp_path / "bank")
    place, own = bank / "calibration.json", "--each-run-has-its-own-dataset"

    def told(*words: str) -> str:
        result = CliRunner().invoke(
            app, ["calibrate", *words, own, "--references", str(bank)], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return str(result.stdout)

    said = told(*(w for run in runs[:10] for w in ("--runs", str(run))))
    assert "provisional, 10 harmless datasets" in said
    assert f"with {DATASETS} whole runs" in said
    monitor = watched(adapted(tiny_base, 99), bank, tmp_path / "next", 99)
    verdicts = monitor.verdicts.values()
    assert {v.calibration for v in verdicts} == {"provisional"}
    assert all("Provisional, approximate, from 10 harmless runs" in v.reason for v in verdicts)
    again = CliRunner().invoke(
        app,
        ["calibrate", "--add", str(runs[3]), own, "--out", str(place)],  # it lies in its bank
    )
    assert "already" in again.output
    other = CliRunner().invoke(
        app, ["calibrate", "--add", str(runs[10]), own, "--out", str(place), "--alpha", "0.1"]
    )
    assert other.exit_code == 4
    assert "--alpha is the calibration's own" in other.output
    assert "11 harmless datasets" in told("--add", str(runs[10]))
    assert Calibration.load(place).status == "provisional"
    said = told(*(w for run in runs[11:] for w in ("--add", str(run))))
    assert f"calibrated, {DATASETS} harmless datasets" in said
    grown = Calibration.load(place)
    out = tmp_path / "at-once.json"
    assert calibrate(runs, bank, out, own).exit_code == 0
    assert grown == Calibration.load(out)


def test_checkpoints_without_a_journal_are_measured(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """A Trainer's output folder gives the readings that its journal would have held."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=4,
        per_device_train_batch_size=2,
        save_steps=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=adapted(tiny_base, 1), args=arguments, train_dataset=random_rows(8))
    WVMonitorCallback.attach(trainer, tiny_bank_folder, every_n_steps=2)
    trainer.train()
    bank = ReferenceBank.load(tiny_bank_folder)
    (kept,) = benign_runs([tmp_path / "run"], bank)
    shutil.copytree(
        tmp_path / "run", tmp_path / "bare", ignore=shutil.ignore_patterns("wvmonitor.db*")
    )
    (saved,) = benign_runs([tmp_path / "bare"], bank, base=str(tiny_base), optimizer="adamw")
    assert [s.step for s in saved.scores] == [2, 4]
    for mine, theirs in zip(saved.scores, kept.scores[1:], strict=True):
        assert mine.progress == theirs.progress
        assert mine.norm == pytest.approx(theirs.norm, rel=1e-6)
    assert (saved.context.method, saved.context.rank) == ("lora", 2)
    assert saved.context.optimizer == kept.context.optimizer == "adamw"
    twice = [shutil.copytree(tmp_path / "bare", tmp_path / n / "output") for n in "ab"]
    found = benign_runs(twice, bank, base=str(tiny_base), optimizer="adamw")
    assert [r.dataset for r in found] == ["a/output", "b/output"], "output folders are often alike"


def test_what_is_no_run_is_named(tiny_bank_folder: Path, tmp_path: Path) -> None:
    """An empty folder, and a folder that is not there."""
    bank = ReferenceBank.load(tiny_bank_folder)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(MissingPathError):
            benign_runs([folder], bank)


def test_runs_of_another_bank_are_refused(runs: list[Path], tiny_bank_folder: Path) -> None:
    """Scores of other references say nothing about these."""
    other = ReferenceBank.load(tiny_bank_folder).select(["evil", "language"])
    with pytest.raises(CalibrationError, match="another bank"):
        benign_runs(runs[:1], other)


def test_a_run_whose_training_the_monitor_changed_cannot_calibrate(
    runs: list[Path], tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Inoculated runs score lower than others: none of them sets a threshold."""
    model = adapted(tiny_base, 7).train()
    monitor = Monitor(tiny_bank_folder, every_n_steps=1, inoculate={"evil": 1.0})
    monitor.start(model, Run(folder=tmp_path / "run", planned_steps=1, optimizer="adamw"))
    model(input_ids=torch.arange(8)[None])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    monitor.observe(model, 1)
    monitor.close()
    with pytest.raises(CalibrationError, match="inoculated, braked or taken back"):
        benign_runs([*runs, tmp_path / "run"], ReferenceBank.load(tiny_bank_folder))


def test_a_run_that_was_never_watched_says_nothing(
    runs: list[Path], tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """One that could not be begun stands in its folder's journal, and calibrates nothing."""
    bank = ReferenceBank.load(tiny_bank_folder)
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    monitor = Monitor(bank)
    monitor.give_up_unbegun(Run(folder=run))
    monitor.close()
    assert len(benign_runs([run], bank)) == 1
