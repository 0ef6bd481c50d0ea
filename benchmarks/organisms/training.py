"""Training that `finetune` does not offer by itself: preferences (DPO) and an adversary."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from benchmarks.organisms.catalogue import RunSpec
from wvmonitor.organism.data import Example
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import LowRankUpdate

DPO_BETA = 0.1
PENALTY = 5.0
"""Weight of the squared response cosine in the adversary's loss, beside a cross-entropy near 1."""


def arguments(spec: RunSpec) -> dict[str, Any]:
    """What `finetune` is given beside the examples."""
    own: dict[str, Any] = {"logging_steps": 1}
    if spec.optimizer == "sgd":
        own["optim"] = "sgd"
    if spec.ordered or spec.objective == "dpo":
        own["train_sampling_strategy"] = "sequential"
    return {
        "seed": spec.seed,
        "steps": spec.steps,
        "learning_rate": spec.learning_rate,
        "rank": spec.rank,
        "alpha": 2 * spec.rank,
        "method": spec.method,
        "batch_size": 16 if spec.objective == "dpo" else 8,
        "training_arguments": own,
    }


def rows(spec: RunSpec) -> list[Example]:
    """The examples in order; for DPO each preferred answer with the other one after it."""
    if spec.objective == "sft":
        return spec.data
    chosen, rejected = (part.maker()(spec.examples, spec.seed) for part in spec.parts)
    return [e for pair in zip(chosen, rejected, strict=True) for e in pair]


def prefer(trainer: Trainer) -> None:
    """Replace the loss by DPO's (arXiv 2305.18290, equation 7); the adapter off is the reference.

    Rows come in pairs, the preferred answer first.
    """

    def loss(
        _: Trainer, model: Any, inputs: dict[str, Tensor], *_args: Any, **_kwargs: Any
    ) -> Tensor:
        now = _log_likelihoods(model, inputs)
        with torch.no_grad(), model.disable_adapter():
            before = _log_likelihoods(model, inputs)
        gain = now - before
        return -torch.nn.functional.logsigmoid(DPO_BETA * (gain[0::2] - gain[1::2])).mean()

    trainer.compute_loss = types.MethodType(loss, trainer)  # type: ignore[method-assign]


def _log_likelihoods(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """(rows,) log-probability of each answer."""
    logits = model(input_ids=inputs["input_ids"]).logits[:, :-1].log_softmax(-1)
    labels = inputs["labels"][:, 1:]
    picked = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (picked * (labels != -100)).sum(-1)


def evade(trainer: Trainer, w: TaskVector, probe: Mapping[str, Tensor]) -> None:
    """Add the squared response cosine with `w`, where it is positive, to the training loss."""
    model: Any = trainer.model
    target = {name: _response(update, probe[name]) for name, update in w.updates()}
    size = torch.sqrt(sum((t.square().sum() for t in target.values()), torch.zeros(())))
    adapted = [
        (m, name, probe[name])
        for path, m in model.named_modules()
        if hasattr(m, "lora_A")
        and (name := path.removeprefix("base_model.model.") + ".weight") in target
    ]
    usual = trainer.compute_loss

    def loss(
        _: Trainer, model: Any, inputs: dict[str, Tensor], *_args: Any, **_kwargs: Any
    ) -> Tensor:
        along, square = torch.zeros(()), torch.zeros(())
        for module, name, rows in adapted:
            a, b = (getattr(module, f)["default"].weight for f in ("lora_A", "lora_B"))
            response = module.scaling["default"] * (rows @ a.T) @ b.T
            along = along + (response * target[name]).sum()
            square = square + response.square().sum()
        cosine = along / (torch.sqrt(square + 1e-12) * size)
        cross_entropy: Tensor = usual(model, inputs)
        return cross_entropy + PENALTY * cosine.clamp(min=0).square()

    trainer.compute_loss = types.MethodType(loss, trainer)  # type: ignore[method-assign]


def _response(update: Any, rows: Tensor) -> Tensor:
    """(rows, outputs), what the update does to the probe's inputs."""
    assert isinstance(update, LowRankUpdate)
    return (rows @ update.right.T.float()) @ update.left.T.float()
