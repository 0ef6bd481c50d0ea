"""k·w as a LoRA adapter folder, for whoever serves adapters."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wvmonitor.errors import (
    KeyMismatchError,
    NonFiniteError,
    ShapeMismatchError,
    UnsupportedAdapterError,
)
from wvmonitor.files.atomic import write_text
from wvmonitor.files.documents import write_json
from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.reading import component_of
from wvmonitor.sources.folder import opened
from wvmonitor.steering import weights
from wvmonitor.steering.folders import SteeredFolder, Tally, model_card, publishing
from wvmonitor.steering.weights import Coefficients, Steering
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.compress import compress
from wvmonitor.vectors.task_vector import Origin, TaskVector
from wvmonitor.vectors.update import LowRankUpdate


def as_adapter(
    reference: Steering | Coefficients,
    k: float | None,
    base: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
) -> SteeredFolder:
    """Write Σ k·w as a LoRA adapter folder that PEFT, vLLM and others load onto the base.

    Exact where w is low-rank: B·A = Σ k·w with a scaling of 1. All modules get the largest rank
    among them, padded with zeros, because not every server knows a rank for each module.

    Args:
        reference: what to add, or several with their k. To edit an adapter, give its own task
            vector with a k of 1 among them.
        k: how much of it; negative takes it out. None where `reference` says.
        base: the model's folder, whose names and shapes are checked, or its Hub id.
        out: a folder that does not exist yet, or is empty.
        rank: compress every update to at most this rank, dense ones included; what that loses is
            in the result's `lost`.

    Raises:
        UnsupportedAdapterError: w changes something else than 2-D weights of the blocks, or holds a
            dense update and no `rank` was given.
        NonFiniteError: k, or a factor, is not finite.
        KeyMismatchError, ShapeMismatchError: the base folder does not have such a parameter.
        InputError: `out` is taken, or lies inside `base`.
    """
    terms = weights.coefficients(reference, k)
    given: Coefficients = reference if isinstance(reference, Mapping) else {reference: terms[0][1]}
    vector, factor = _sum(terms)
    if not len(vector):
        changed = ", ".join(weights.label(one) for one in given)
        raise UnsupportedAdapterError(f"{changed} changes nothing: no adapter")
    _check_adaptable(vector)
    config = _check_base(Path(base), vector)
    tally = Tally(form="adapter")
    factors = {n: _factors(vector, n, factor, rank, tally) for n in vector.names()}
    target = Path(out)
    widest = max(update.rank for update in factors.values())
    tensors: dict[str, Tensor] = {}
    for name, update in factors.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{key}.lora_A.weight"] = _padded(update.right, 0, widest)
        tensors[f"{key}.lora_B.weight"] = _padded(update.left, 1, widest)
    with publishing(target, base) as work:
        write_safetensors(work / "adapter_model.safetensors", tensors, {"format": "pt"})
        done = tally.folder(target, tuple(factors))
        card = model_card(base, given, done)
        write_text(work / "README.md", card)
        conv1d = any(vector.update(name).transposed for name in vector.names())
        write_json(
            work / "adapter_config.json",
            _adapter_config(base, config, list(factors), widest, fan_in_fan_out=conv1d),
        )
    return done


def _sum(terms: list[tuple[TaskVector, float]]) -> tuple[TaskVector, float]:
    """The vectors as one, and how much of it."""
    if len(terms) == 1:
        return terms[0]
    total = functools.reduce(operator.add, (vector * k for vector, k in terms))
    source = " + ".join(vector.origin.source for vector, _ in terms)
    return TaskVector({n: total.shape(n) for n in total.names()}, total.update, Origin(source)), 1.0


def _check_adaptable(vector: TaskVector) -> None:
    for name in vector.names():
        shape = vector.shape(name)
        linear = len(shape) == 2 and component_of(name, shape) == "blocks"
        if not (linear and name.endswith(".weight")):
            raise UnsupportedAdapterError(
                f"{vector.origin.source} changes {name} (shape {tuple(shape)}), which a LoRA "
                "adapter cannot hold: leave it out with .select(...), or use steer_checkpoint"
            )


def _check_base(base: Path, vector: TaskVector) -> Mapping[str, Any]:
    """The base's configuration; empty for a Hub id, which is not looked up."""
    if not base.is_dir():
        return {}
    with opened(base) as folder:
        for name in vector.names():
            if name not in folder:
                raise KeyMismatchError(
                    f"{vector.origin.source} changes {name}, which {folder.where} does not have: "
                    "it was made for another architecture"
                )
            if folder.shape(name) != tuple(vector.shape(name)):
                raise ShapeMismatchError(
                    f"{name} has shape {folder.shape(name)} in {folder.where} but "
                    f"{tuple(vector.shape(name))} in {vector.origin.source}: it was made for "
                    "another model"
                )
        return folder.config


def _factors(
    vector: TaskVector, name: str, k: float, rank: int | None, tally: Tally
) -> LowRankUpdate:
    update = vector.update(name)
    if rank is not None:
        compressed = compress(update, rank)
        update = compressed.update
        tally.asked += k * k * compressed.total
        tally.missed += k * k * max(compressed.total - compressed.kept, 0.0)
    elif isinstance(update, LowRankUpdate):
        tally.asked += k * k * float(updates_.inner(update, update))
    linear = updates_.as_linear(update)
    if not isinstance(linear, LowRankUpdate):
        raise UnsupportedAdapterError(
            f"{name} of {vector.origin.source} is dense, which a LoRA adapter holds only in part: "
            "say how much with rank= (below its smaller side), or use steer_checkpoint"
        )
    left, right = linear.left.float() * k, linear.right.float()
    if not bool(torch.isfinite(left).all() and torch.isfinite(right).all()):
        raise NonFiniteError(f"{name} of {vector.origin.source} times {k} is not finite")
    return LowRankUpdate(left, right)


def _padded(factor: Tensor, dimension: int, rank: int) -> Tensor:
    shape = list(factor.shape)
    shape[dimension] = rank - shape[dimension]
    return torch.cat([factor, factor.new_zeros(shape)], dim=dimension).contiguous()


def _adapter_config(
    base: str | Path,
    config: Mapping[str, Any],
    names: list[str],
    rank: int,
    *,
    fan_in_fan_out: bool,
) -> dict[str, Any]:
    architectures = config.get("architectures") or [""]
    causal = str(architectures[0]).endswith(("ForCausalLM", "LMHeadModel"))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "target_modules": [name.removesuffix(".weight") for name in names],
        "use_dora": False,
        "use_rslora": False,
    }
