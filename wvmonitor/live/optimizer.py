"""What an optimiser is, read from the object that steps the weights, not from a setting's name."""

from __future__ import annotations

import re
from typing import Any

_DECORATION = re.compile(r"^(paged|fused|npufused|deepspeedcpu|zero)|(fused|_?(4|8|32)bit|fp8)$")
"""What a class's name adds where the update rule stays what it is: memory, precision, kernels."""


def unwrapped_optimizer(optimizer: Any) -> Any:
    """The optimiser inside Accelerate's, DeepSpeed's and Lightning's wrappers."""
    seen: set[int] = set()
    while id(optimizer) not in seen:
        seen.add(id(optimizer))
        inner = getattr(optimizer, "optimizer", None) or getattr(optimizer, "_optimizer", None)
        if inner is None or not hasattr(inner, "param_groups"):
            break
        optimizer = inner
    return optimizer


def optimizer_family(optimizer: Any) -> str | None:
    """The family of an optimiser, lower case: `PagedAdamW32bit` and a fused AdamW are "adamw".

    Adam that decouples weight decay is AdamW. A class of somebody's own goes by the class that it
    was made from, or by its own name where that is torch's bare `Optimizer`.
    """
    if optimizer is None:
        return None
    inner = unwrapped_optimizer(optimizer)
    names = [kind.__name__.lower() for kind in type(inner).__mro__]
    bases = names[: names.index("optimizer")] if "optimizer" in names else names[:1]
    own = [_plain(name) for name in bases] or [_plain(names[0])]
    family = next((name for name in own if name in _KNOWN), own[0])
    if family == "adam" and _decoupled(inner):
        return "adamw"
    return family


def peak_learning_rate(optimizer: Any) -> float | None:
    """The largest learning rate that any group of parameters is to reach, before its schedule."""
    rates = [
        float(group[key])
        for group in getattr(optimizer, "param_groups", ())
        for key in ("max_lr", "initial_lr", "lr")
        if isinstance(group.get(key), int | float) or hasattr(group.get(key), "item")
    ]
    return max(rates, default=None)


def weight_decay(optimizer: Any) -> float | None:
    """The largest weight decay of any group of parameters; None where there is no such thing."""
    decays = [
        float(group["weight_decay"])
        for group in getattr(optimizer, "param_groups", ())
        if group.get("weight_decay") is not None
    ]
    return max(decays, default=None)


_KNOWN = frozenset({"adam", "adamw", "adafactor", "adagrad", "lion", "muon", "rmsprop", "sgd"})


def _plain(name: str) -> str:
    before = ""
    while before != name:
        before, name = name, _DECORATION.sub("", name)
    return name or before


def _decoupled(optimizer: Any) -> bool:
    groups = getattr(optimizer, "param_groups", ())
    return bool(
        getattr(optimizer, "adam_w_mode", False)  # DeepSpeed's and Apex's FusedAdam
        or getattr(optimizer, "adamw_mode", False)
        or any(group.get("decoupled_weight_decay") for group in groups)
    )
