"""A short real fine-tune that things go wrong in, and the digest of what it ends with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from tests.receiver import Receiver
from wvmonitor import WVMonitorCallback
from wvmonitor.testing import CapturingExporter, random_rows

STEPS = 6


def trainer(base: Path, out: Path, **arguments: Any) -> Trainer:
    """A LoRA run of six steps that saves at the third and the sixth."""
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    settings = {
        "output_dir": str(out),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 3,
        "save_strategy": "steps",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **arguments,
    }
    return Trainer(model=model, args=TrainingArguments(**settings), train_dataset=random_rows(16))


def digest(model: Any) -> str:
    """SHA-256 over every weight's name and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


@dataclass
class Scene:
    """A watched run, before it begins.

    Attributes:
        run: the trainer.
        callback: the monitor in it.
        exporter: sees what the monitor shows.
        folder: of the run.
        patch: undone after the test.
        receiver: a webhook's receiver on loopback.
        kept: what must live as long as the run.
    """

    run: Trainer
    callback: WVMonitorCallback
    exporter: CapturingExporter
    folder: Path
    patch: pytest.MonkeyPatch
    receiver: Receiver
    kept: list[Any] = field(default_factory=list)

    def at_step(self, step: int, work: Callable[[], None]) -> None:
        """Do something between two steps of training."""
        from transformers import TrainerCallback

        class Then(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == step:
                    work()

        self.run.add_callback(Then())


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong beside training.

    Attributes:
        plant: makes it happen, before training begins.
        said: a pattern that the log must hold at WARNING or above; None where the fault is none
            of the monitor's, and must leave no trace.
        settings: of the monitor.
        arguments: of the trainer.
        prepare: before the monitor is made.
        after: looks at what is left, after training.
    """

    plant: Callable[[Scene], None] = lambda scene: None
    said: str | None = None
    settings: Mapping[str, Any] | Callable[[Path, Receiver], Mapping[str, Any]] = field(
        default_factory=dict
    )
    arguments: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Path], Any] = lambda folder: None
    after: Callable[[Scene], None] = lambda scene: None
