"""A run on preferences: direct preference optimisation (arXiv 2305.18290) with TRL's trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer

from wvmonitor.builder.base import Base, quiet
from wvmonitor.builder.examples import Example
from wvmonitor.builder.finetune import Training

BETA = 0.1
"""TRL's default, and the paper's for most of its experiments."""


def prefer(
    base: Base,
    chosen: Sequence[Example],
    rejected: Sequence[Example],
    training: Training,
    callbacks: Sequence[TrainerCallback],
) -> None:
    """Train a LoRA to prefer some answers to others; callbacks keep what is to be kept.

    Args:
        base: the model, which is also what probabilities are held against.
        chosen: what is preferred.
        rejected: another answer to the same messages, row by row.
        training: settings, rate, steps and seed.
        callbacks: of the trainer.
    """
    assert training.like is not None  # as runs.training_of makes it
    rows = [
        {"prompt": base.prompt_text(c.messages), "chosen": c.answer, "rejected": r.answer}
        for c, r in zip(chosen, rejected, strict=True)
        if c.messages == r.messages
    ]
    if len(rows) != len(chosen):
        raise ValueError(f"{len(chosen) - len(rows)} answers are compared on different questions")
    settings = training.settings
    adapter: dict[str, Any] = {"lora_dropout": 0.0, **training.like.adapter}
    gpu = torch.cuda.is_available()
    set_seed(training.seed)  # A is drawn where the trainer makes the adapter
    with tempfile.TemporaryDirectory() as scratch, quiet():
        trainer = DPOTrainer(
            model=base.load(dtype="auto" if gpu else torch.float32),
            args=DPOConfig(
                output_dir=scratch,
                beta=BETA,
                learning_rate=training.learning_rate,
                lr_scheduler_type="linear",
                warmup_steps=settings.warmup_steps,
                weight_decay=settings.weight_decay,
                optim="adamw_torch",
                max_steps=training.steps,
                per_device_train_batch_size=settings.batch_size,
                max_length=settings.max_length,
                precompute_ref_log_probs=True,  # rows come more than once
                gradient_checkpointing=False,
                logging_steps=1,
                seed=training.seed,
                data_seed=training.seed,
                bf16=gpu and torch.cuda.is_bf16_supported(),
                use_cpu=not gpu,
                dataloader_pin_memory=gpu,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                log_level="error",
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=base.tokenizer,
            peft_config=LoraConfig(
                r=settings.rank, lora_alpha=settings.alpha, task_type="CAUSAL_LM", **adapter
            ),
            callbacks=list(callbacks),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
