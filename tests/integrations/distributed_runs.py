"""What `run_distributed` calls in each process: a real `Trainer`, watched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from wvmonitor import WVMonitorCallback
from wvmonitor.journal.reader import JournalReader
from wvmonitor.sources.distributed import any_sharded, rank
from wvmonitor.testing import random_rows


def journal_steps(folder: Path) -> list[int]:
    """The steps of the readings in a folder's only journal, of its only run."""
    (path,) = folder.rglob("wvmonitor.db")
    journal = JournalReader(path)
    (run,) = journal.runs()
    return [row.step for row in journal.trajectory(run)]


def train(
    base: str,
    bank: str,
    out: str,
    *,
    batch: int,
    lora: bool = True,
    deepspeed: int | None = None,
    dtype: str = "float32",
    learning_rate: float = 1e-2,
    stop_on: int | None = None,
    logging_steps: int = 1,
    inoculate: str = "",
) -> dict[str, Any]:
    """Train for four steps of four rows each, over however many processes there are.

    Args:
        base: folder of the model.
        bank: folder of the references.
        out: the run's folder.
        batch: rows of one process's step.
        lora: or full fine-tuning.
        deepspeed: ZeRO's stage, if any.
        dtype: of the model.
        learning_rate: its peak.
        stop_on: the rank whose monitor asks for a stop at its first reading.
        logging_steps: between two rows of the Trainer's own.
        inoculate: what rides along, as the setting takes it.
    """
    torch.manual_seed(1)
    zero = {
        "train_micro_batch_size_per_gpu": batch,
        "zero_optimization": {"stage": deepspeed, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == "bfloat16"},
        "gradient_clipping": 1.0,
    }
    arguments = TrainingArguments(
        output_dir=out,
        max_steps=4,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        logging_steps=logging_steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        ddp_find_unused_parameters=False,
        bf16=dtype == "bfloat16" and deepspeed is not None,
        deepspeed=zero if deepspeed else None,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    if lora:
        config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    trainer = Trainer(model=model, args=arguments, train_dataset=random_rows(16))
    callback = WVMonitorCallback.attach(
        trainer, bank, every_n_steps=2, base=base, inoculate=inoculate
    )
    if stop_on == rank():
        callback.monitor.action = lambda _: "stop"  # type: ignore[method-assign]
    trainer.train()
    last = callback.monitor.last
    evil = None if last is None else last.scores.references["evil"].values["frobenius"]
    return {
        "steps": trainer.state.global_step,
        "rows": [row["step"] for row in trainer.state.log_history if "loss" in row],
        "norm": None if last is None else last.scores.norm,
        "cosine": None if evil is None else evil["cosine"],
        "changed_fraction": None if last is None else last.reading.changed_fraction,
        "weights": float(sum(p.detach().double().abs().sum() for p in model.parameters())),
        "failures": callback.monitor.failures,
        "wrapped": type(trainer.model_wrapped).__name__,
        "sharded": any_sharded(trainer.model),
        "empty": any(p.numel() == 0 for p in trainer.model.parameters()),
        "warnings": [] if last is None else list(last.reading.warnings),
    }
