"""A real `Trainer` under the monitor, driven step by step: its events and its log, no training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from tests.sources import zoo
from wvmonitor import WVMonitorCallback
from wvmonitor.testing import random_rows


@dataclass
class Watched:
    """A run that has begun; each step moves the adapter and tells the callbacks."""

    trainer: Trainer
    callback: WVMonitorCallback

    def step(self) -> None:
        """One optimiser step, as the Trainer tells of it."""
        state = self.trainer.state
        state.global_step += 1
        zoo.shake(self.trainer.model, seed=state.global_step)
        self.tell("on_step_end")

    def tell(self, event: str) -> None:
        """Call every callback as the Trainer does."""
        handler = self.trainer.callback_handler
        getattr(handler, event)(self.trainer.args, self.trainer.state, self.trainer.control)


@pytest.fixture
def begin(tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path) -> Callable[..., Watched]:
    """Begins a watched LoRA run; settings of the monitor go in, other callbacks as well."""

    def begin(*callbacks: TrainerCallback, **settings: Any) -> Watched:
        model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        arguments = TrainingArguments(
            output_dir=str(tmp_path), report_to="none", disable_tqdm=True, use_cpu=True
        )
        trainer = Trainer(
            model=get_peft_model(model, adapter),
            args=arguments,
            train_dataset=random_rows(4),
            callbacks=list(callbacks),
        )
        callback = WVMonitorCallback.attach(
            trainer, tiny_bank_folder, every_n_steps=1, max_overhead=1.0, **settings
        )
        trainer.state.max_steps = 9
        begun = Watched(trainer, callback)
        begun.tell("on_train_begin")
        return begun

    return begin
