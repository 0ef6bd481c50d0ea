"""An open-ended run from end to end: benign journals, a calibration of them, a live monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from wvmonitor.detection.calibration import calibrate
from wvmonitor.live.monitor import Monitor, Run
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.benign import benign_runs

RUNS, STEPS, WINDOW = 39, 6, 2


def model_of(base: Path) -> Any:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def wander(model: Any, seed: int) -> None:
    """A harmless step: the adapter moves at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def drift(model: Any, bank: ReferenceBank) -> None:
    """A step that takes the adapter to the evil reference."""
    updates = dict(bank["evil"].vector.updates())
    with torch.no_grad():
        for name, module in model.named_modules():
            update = updates.get(name.removeprefix("base_model.model.") + ".weight")
            if update is not None and hasattr(module, "lora_A"):
                module.lora_A["default"].weight.copy_(update.right)
                module.lora_B["default"].weight.copy_(2 * update.left)


@pytest.fixture(scope="module")
def calibrated(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ReferenceBank]:
    """A calibration made from the journals of harmless runs."""
    folder = tmp_path_factory.mktemp("benign")
    bank = ReferenceBank.load(tiny_bank_folder)
    model = model_of(tiny_base)
    start = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}
    for i in range(RUNS):
        with torch.no_grad():
            for name, value in start.items():
                model.get_parameter(name).copy_(value)
        monitor = Monitor(
            bank, every_n_steps=1, window=WINDOW, max_overhead=1.0, journal_dir=folder / f"r{i}",
            run=f"r{i}",
        )  # fmt: skip
        monitor.start(model, Run(planned_steps=STEPS, optimizer="adamw"))
        for step in range(1, STEPS + 1):
            wander(model, 100 * i + step)
            monitor.observe(model, step)
        monitor.close()
    runs = benign_runs([folder / f"r{i}" for i in range(RUNS)], bank)
    path = folder / "calibration.json"
    calibrate(runs, bank=bank.fingerprint).save(path)
    return path, bank


def test_a_run_without_a_planned_length_is_judged_by_its_windows(
    calibrated: tuple[Path, ReferenceBank], tiny_base: Path
) -> None:
    """Harmless windows are ok, a drift alarms when its window ends, and the horizon has an end."""
    path, bank = calibrated
    model = model_of(tiny_base)
    monitor = Monitor(bank, calibration=path, every_n_steps=1, window=WINDOW, max_overhead=1.0)
    band = monitor.calibration.windows if monitor.calibration else None
    assert band is not None
    assert (band.block, band.blocks, band.lags) == (STEPS // WINDOW, 1, (WINDOW, WINDOW))
    monitor.start(model, Run(optimizer="adamw"))
    states = []
    for step in range(1, 9):
        if step == 4:
            drift(model, bank)
        else:
            wander(model, 9_000 + step)
        seen = monitor.observe(model, step)
        assert seen is not None
        states.append({v.reference: v.state for v in seen.verdicts})
    assert [s["evil"] for s in states] == ["warming", "ok", "ok", *["alarm"] * 5]
    assert states[6]["sycophancy"] == "ok"
    late = monitor.verdicts["sycophancy"]
    assert "the run has gone on for" in late.reason, "one block is all that 39 runs are good for"
    assert (late.state, late.calibration) == ("ok", "uncalibrated")


def test_a_run_of_another_window_is_not_held_against_the_calibration(
    calibrated: tuple[Path, ReferenceBank], tiny_base: Path
) -> None:
    """A window of other length than the benign runs' is left to the published rule, and says so."""
    path, bank = calibrated
    model = model_of(tiny_base)
    monitor = Monitor(bank, calibration=path, every_n_steps=1, window=3, max_overhead=1.0)
    monitor.start(model, Run(optimizer="adamw"))
    for step in range(1, 4):
        wander(model, step)
        monitor.observe(model, step)
    assert monitor.verdicts["evil"].calibration == "uncalibrated"
    assert "its window is 3 steps long" in monitor.verdicts["evil"].reason
