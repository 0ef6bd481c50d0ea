"""A dose taken out of a model in training: in full where it can be, and the share that stays."""

from __future__ import annotations

import copy
import math
from typing import Any

import peft
import pytest
import torch

from wvmonitor.steering.taking_out import take_out

DOSE = 0.4


def test_of_a_full_fine_tune_it_is_taken_out_whole(world: Any, only_linear: Any) -> None:
    """Every trained weight moves by −dose·w; frozen ones stay, and count as what could not go."""
    model = world.llama()
    vector = world.vector(model, only_linear)
    before = copy.deepcopy(model)
    assert take_out(model, vector, DOSE) == 0
    for name in vector.names():
        moved = model.get_parameter(name).double() - before.get_parameter(name).double()
        assert torch.allclose(moved, -DOSE * world.delta(vector, name), atol=1e-6)
    frozen = world.llama().requires_grad_(False)
    assert take_out(frozen, vector, DOSE) == 1
    for p, q in zip(frozen.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("rank", [2, 16], ids=["narrow", "as wide as the layer"])
def test_an_adapter_becomes_the_best_of_its_rank(world: Any, only_linear: Any, rank: int) -> None:
    """s·B·A is the truncated SVD of what it was minus dose·w (dense, float64); the rest is told."""
    model = world.llama()
    vector = world.vector(model, only_linear)
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear", init_lora_weights=False),
    )

    def deltas() -> dict[str, torch.Tensor]:
        layers = dict(adapted.get_base_model().named_modules())
        return {
            name: layers[name.removesuffix(".weight")].get_delta_weight("default").detach().double()
            for name in vector.names()
        }

    before = deltas()
    share = take_out(adapted, vector, DOSE)
    stays = asked = 0.0
    for name, found in deltas().items():
        wanted = before[name] - DOSE * world.delta(vector, name)
        u, s, v = torch.linalg.svd(wanted, full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        assert float((found - best).norm()) <= 1e-4 * float(wanted.norm())
        stays += float(s[rank:].square().sum())
        asked += DOSE**2 * float(world.delta(vector, name).square().sum())
    assert share == pytest.approx(math.sqrt(stays / asked), rel=1e-3, abs=1e-3)
    assert (share < 1e-3) == (rank == 16)
