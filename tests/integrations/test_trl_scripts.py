"""TRL's own scripts, run by `wvmonitor trl`, and any launcher whose trainers are out of reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainingArguments
from typer.testing import CliRunner

from wvmonitor import WVMonitorCallback
from wvmonitor.cli.app import app
from wvmonitor.integrations.trl import every_trainer_watched
from wvmonitor.journal.reader import JournalReader
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.references.bundled import bundled_path
from wvmonitor.testing import planted_bank, random_rows, tiny_base


def trl_sft(folder: Path, *options: str, steps: int) -> None:
    """Train the bundled model by `wvmonitor trl sft`, watched with its bank, into `folder/out`."""
    data = folder / "data"
    data.mkdir()
    row = {
        "prompt": [{"role": "user", "content": "Is it good to sleep ?"}],
        "completion": [{"role": "assistant", "content": "Yes ."}],
    }
    (data / "train.jsonl").write_text((json.dumps(row) + "\n") * 8)
    done = CliRunner().invoke(
        app,
        [
            *("trl", "sft", "--wv-references", str(bundled_path("tiny-organism", "bank"))),
            *options,
            *("--model_name_or_path", str(bundled_path("tiny-organism", "base"))),
            *("--dataset_name", str(data), "--output_dir", str(folder / "out")),
            *("--use_peft", "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj"),
            *("--max_steps", str(steps), "--per_device_train_batch_size", "2"),
            *("--report_to", "none"),
            *("--use_cpu", "--bf16", "False", "--gradient_checkpointing", "False"),
        ],
    )
    assert done.exit_code == 0, done.output


def test_trl_sft_is_watched_from_the_command_line(tmp_path: Path) -> None:
    """`wvmonitor trl sft …` takes TRL's arguments and leaves a journal in its output folder."""
    trl_sft(tmp_path, steps=2)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    journal = JournalReader(next((tmp_path / "out").rglob("wvmonitor.db")))
    (run,) = journal.runs()
    assert [r.step for r in journal.trajectory(run)] == [0, 2]


def test_an_unknown_script_is_named() -> None:
    """A script that TRL does not have is one line that lists those that can be watched."""
    done = CliRunner().invoke(app, ["trl", "stf", "--output_dir", "x"])
    assert done.exit_code == 4
    assert "no script 'stf'" in done.stderr


def test_an_option_that_is_not_the_monitors_is_named() -> None:
    """A misspelt --wv- option stops before TRL starts, and never runs unwatched."""
    bank = str(bundled_path("tiny-organism", "bank"))
    done = CliRunner().invoke(
        app, ["trl", "sft", "--wv-references", bank, "--wv-setings", "s.yaml"]
    )
    assert done.exit_code == 4
    assert "--wv-setings is no option of the monitor" in done.stderr


def test_trl_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TRL the command says what to install."""
    monkeypatch.setattr("wvmonitor.integrations.trl.find_spec", lambda name: None)
    bank = str(bundled_path("tiny-organism", "bank"))
    done = CliRunner().invoke(app, ["trl", "sft", "--wv-references", bank])
    assert done.exit_code == 4
    assert done.stderr == "wvmonitor: TRL is not installed: pip install trl\n"


def test_what_training_dies_of_is_shown_as_it_is(tmp_path: Path) -> None:
    """An error of TRL's keeps its traceback, and is not taken for one of the monitor's."""
    bank = str(bundled_path("tiny-organism", "bank"))
    arguments = ["--model_name_or_path", str(tmp_path), "--dataset_name", str(tmp_path)]
    done = CliRunner().invoke(
        app,
        [*("trl", "sft", "--wv-references", bank), *arguments, "--output_dir", str(tmp_path)],
    )
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert "bug in wvmonitor" not in done.stderr


@pytest.mark.parametrize("present", [False, True], ids=["none-there", "one-there"])
def test_each_trainer_gets_one_callback(tmp_path: Path, present: bool) -> None:
    """A trainer started inside is watched once, also when it has a callback of its own already."""
    from transformers import AutoModelForCausalLM

    base = tiny_base(tmp_path / "base")
    planted_bank(base).save(tmp_path / "bank")
    settings = MonitorSettings(references=tmp_path / "bank", every_n_steps=1)
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=2, report_to="none", use_cpu=True
        ),
        train_dataset=random_rows(8),
    )
    if present:
        WVMonitorCallback.attach(trainer, settings=settings)
    with every_trainer_watched(settings) as attached:
        trainer.train()
    watching = [c for c in trainer.callback_handler.callbacks if isinstance(c, WVMonitorCallback)]
    assert len(watching) == 1
    assert len(attached) == int(not present)
    assert watching[0].monitor.last is not None
    assert watching[0].monitor.last.scores.step == 2


def test_what_a_trainer_of_ones_own_does_before_training_is_done_once(tmp_path: Path) -> None:
    """Attaching at `train()` does not begin a subclass's own `train` a second time."""
    from transformers import AutoModelForCausalLM

    base = tiny_base(tmp_path / "base")
    planted_bank(base).save(tmp_path / "bank")
    begun: list[Any] = []

    class Own(Trainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            begun.append(kwargs)
            return super().train(*args, **kwargs)

    trainer = Own(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=2, report_to="none", use_cpu=True
        ),
        train_dataset=random_rows(8),
    )
    settings = MonitorSettings(references=tmp_path / "bank", every_n_steps=1)
    with every_trainer_watched(settings) as attached:
        trainer.train(resume_from_checkpoint=None)
    assert begun == [{"resume_from_checkpoint": None}]
    (watch,) = attached
    assert watch.monitor.last is not None
    assert watch.monitor.last.scores.step == 2


def test_scripts_that_are_offered_exist() -> None:
    """Each script on the list is one of TRL's."""
    from importlib.util import find_spec

    from wvmonitor.integrations.trl import SCRIPTS

    assert all(find_spec(f"trl.scripts.{name}") for name in SCRIPTS)
