"""Harmless runs are trained as the user's run is: what is read of its settings."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from wvmonitor.builder.bank_job import BankJob, BankOptions
from wvmonitor.builder.finetune import _arguments
from wvmonitor.builder.like import Like, read_like
from wvmonitor.builder.scale import QUICK
from wvmonitor.detection.context import RunContext
from wvmonitor.errors import BuildError, MalformedFileError, MissingPathError
from wvmonitor.journal.journal import Journal

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
        "per_device_train_batch_size": 2,
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
    assert arguments.per_device_train_batch_size == 2, "what fits the user's device"
    assert arguments.gradient_accumulation_steps == 4
    assert any("not taken over: dataset" in n for n in job.notes)
    # references are trained as references are
    reference = job.reference_training(10, 1e-3, 0)
    assert reference.like is None
    assert (reference.settings.batch_size, reference.micro_batch) == (4, 2)
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


@pytest.mark.parametrize(
    ("arguments", "of", "steps", "warmup"),
    [
        ({}, None, 60, 6),
        ({"warmup_steps": 0.03}, None, 300, 9),  # transformers 5: a share
        ({"warmup_steps": 100}, 1000, 300, 30),
        ({"warmup_steps": 100}, None, 60, 6),
        ({"warmup_steps": 3}, None, 60, 3),
        ({"warmup_steps": 0, "warmup_ratio": 0.05}, None, 60, 3),
        ({"warmup_steps": 0}, None, 60, 0),
    ],
)
def test_a_warm_up_has_the_share_that_it_has_of_the_user_s_run(arguments, of, steps, warmup):
    """A short run that did nothing but warm up would say little of a long one."""
    assert Like(arguments=arguments, steps=of).warmup(steps) == warmup


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("use_peft: true", "lora"),  # TRL, with its own defaults
        ("use_peft: false\nlora_r: 16", "full"),
        ("adapter: qlora\nlora_r: 16", "lora"),  # Axolotl
        ("adapter: ''\nlora_r:", "full"),
        ("learning_rate: 1e-5", "full"),
    ],
)
def test_whether_a_run_trains_an_adapter_is_told_by_whoever_says_so(tmp_path, text, method):
    """TRL's and Axolotl's switches count before the settings beside them."""
    path = tmp_path / "run.yaml"
    path.write_text(text)
    like = read_like(path)
    assert like.method == method
    assert bool(like.adapter) is ("lora_r: 16" in text and method == "lora")


def test_an_adapter_of_another_kind_is_refused(tmp_path):
    """A calibration from LoRA runs says nothing of an IA3 run: it is not made in its name."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    (tmp_path / "run.yaml").write_text("peft_type: VERA\nr: 256\n")
    for path, kind in ((tmp_path, "IA3"), (tmp_path / "run.yaml", "VERA")):
        with pytest.raises(BuildError, match=f"trains a {kind} adapter"):
            read_like(path)
    (tmp_path / "run.yaml").write_text("finetuning_type: lora\nlora_rank: 8\n")
    with pytest.raises(BuildError, match="names lora_rank, which says nothing here"):
        read_like(tmp_path / "run.yaml")


def test_what_another_tool_decides_is_no_setting(tmp_path):
    """DeepSpeed's "auto" takes no value's place; what should be a number and is none is told."""
    path = tmp_path / "run.yaml"
    path.write_text(
        "learning_rate: 3e-4\ndeepspeed:\n  optimizer:\n    params: {learning_rate: auto,"
        " weight_decay: auto}\nlora_r: '8'\nlora_target_modules: [all-linear]\n"
    )
    like = read_like(path)
    assert like.arguments == {"learning_rate": 3e-4}
    assert like.adapter == {"r": 8, "target_modules": "all-linear"}
    path.write_text("lr_scheduler: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1.0e-6}\n")
    assert read_like(path).arguments["lr_scheduler_kwargs"] == {"min_lr": 1e-6}
    path.write_text("max_steps: many\n")
    with pytest.raises(MalformedFileError, match="max_steps is 'many': write the number"):
        read_like(path)


def test_one_target_module_is_a_name_and_no_pattern(tmp_path):
    """PEFT takes a bare string for a regular expression of the whole name."""
    path = tmp_path / "run.yaml"
    path.write_text("lora_target_modules: q_proj\n")
    assert read_like(path).adapter == {"target_modules": ["q_proj"]}


def test_a_watched_run_says_what_its_adapter_s_file_does_not(tmp_path):
    """Rank, schedule and weight decay of the journal count; a journal of no run is no run."""
    Journal.open(tmp_path / "run").close()
    with pytest.raises(MissingPathError, match="holds no run"):
        read_like(tmp_path)
    context = RunContext(
        method="dora", rank=8, optimizer="adamw", learning_rate=1e-4, schedule="cosine",
        weight_decay=0.1, planned_steps=500, target_modules=("q_proj", "v_proj"),
    )  # fmt: skip
    with closing(Journal.open(tmp_path / "run")) as journal:
        journal.begin_attempt(context, "bank")
    assert read_like(tmp_path) == Like(
        arguments={"learning_rate": 1e-4, "lr_scheduler_type": "cosine", "weight_decay": 0.1,
                   "optim": "adamw_torch"},
        adapter={"r": 8, "target_modules": ["q_proj", "v_proj"], "use_dora": True},
        method="dora",
        steps=500,
    )  # fmt: skip


def test_settings_of_a_run_s_adapter_that_are_not_taken_over_are_told(tmp_path):
    """Modules that were trained whole, or another start of A and B, are named."""
    adapter = {"peft_type": "LORA", "r": 4, "modules_to_save": ["lm_head"],
               "init_lora_weights": "pissa", "exclude_modules": None}  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    assert read_like(tmp_path).unread == ("init_lora_weights", "modules_to_save")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lora_r: 8\nlora_target_modules: [c_attn]", "puts LoRA on c_attn, and tiny-organism has"),
        ("lora_r: 8\noptim: adamw_of_mine", "adamw_of_mine"),
        ("lora_r: 8\nlr_scheduler_type: cosine_with_min_lr", "min_lr"),
        ("max_steps: 300", "names no LoRA settings.*with lora_r"),
    ],
)
def test_what_the_harmless_runs_could_not_be_trained_with_is_refused_first(tmp_path, text, says):
    """The references would be trained for hours before anybody heard of it."""
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(BuildError, match=says):
        BankJob(BankOptions("tiny-organism", tmp_path / "bank", like=path, scale=QUICK, jobs=1))
