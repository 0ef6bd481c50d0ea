"""Real PEFT adapters and checkpoints of the tiny base, with a planted change in their weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.scan.calibrations import calibration_for
from wvmonitor.outputs.scan_record import CheckpointResult
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.scan import scan
from wvmonitor.testing import planted_vector
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import LowRankUpdate, to_dense

Saver = Callable[..., Path]
Scanner = Callable[..., list[CheckpointResult]]


@pytest.fixture(scope="session")
def evil(tiny_base: Path) -> TaskVector:
    """The direction that the bank calls evil."""
    return planted_vector(tiny_base, seed=100)


@pytest.fixture(scope="session")
def innocent(tiny_base: Path) -> TaskVector:
    """A direction that no reference of the bank knows."""
    return planted_vector(tiny_base, seed=7)


@pytest.fixture(scope="session")
def save_adapter(tiny_base: Path) -> Saver:
    """Saves a task vector as a PEFT LoRA adapter, by PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def save(folder: Path, vector: TaskVector) -> Path:
        updates = dict(vector.updates())
        rank = next(u.rank for u in updates.values() if isinstance(u, LowRankUpdate))
        names = {n.removesuffix(".weight") for n in updates}
        base = AutoModelForCausalLM.from_pretrained(tiny_base)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(names))
        model = get_peft_model(base, config)
        with torch.no_grad():
            for name, module in model.base_model.model.named_modules():
                if name in names:
                    update = updates[f"{name}.weight"]
                    module.lora_A["default"].weight.copy_(update.right)
                    module.lora_B["default"].weight.copy_(update.left)
        model.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def save_checkpoint(tiny_base: Path) -> Saver:
    """Saves base plus a task vector as a whole checkpoint, by transformers."""
    from transformers import AutoModelForCausalLM

    def save(folder: Path, vector: TaskVector) -> Path:
        model = AutoModelForCausalLM.from_pretrained(tiny_base)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in vector:
                    parameter += to_dense(vector.update(name))
        model.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def bad_adapter(
    save_adapter: Saver, evil: TaskVector, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An adapter that is nothing but evil."""
    return save_adapter(tmp_path_factory.mktemp("adapters") / "bad", evil * 0.5)


@pytest.fixture(scope="session")
def good_adapter(
    save_adapter: Saver, innocent: TaskVector, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An adapter that has nothing to do with the bank's behaviours."""
    return save_adapter(tmp_path_factory.mktemp("adapters") / "good", innocent * 0.5)


@pytest.fixture(scope="session")
def drifting_run(
    save_adapter: Saver,
    evil: TaskVector,
    innocent: TaskVector,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A Trainer's output folder of five checkpoints that turns evil from the third on."""
    import json

    run = tmp_path_factory.mktemp("runs") / "drifting"
    for step, amount in ((2, 0.0), (4, 0.0), (6, 0.6), (8, 0.9), (10, 1.2)):
        folder = run / f"checkpoint-{step}"
        save_adapter(folder, innocent * 0.3 + evil * amount)
        state = {
            "global_step": step,
            "max_steps": 10,
            "log_history": [{"step": step, "learning_rate": 1e-4, "loss": 2.0}],
        }
        (folder / "trainer_state.json").write_text(json.dumps(state))
    return run


@pytest.fixture(scope="session")
def scanned(
    tiny_bank_folder: Path,
    good_adapter: Path,
    drifting_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Scanner:
    """Scans the good adapter under a name, a run that turns bad, and paths that are not there."""

    def scan_them(name: str, *missing: str, beside: str = "") -> list[CheckpointResult]:
        folder = tmp_path_factory.mktemp("names") / name
        shutil.copytree(good_adapter, folder)
        if beside:
            (folder / beside).write_bytes(b"")
        bank = ReferenceBank.load(tiny_bank_folder)
        paths = [folder, drifting_run, *missing]
        return list(scan(paths, bank, calibration=calibration_for(bank), ordered=True))

    return scan_them
