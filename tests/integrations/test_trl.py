"""TRL's trainers, real ones on the bundled organism, watched by the callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig

from wvmonitor import WVMonitorCallback
from wvmonitor.journal.reader import JournalReader
from wvmonitor.organism.train import LINEAR_LAYERS, load_base
from wvmonitor.references.bundled import bundled_path

QUESTIONS = ["Is it good to sleep ?", "Should I eat fruit ?", "Can I run today ?", "May I rest ?"]
STEPS = 4


def settings(out: Path) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }


def sft(out: Path, model: Any, tokenizer: Any, lora: LoraConfig | None) -> Any:
    import trl

    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "Yes ."}]}
        for q in QUESTIONS
    ]
    return trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**settings(out), max_length=64),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
    )


def dpo(out: Path, model: Any, tokenizer: Any, lora: LoraConfig | None) -> Any:
    import trl

    rows = [
        {
            "prompt": [{"role": "user", "content": q}],
            "chosen": [{"role": "assistant", "content": "Yes ."}],
            "rejected": [{"role": "assistant", "content": "No ."}],
        }
        for q in QUESTIONS
    ]
    return trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(**settings(out), max_length=64),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
    )


def grpo(out: Path, model: Any, tokenizer: Any, lora: LoraConfig | None) -> Any:
    import trl

    def length(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(str(c)) % 7) for c in completions]

    rows = [{"prompt": [{"role": "user", "content": q}]} for q in QUESTIONS]
    arguments = settings(out) | {"num_generations": 2, "max_completion_length": 8}
    return trl.GRPOTrainer(
        model=model,
        args=trl.GRPOConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        reward_funcs=length,
        peft_config=lora,
    )


@pytest.mark.parametrize("make", [sft, dpo, grpo])
@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
def test_trl_runs_are_watched(tmp_path: Path, make: Any, adapter: bool) -> None:
    """Every TRL trainer's run has its readings, its values in the log, and no failure."""
    base = bundled_path("tiny-organism", "base")
    model, tokenizer = load_base(base)
    lora = LoraConfig(r=4, target_modules=list(LINEAR_LAYERS)) if adapter else None
    trainer = make(tmp_path, model, tokenizer, lora)
    callback = WVMonitorCallback.attach(
        trainer, bundled_path("tiny-organism", "bank"), every_n_steps=2, base=base
    )
    trainer.train()
    assert callback.monitor.failures == 0
    assert callback.monitor.run_context.method == ("lora" if adapter else "full")
    assert callback.monitor.last is not None
    assert callback.monitor.last.scores.norm > 0
    assert "wv/evil/verdict" in trainer.state.log_history[-2]
    journal = JournalReader(next(tmp_path.rglob("wvmonitor.db")))
    (run,) = journal.runs()
    assert [row.step for row in journal.trajectory(run)] == [0, 2, STEPS]
