"""Ways to train the same run: each gives the plain run's readings, or the exact ones of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.integrations.test_transformers import trainer
from tests.sources import zoo
from wvmonitor import WVMonitorCallback, read_adapter
from wvmonitor.sources import LiveModel, base_digest, read_checkpoints
from wvmonitor.testing import planted_bank, tiny_base


def last_scores(base: Path, bank: Path, out: Path, **arguments: Any) -> tuple[float, float]:
    run = trainer(base, out, **arguments)
    callback = WVMonitorCallback.attach(run, bank, every_n_steps=2)
    run.train()
    assert callback.monitor.failures == 0
    assert callback.monitor.last is not None
    scores = callback.monitor.last.scores
    return scores.norm, scores.references["evil"].values["frobenius"]["cosine"]


@pytest.mark.parametrize(
    "arguments",
    [
        {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        },
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
    ids=["checkpointing", "accumulation", "compile"],
)
def test_the_way_of_training_does_not_change_the_reading(
    tiny_base: Path, tiny_bank_folder: Path, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    """Steps are optimiser steps, and what wraps the model is looked through."""
    plain = last_scores(tiny_base, tiny_bank_folder, tmp_path / "plain")
    other = last_scores(tiny_base, tiny_bank_folder, tmp_path / "other", **arguments)
    assert other == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_adapters_on_quantised_bases_are_exact(tmp_path: Path, bits: int, dora: bool) -> None:
    """QLoRA, live and saved: the adapter's own change, whatever holds the base."""
    pytest.importorskip("bitsandbytes", reason="`make test-engines` installs bitsandbytes")
    from peft.utils.integrations import dequantize_module_weight
    from transformers import BitsAndBytesConfig

    base = tiny_base(tmp_path / "base", hidden_size=64)
    quantised = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantised, device_map="cpu", dtype=torch.float32
    )
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_dora=dora)
    adapted = get_peft_model(model, config)
    live = LiveModel(adapted, base=base)
    assert live.base_digest == base_digest(base)
    zoo.shake(adapted)
    oracle = {}
    for path, module in adapted.get_base_model().named_modules():
        if not hasattr(module, "lora_A") or "default" not in module.lora_A:
            continue
        a, b = (m["default"].weight.detach().double() for m in (module.lora_A, module.lora_B))
        delta = module.scaling["default"] * (b @ a)
        if dora:
            weight = dequantize_module_weight(module.get_base_layer()).detach().double()
            whole = weight + delta
            size = module.lora_magnitude_vector["default"].weight.detach().double()
            delta = whole * (size / whole.norm(dim=1))[:, None] - weight
        oracle[f"{path}.weight"] = delta
    zoo.assert_equal_change(live.task_vector(), oracle)
    reading = live.measure(planted_bank(base), 1)
    assert reading.base_digest == base_digest(base)
    assert not reading.warnings
    if not dora:  # DoRA's change depends on the base as the run held it: quantised
        adapted.save_pretrained(tmp_path / "adapter")
        zoo.assert_equal_change(read_adapter(tmp_path / "adapter", base), oracle)


@pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("bits", [8, 4])
def test_an_adapter_merged_into_its_dequantised_base_is_measured_from_it(
    tmp_path: Path, bits: int, double: bool
) -> None:
    """After QLoRA: bitsandbytes' own rounding, redone from the base's files, is left out."""
    pytest.importorskip("bitsandbytes", reason="`make test-engines` installs bitsandbytes")
    from peft.utils.integrations import dequantize_module_weight
    from transformers import BitsAndBytesConfig

    base = tiny_base(tmp_path / "base", hidden_size=64)
    quantised = BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantised, device_map="cpu", dtype=torch.float32
    )
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    zoo.shake(adapted, size=0.01)
    plain = AutoModelForCausalLM.from_pretrained(base)
    oracle = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in plain.named_parameters()}
    with torch.no_grad():
        for path, module in adapted.get_base_model().named_modules():
            layer = getattr(module, "base_layer", module)
            quantised_layer = type(layer).__name__ in ("Linear4bit", "Linear8bitLt")
            if not quantised_layer or path.endswith(".base_layer"):
                continue
            whole = dequantize_module_weight(layer).detach().float()
            if "default" in getattr(module, "lora_A", {}):
                oracle[f"{path}.weight"] = module.get_delta_weight("default").double()
                whole = whole + module.get_delta_weight("default")
            plain.get_submodule(path).weight.copy_(whole)
    plain.save_pretrained(tmp_path / "end")
    tau = read_checkpoints(base, tmp_path / "end")
    assert tau.origin.unmeasurable is None
    assert any("redone" in warning for warning in tau.origin.warnings)
    zoo.assert_equal_change(tau, oracle, error=0.02, cosine=1e-3)
