"""What `run_distributed` calls in each process: a model sharded by FSDP2, inoculated."""

from __future__ import annotations

from typing import Any

import torch

from tests.sources.sharded_runs import shard
from tests.steering.conftest import World, linear
from wvmonitor.sources.distributed import whole
from wvmonitor.steering import Inoculation

IDS = torch.arange(24).reshape(2, 12) % 32


def step(sharded: bool) -> dict[str, Any]:
    """Loss, the gradient's norm, and layers left out, of one pass with k·w."""
    model = World.llama().train()
    vector = World.vector(model, linear, scale=0.3)
    if sharded:
        shard(model)
    inoculation = Inoculation(model, vector, 0.7)
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    squares = sum(float(whole(p.grad).double().square().sum()) for p in model.parameters())
    plain = World.llama()(input_ids=IDS, labels=IDS).loss
    return {
        "loss": loss.item(),
        "plain": plain.item(),
        "gradient": squares**0.5,
        "unseen": inoculation.unseen(),
    }
