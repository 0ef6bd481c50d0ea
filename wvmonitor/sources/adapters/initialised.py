"""Adapters that do not start at zero: what must be taken off, and what must be refused.

PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA put part of W into B·A at the start and subtract it from W;
`init_lora_weights=False` starts from noise. B·A is then no update: τ = s(BA − B₀A₀). (PEFT's
`path_initial_model_for_weight_conversion` does this on saving; what it writes is ordinary LoRA.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from wvmonitor.errors import AdapterError
from wvmonitor.sources.adapters.config import LoraSettings, Start
from wvmonitor.sources.folder import ModelFolder
from wvmonitor.vectors import LowRankUpdate
from wvmonitor.vectors import update as updates

RECORD_IT = (
    "save the adapter before the first step and give that folder as `initial` "
    "(WVMonitorCallback and LiveModel record it by themselves)"
)


def check_start(settings: LoraSettings, base: ModelFolder | None, *, initial: bool) -> None:
    """Refuse an adapter whose start cannot be told.

    Raises:
        AdapterError: it did not start at zero, and neither its initial state nor a base from which
            to compute it is at hand.
    """
    if settings.start == "base" or initial:
        return
    if settings.start == "unknown":
        raise AdapterError(
            f"the adapter of {settings.where} did not start at zero (init_lora_weights), so its "
            f"factors alone are no update: {RECORD_IT}"
        )
    if base is None:
        raise AdapterError(
            f"the adapter of {settings.where} started as {settings.start} of its base's weights: "
            f"give the base, or {RECORD_IT}"
        )


def start_product(
    start: Start, weight: Tensor, rank: int, scale: float, *, transposed: bool
) -> LowRankUpdate:
    """s·B₀A₀ as PEFT computes it from the base: unique, though the factors' signs are not.

    Args:
        start: "pissa" (the best approximation of that rank) or "olora" (the first columns of QR).
        weight: the base's weight.
        rank: of the adapter.
        scale: s. PiSSA's factors are divided by it, OLoRA's are not.
        transposed: whether the weight is stored (inputs, outputs).

    Raises:
        AdapterError: PEFT has no such start for this weight.
    """
    if weight.ndim != 2 or (start == "olora" and transposed):
        # PEFT's OLoRA does not turn a Conv1D round, so that its own merge fails there
        raise AdapterError(
            f"a {start} start does not exist for a weight of shape {tuple(weight.shape)}"
            f"{' (in, out)' if transposed else ''}: check the adapter's configuration"
        )
    # float32, as PEFT does: the training started from its result, not from an exact one
    linear = (weight.mT if transposed else weight).to(torch.float32)
    if start == "pissa":
        left, values, right = torch.linalg.svd(linear, full_matrices=False)
        product = LowRankUpdate(left[:, :rank] * values[:rank], right[:rank])
    else:
        left, right = torch.linalg.qr(linear)
        product = LowRankUpdate(left[:, :rank] * scale, right[:rank])
    if not transposed:
        return product
    return LowRankUpdate(product.right.mT, product.left.mT, transposed=True)


def minus(now: updates.Update, start: updates.Update) -> updates.Update:
    """The update since the start."""
    return updates.add(now, updates.scale(start, -1.0))
