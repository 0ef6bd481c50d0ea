"""Harmless runs are trained as the user's run is: what is read of its settings."""

from __future__ import annotations

import json

import pytest

from wvmonitor.builder.bank_job import BankJob, BankOptions
from wvmonitor.builder.finetune import _arguments
from wvmonitor.builder.like import read_like
from wvmonitor.builder.scale import QUICK
from wvmonitor.errors import MalformedFileError, MissingPathError

YAML = """
training:
  learning_rate: 2e-4
  lr_scheduler: cosine
  optimizer: adamw
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 4
  max_steps: 900
  warmup_ratio: 0.03
peft:
  lora_r: 8
  lora_alpha: 32
  lora_target_modules: [q_proj, v_proj]
  use_rslora: true
  rank_pattern: {q_proj: 4}
dataset: mine
"""


def test_a_yaml_in_the_names_of_trl_and_axolotl(tmp_path):
    """Nested or flat, the settings come out under the names of transformers and PEFT."""
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    like = read_like(path)
    assert like.arguments == {
        "learning_rate": 2e-4,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch",
        "warmup_ratio": 0.03,
    }
    assert like.adapter == {
        "r": 8,
        "lora_alpha": 32,
        "target_modules": ["q_proj", "v_proj"],
        "use_rslora": True,
        "rank_pattern": {"q_proj": 4},
    }
    assert (like.batch_size, like.steps, like.method) == (8, 900, "lora")
    assert like.unread == ("dataset",)


def test_the_run_s_settings_reach_the_trainer(tmp_path):
    """Harmless runs have the user's rate, schedule, rank and batch, for a third of the steps."""
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    job = BankJob(BankOptions("tiny-organism", tmp_path / "bank", like=path, scale=QUICK, jobs=1))
    training = job.run_training(1e-3, 5, job.run_steps)
    assert (training.learning_rate, training.steps, training.settings.rank) == (2e-4, 300, 8)
    arguments = _arguments(training, str(tmp_path))
    assert arguments.learning_rate == 2e-4
    assert arguments.lr_scheduler_type == "cosine"
    assert arguments.max_steps == 300
    assert arguments.warmup_steps == 9
    assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == 8
    assert any("not taken over: dataset" in n for n in job.notes)
    # references are trained as references are
    reference = job.reference_training(10, 1e-3, 0)
    assert reference.like is None
    assert reference.learning_rate == 1e-3


def test_a_run_s_folder(tmp_path):
    """An adapter's configuration is read; what is no run is refused."""
    adapter = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "peft_type": "LORA"}
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "adapter_config.json").write_text(json.dumps(adapter))
    like = read_like(tmp_path)
    assert like.adapter == {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    assert like.learning_rate is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingPathError, match="holds no run"):
        read_like(tmp_path / "empty")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(MalformedFileError, match="name: value"):
        read_like(tmp_path / "list.yaml")
