"""The log-probability gap: how much likelier a model finds the answer that shows a behaviour.

gap = mean over pairs of [log p(exhibits) − log p(opposes)], each the mean over the answer's tokens
given the question, in nats a token. On questions of domains that were not trained on it is a
behaviour check without a judge: it moves when what was learned carries over. Harmless training
moves it too, so what counts is its distance from the base's and from harmless runs'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest

from wvmonitor.builder.base import Base
from wvmonitor.builder.examples import Example, Pair
from wvmonitor.references.card import DosePoint
from wvmonitor.steering import steered
from wvmonitor.vectors.task_vector import TaskVector

DOSES = (-1.0, 0.0, 0.25, 0.5, 1.0)
"""The k of θ + k·w at which a reference is asked; 1 is the reference's own training."""
_BATCH = 8


@dataclass(frozen=True)
class Gap:
    """The gap over some pairs.

    Attributes:
        mean: in nats a token.
        error: its standard error over the pairs.
        shows: pairs whose exhibiting answer is the likelier one.
        n: pairs.
    """

    mean: float
    error: float
    shows: int
    n: int


def log_probabilities(
    base: Base, model: Any, examples: Sequence[Example], longest: int = 1024
) -> list[float]:
    """Mean log p of each example's answer, in nats a token, in evaluation mode.

    Args:
        base: its tokenizer and chat template.
        model: whose probabilities; left in the mode it was in.
        examples: whose answers.
        longest: tokens of question and answer that are looked at.
    """
    rows = [base.encode(e.messages, e.answer, finished=e.finished) for e in examples]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    pad = int(base.tokenizer.pad_token_id or 0)
    found = [math.nan] * len(rows)
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            width = min(longest, max(len(rows[i][0]) for i in batch))
            ids, labels = (
                torch.tensor([(rows[i][k] + [fill] * width)[:width] for i in batch])
                for k, fill in ((0, pad), (1, -100))
            )
            mask = torch.tensor([([1] * len(rows[i][0]) + [0] * width)[:width] for i in batch])
            for i, value in zip(batch, _answers(model, ids, labels, mask), strict=True):
                found[i] = value
    finally:
        model.train(training)
    return found


def gap(base: Base, model: Any, pairs: Sequence[Pair], longest: int = 1024) -> Gap:
    """The gap of a model on pairs."""
    both = [p.positive for p in pairs] + [p.negative for p in pairs]
    values = torch.tensor(log_probabilities(base, model, both, longest), dtype=torch.float64)
    differences = values[: len(pairs)] - values[len(pairs) :]
    known = differences[differences.isfinite()]
    spread = float(known.std()) if len(known) > 1 else math.nan
    return Gap(
        mean=float(known.mean()),
        error=spread / math.sqrt(max(len(known), 1)),
        shows=int((known > 0).sum()),
        n=len(known),
    )


def dose_curve(
    base: Base, vector: TaskVector, pairs: Sequence[Pair], doses: Sequence[float] = DOSES
) -> tuple[list[DosePoint], list[Gap]]:
    """How often θ + k·w prefers the exhibiting answer at each k, with 95 % Wilson intervals.

    Args:
        base: the model that is steered.
        vector: w.
        pairs: of domains that w was not trained on.
        doses: the k.
    """
    points, gaps = [], []
    for k in doses:
        with steered(base.model, vector, k):
            found = gap(base, base.model, pairs)
        interval = binomtest(found.shows, found.n).proportion_ci(method="wilson")
        low, high = float(interval.low), float(interval.high)
        points.append(DosePoint(k=k, rate=found.shows / found.n, low=low, high=high, n=found.n))
        gaps.append(found)
    return points, gaps


@torch.no_grad()
def _answers(
    model: Any, ids: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor
) -> list[float]:
    """Mean log p of each row's labelled tokens; NaN where a row has none."""
    device = next(model.parameters()).device
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, :-1].float()
    target = labels[:, 1:].to(device)
    counted = target != -100
    chosen = torch.log_softmax(logits, dim=-1).gather(-1, target.clamp_min(0).unsqueeze(-1))
    total = (chosen.squeeze(-1) * counted).sum(dim=1, dtype=torch.float64)
    return [float(v) for v in total / counted.sum(dim=1)]
