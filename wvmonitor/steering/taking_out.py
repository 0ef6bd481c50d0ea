"""Taking a dose of w out of a model in training, in the parameters that it trains."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from wvmonitor.sources.distributed import is_sharded
from wvmonitor.steering import weights
from wvmonitor.steering.live_parameters import Holder, holders, without_wrappers
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.compress import compress
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import LowRankUpdate, Update


@torch.no_grad()
def take_out(model: nn.Module, vector: TaskVector, dose: float) -> float:
    """Subtract dose·w from what is trained, between two steps, and give the share that stays.

    A parameter that is trained itself is moved by all of it. A LoRA adapter becomes the best of its
    rank r: s·B·A is the truncated SVD of s·B·A − dose·w. (On the bundled model that does as well as
    the whole subtraction; the least squares in B alone, A as it was, leaves most of the harm.)
    Optimisers keep their moments, which belong to the old factors for a few steps. Nothing can be
    taken out of parameters that are spread over processes.

    Returns:
        ‖what could not be taken out‖ / ‖dose·w‖, in [0, 1].

    Raises:
        KeyMismatchError: w changes a parameter that the model does not have.
    """
    base = without_wrappers(model)
    live = holders(base)
    weights.check_names(base, vector, live)
    adapters = {id(m.base_layer): m for m in base.modules() if hasattr(m, "lora_A")}
    asked = stays = 0.0
    moved: set[int] = set()
    for name in vector.names():
        held = live[name]
        holder = next((h for h in held if h.parameter.requires_grad), held[0])
        if id(holder.parameter) in moved:
            continue
        moved.add(id(holder.parameter))
        removed = updates_.scale(
            updates_.to_device(updates_.held(vector.update(name)), holder.parameter.device), -dose
        )
        size = float(updates_.inner(removed, removed))
        asked += size
        stays += min(_taken(holder, removed, size, adapters.get(id(holder.module))), size)
    return math.sqrt(stays / asked) if asked else 0.0


def _taken(holder: Holder, removed: Update, size: float, adapter: Any) -> float:
    """Move what is trained by `removed`, and give ‖what it cannot be moved by‖²."""
    parameter = holder.parameter
    if parameter.requires_grad and not is_sharded(parameter):
        parameter.copy_(weights.moved(parameter, updates_.to_dense(removed), holder.attribute))
        return 0.0
    factors = _factors(adapter) if holder.attribute == "weight" else None
    if factors is None:
        return size
    a, b, scale = factors
    now = LowRankUpdate(b.detach().float() * scale, a.detach().float())
    best = compress(updates_.add(now, updates_.as_linear(removed)), a.shape[0])
    left, right = _factored(best.update)
    b.zero_()
    a.zero_()
    b[:, : left.shape[1]] = weights.moved(b[:, : left.shape[1]], left / scale, "lora_B")
    a[: right.shape[0]] = weights.moved(a[: right.shape[0]], right, "lora_A")
    return max(best.total - best.kept, 0.0)


def _factored(update: Update) -> tuple[Tensor, Tensor]:
    """Left and right factors; of a matrix that is no wider than the adapter, itself and 1."""
    if isinstance(update, LowRankUpdate):
        return update.left, update.right
    delta = updates_.to_dense(update)
    rows, columns = delta.shape
    one = torch.eye(min(rows, columns), device=delta.device)
    return (one, delta) if rows < columns else (delta, one)


def _factors(adapter: Any) -> tuple[Tensor, Tensor, float] | None:
    """A, B and s of the active adapter of a linear layer, where it is trained in one piece."""
    for name in adapter.active_adapters if adapter is not None else ():
        if name in adapter.lora_A:
            a = getattr(adapter.lora_A[name], "weight", None)
            b = getattr(adapter.lora_B[name], "weight", None)
            if a is None or b is None:  # AdaLoRA trains no plain B·A
                return None
            if a.requires_grad and b.requires_grad and not (is_sharded(a) or is_sharded(b)):
                return a, b, float(adapter.scaling[name])
    return None
