"""Which training examples push towards a behaviour, by two forward passes and no gradients.

A step on an example moves the weights by −η·∇L, so how much it pushes along w is −⟨∇L, w⟩, which is
the slope of its loss along w. The symmetric difference

    push = [L(θ − ε·w) − L(θ + ε·w)] / 2ε

gives it to second order in ε, also before any training. All examples are read at θ + ε·w, then all
at θ − ε·w, so the weights are moved twice however many there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wvmonitor.errors import InputError, NonFiniteError
from wvmonitor.files.documents import json_line
from wvmonitor.steering.examples import TrainingExample
from wvmonitor.steering.weights import Steering, label, steered
from wvmonitor.vectors import functional

EPSILON = 0.1
"""The step along w, in units of w. On the bundled model anything from 0.02 to 0.3 ranks alike."""

BATCH_TOKENS = 4096
"""Tokens in a batch, padding included: the logits of so many are in memory at once."""


@dataclass(frozen=True)
class Blamed:
    """What one example does.

    Attributes:
        example: the example.
        push: nats of loss per answer token that one unit of w spares: positive pushes towards w.
            NaN where it could not be told.
        loss: the model's own mean loss per answer token, in nats (to second order in ε).
        error: why there is no `push`, if there is none.
    """

    example: TrainingExample
    push: float
    loss: float
    error: str | None = None


@torch.no_grad()
def blame(
    model: nn.Module,
    examples: Sequence[TrainingExample],
    reference: Steering,
    *,
    epsilon: float = EPSILON,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Blamed]:
    """Rank examples by how much each pushes towards w; those that cannot be judged come last.

    The model is in evaluation mode meanwhile; its weights and mode are afterwards as they were.

    Args:
        model: a causal language model: the base, or a fine-tune of it, on any device.
        examples: from `read_examples`.
        reference: the direction w.
        epsilon: how far to step to either side, in units of w.
        batch_tokens: the most tokens in a batch, padding included.

    Raises:
        InputError: epsilon is not positive, or there is no example with an answer.
        WVMonitorError: the model cannot be steered along w; as `steered` says.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise InputError(f"epsilon must be a positive number, got {epsilon}: 0.1 is usual")
    usable = [e for e in examples if e.error is None]
    if not usable:
        why = f" (the first: {examples[0].error})" if examples else ""
        raise InputError(f"none of {len(examples)} examples has an answer to judge{why}")
    batches = list(in_batches(usable, batch_tokens))
    training = model.training
    model.eval()
    try:
        with steered(model, reference, epsilon):
            ahead = mean_losses(model, batches)
        with steered(model, reference, -epsilon):
            behind = mean_losses(model, batches)
    finally:
        model.train(training)
    if not any(math.isfinite(x) for x in ahead.values()):
        raise NonFiniteError(
            f"no loss is finite at ε = {epsilon} along {label(reference)}: take a smaller epsilon"
        )
    return _ranked(examples, ahead, behind, epsilon)


def json_lines(ranked: Sequence[Blamed]) -> Iterator[str]:
    """A line of JSON for each example, in the order of the ranking; null where there is no push."""
    for rank, blamed in enumerate(ranked, start=1):
        example, judged = blamed.example, blamed.error is None
        found = {
            "rank": rank if judged else None,
            "index": example.index,
            "push": blamed.push if judged else None,
            "loss": blamed.loss if judged else None,
            "tokens": example.tokens,
            "cut": example.cut,
            "prompt": example.prompt,
            "answer": example.answer,
            "error": blamed.error,
        }
        yield json_line(found) + "\n"


def in_batches(
    examples: Sequence[TrainingExample], batch_tokens: int
) -> Iterator[list[TrainingExample]]:
    """Examples of like lengths together, at most `batch_tokens` with the padding (at least one)."""
    batch: list[TrainingExample] = []
    for example in sorted(examples, key=lambda e: -len(e.ids)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def mean_losses(model: nn.Module, batches: Sequence[Sequence[TrainingExample]]) -> dict[int, float]:
    """Mean loss per answer token of every example, by its index: one evaluation pass."""
    device = next(model.parameters()).device
    found: dict[int, float] = {}
    waiting = [(batch, _batch_losses(model, batch, device)) for batch in batches]
    for batch, losses in waiting:  # one wait for the device at the end, not one a batch
        found.update(zip((e.index for e in batch), losses.tolist(), strict=True))
    return found


def _batch_losses(model: nn.Module, batch: Sequence[TrainingExample], device: Any) -> Tensor:
    width = len(batch[0].ids)
    # Padded on the right: real tokens never attend to what follows them.
    ids = torch.tensor([[*e.ids] + [0] * (width - len(e.ids)) for e in batch], device=device)
    lengths = torch.tensor([len(e.ids) for e in batch], device=device)
    starts = torch.tensor([e.start for e in batch], device=device)
    places = torch.arange(width, device=device)
    attended = (places < lengths[:, None]).long()
    first = max(min(e.start for e in batch) - 1, 0)
    logits = model(input_ids=ids, attention_mask=attended, use_cache=False).logits
    logits = logits[:, first:-1]
    logits = logits.to(functional.working_dtype(logits))
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), ids[:, first + 1 :], reduction="none"
    )
    counted = (places >= starts[:, None]) & (places < lengths[:, None])
    counted = counted[:, first + 1 :]
    return (losses.double() * counted).sum(1) / counted.sum(1)


def _ranked(
    examples: Sequence[TrainingExample],
    ahead: dict[int, float],
    behind: dict[int, float],
    epsilon: float,
) -> list[Blamed]:
    nan = math.nan
    found = []
    for e in examples:
        plus, minus = ahead.get(e.index, nan), behind.get(e.index, nan)
        push, error = (minus - plus) / (2 * epsilon), e.error
        if error is None and not math.isfinite(push):
            error = "its loss is not finite: take a smaller epsilon, or look at the example"
        found.append(Blamed(e, push if error is None else nan, (plus + minus) / 2, error))
    return sorted(found, key=lambda b: (b.error is not None, -b.push if b.error is None else 0.0))
