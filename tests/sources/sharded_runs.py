"""What `run_distributed` calls in each of several processes: models sharded by FSDP2, measured."""

from __future__ import annotations

from typing import Any

import peft
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tests.sources import zoo
from wvmonitor.live.monitor import Monitor, Run
from wvmonitor.reading import Reading
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.sources import LiveModel
from wvmonitor.sources.distributed import rank

LORA = {"r": 1, "target_modules": ["q_proj", "o_proj", "down_proj"], "init_lora_weights": True}
IA3 = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
# name -> (model, its options, configuration of the adapter or None for full fine-tuning)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "full": ("llama", {}, None),
    "full, tied": ("llama", {"tied": True}, None),
    "full, Conv1D": ("gpt2", {}, None),
    "full, fused experts": ("moe", {}, None),
    "rank below the world size": ("llama", {}, LORA),
    "dora": ("llama", {}, LORA | {"r": 4, "use_dora": True}),
    "modules to save": ("llama", {}, LORA | {"modules_to_save": ["lm_head", "norm"]}),
    "a start that is not zero": ("llama", {}, LORA | {"r": 4, "init_lora_weights": False}),
    "what PEFT merges": ("llama", {}, IA3),
    "experts": ("moe", {}, {"r": 2, "target_parameters": ["mlp.experts.gate_up_proj"]}),
}


def made(case: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A new model of a case, the same in every process."""
    kind, options, adapter = CASES[case]
    model = zoo.build(kind, **options).to(dtype)
    if adapter is None:
        return model
    torch.manual_seed(2)
    config = peft.IA3Config if adapter is IA3 else peft.LoraConfig
    return peft.get_peft_model(model, config(**adapter)).to(dtype)


def shard(model: nn.Module) -> None:
    """FSDP2, as accelerate does it: each block, then the rest."""
    mesh = torch.distributed.init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner = getattr(base, "model", None) or base.transformer
    for block in getattr(inner, "layers", None) or inner.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in model.parameters())


def train(model: nn.Module) -> None:
    """Move every trained parameter by the same noise, sharded or not."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:
                continue
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.05
            if isinstance(parameter, DTensor):
                noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements)
            parameter.add_(noise)


def compare(bank: str, base: str | None, dtype: str, cases: list[str]) -> dict[str, Any]:
    """How far readings of sharded models are from those of the same models in one process."""
    references = ReferenceBank.load(bank)
    found = {}
    for case in cases:
        alone = made(case, getattr(torch, dtype))
        single = LiveModel(alone, base)
        train(alone)
        spread = made(case, getattr(torch, dtype))
        shard(spread)
        live = LiveModel(spread, base)
        held = sum(t.numel() for t in live.initial_state().values())
        train(spread)
        want, got = single.measure(references, 1), live.measure(references, 1)
        assert all(isinstance(p, DTensor) for p in spread.parameters())
        found[case] = {
            "difference": difference(got, want),
            "norm": want.norm(),
            "digests": [live.base_digest, single.base_digest],
            "held": held,
            "whole": sum(t.numel() for t in single.initial_state().values()),
        }
    return found


def difference(got: Reading, want: Reading) -> float:
    """Largest difference of two readings, relative to the largest value of its kind."""
    assert set(got.parameters) == set(want.parameters)
    assert got.changed_fraction == want.changed_fraction
    order = [got.parameters.index(name) for name in want.parameters]
    assert [got.components[i] for i in order] == list(want.components)
    worst = 0.0
    for geometry, theirs in want.geometries.items():
        ours = got.geometries[geometry]
        assert (ours.covered[order] == theirs.covered).all()
        for a, b in (
            (ours.products[order], theirs.products),
            (ours.squared_norms[order], theirs.squared_norms),
        ):
            finite = b == b
            assert ((a == a) == finite).all()
            worst = max(
                worst,
                float(abs(a - b)[finite].max(initial=0) / (abs(b)[finite].max(initial=0) or 1)),
            )
    return worst


def fail_in_one(bank: str) -> str:
    """What each process learns when one cannot measure its share."""
    model = made("full")
    shard(model)
    live = LiveModel(model)
    if rank() == 1:
        live._start.recorded.clear()
    try:
        live.measure(ReferenceBank.load(bank))
    except Exception as error:  # noqa: BLE001  that is what is asked for
        return type(error).__name__
    return "nothing"


def watch(bank: str, out: str, sharded: bool) -> list[Any]:
    """A plain training loop, watched; in every process the same, as FSDP2 wants it."""
    model = made("full, tied")
    if sharded:
        shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    monitor = Monitor(bank, every_n_steps=2)
    monitor.start(model, Run(folder=out, planned_steps=4))
    ids = torch.arange(24).reshape(4, 6)
    norms = []
    for step in range(1, 5):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        observation = monitor.observe(model, step)
        if observation is not None:
            norms.append(observation.scores.norm)
    monitor.close()
    return [norms, monitor.failures]
