"""Which training examples push towards a behaviour, by two forward passes and no gradients.

A step on an example moves the weights by −η·∇L, so how much it pushes along w is −⟨∇L, w⟩, which is
the slope of its loss along w. The symmetric difference

    push = [L(θ − ε·w) − L(θ + ε·w)] / 2ε

gives it to second order in ε, also before any training. All examples are read at θ + ε·w, then all
at θ − ε·w, so the weights are moved twice however many there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wvmonitor.errors import InputError, NonFiniteError
from wvmonitor.files.documents import json_line
from wvmonitor.steering.examples import TrainingExample
from wvmonitor.steering.weights import Steering, label, steered
from wvmonitor.vectors import functional

EPSILON = 0.1
"""The step along w, in units of w. On the bundled model anything from 0.02 to 0.3 ranks alike."""

BATCH_TOKENS = 2048
"""Tokens in a batch, padding included; the logits of those in answers are in memory at once."""

Per = Literal["token", "example"]
"""What pushes are counted by: an answer's mean token, or the whole answer. A trainer that averages
a batch over its tokens, as transformers' and TRL's do, weighs an example by how many it has."""

Progress = Callable[[int, int], None]
"""Told how many examples were read of how many, both passes counted."""


@dataclass(frozen=True)
class Blamed:
    """What one example does.

    Attributes:
        example: the example.
        push: nats of loss that one unit of w spares, by answer token or over the whole answer:
            positive pushes towards w. NaN where it could not be told.
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
    per: Per = "token",
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> list[Blamed]:
    """Rank examples by how much each pushes towards w; those that cannot be judged come last.

    The model is in evaluation mode meanwhile; its weights and mode are afterwards as they were.

    Args:
        model: a causal language model: the base, or a fine-tune of it, on any device.
        examples: from `read_examples`.
        reference: the direction w.
        epsilon: how far to step to either side, in units of w.
        per: what a push is counted by. By token an answer of a few tokens swings most.
        batch_tokens: the most tokens in a batch, padding included.
        progress: told after each batch how far it is.

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

    def read(examples_read: int) -> None:
        if progress is not None:
            progress(examples_read, 2 * len(usable))

    read(0)
    training = model.training
    model.eval()
    try:
        with steered(model, reference, epsilon):
            ahead = mean_losses(model, batches, read)
        with steered(model, reference, -epsilon):
            behind = mean_losses(model, batches, lambda done: read(len(usable) + done))
    finally:
        model.train(training)
    if not any(math.isfinite(x) for x in ahead.values()):
        raise NonFiniteError(
            f"no loss is finite at ε = {epsilon} along {label(reference)}: take a smaller epsilon"
        )
    return _ranked(examples, ahead, behind, epsilon, per)


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


def mean_losses(
    model: nn.Module,
    batches: Sequence[Sequence[TrainingExample]],
    read: Callable[[int], None] = lambda _: None,
) -> dict[int, float]:
    """Mean loss per answer token of every example, by its index: one evaluation pass.

    Args:
        model: in evaluation mode.
        batches: from `in_batches`.
        read: told after each batch how many examples were read.
    """
    device = next(model.parameters()).device
    waiting: list[tuple[Sequence[TrainingExample], Tensor]] = []
    done = 0
    for batch in batches:
        waiting.append((batch, _batch_losses(model, batch, device)))
        done += len(batch)
        read(done)
    found: dict[int, float] = {}
    for batch, losses in waiting:  # one wait for the device at the end, not one a batch
        found.update(zip((e.index for e in batch), losses.tolist(), strict=True))
    return found


def _batch_losses(model: nn.Module, batch: Sequence[TrainingExample], device: Any) -> Tensor:
    """(examples,) mean loss per answer token."""
    width = len(batch[0].ids)
    # Padded on the right: real tokens never attend to what follows them.
    ids = torch.tensor([[*e.ids] + [0] * (width - len(e.ids)) for e in batch])
    lengths = torch.tensor([len(e.ids) for e in batch])
    starts = torch.tensor([e.start for e in batch])
    places = torch.arange(width)
    attended = (places < lengths[:, None]).long()
    counted = (places >= starts[:, None]) & (places < lengths[:, None])
    rows, answered = counted.nonzero(as_tuple=True)  # on the host, so that no device is waited for
    predicted = ids[rows, answered].to(device)
    rows, before = rows.to(device), (answered - 1).to(device)
    with _head_at(model, rows, before, ids.shape):
        logits = model(
            input_ids=ids.to(device), attention_mask=attended.to(device), use_cache=False
        ).logits
    logits = logits[rows, before] if logits.shape[:2] == ids.shape else logits[0]
    losses = torch.nn.functional.cross_entropy(
        logits.to(functional.working_dtype(logits)), predicted, reduction="none"
    )
    by_example = torch.zeros(ids.shape, dtype=torch.float64, device=device)
    by_example[rows, before] = losses.double()
    return by_example.sum(1) / (lengths - starts).to(device)


@contextmanager
def _head_at(model: nn.Module, rows: Tensor, places: Tensor, shape: torch.Size) -> Iterator[None]:
    """Logits of these places alone, (1, places, vocabulary): of a prompt's tokens nobody asks.

    A model whose head is not where transformers says, or sees something else than one state for
    each token, gives all its logits as ever.
    """

    def chosen(_head: nn.Module, states: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if states and isinstance(states[0], Tensor) and states[0].shape[:2] == shape:
            return (states[0][rows, places][None], *states[1:])
        return None

    head_of = getattr(model, "get_output_embeddings", None)
    head = head_of() if callable(head_of) else None
    if not isinstance(head, nn.Module):
        yield
        return
    handle = head.register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        handle.remove()


def _ranked(
    examples: Sequence[TrainingExample],
    ahead: dict[int, float],
    behind: dict[int, float],
    epsilon: float,
    per: Per,
) -> list[Blamed]:
    nan = math.nan
    found = []
    for e in examples:
        plus, minus = ahead.get(e.index, nan), behind.get(e.index, nan)
        push, error = (minus - plus) / (2 * epsilon), e.error
        push *= e.tokens if per == "example" else 1
        if error is None and not math.isfinite(push):
            error = "its loss is not finite: take a smaller epsilon, or look at the example"
        found.append(Blamed(e, push if error is None else nan, (plus + minus) / 2, error))
    return sorted(found, key=lambda b: (b.error is not None, -b.push if b.error is None else 0.0))
