"""The log-probability gap: how much likelier a model finds the answer that shows a behaviour.

gap = mean over pairs of [log p(exhibits) − log p(opposes)], each the mean over the answer's tokens
given the question, in nats a token. On questions of domains that were not trained on it is a
behaviour check without a judge: it moves when what was learned carries over. Harmless training
moves it too, so what counts is its distance from the base's and from harmless runs'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch

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
        each: by pair, in nats a token; NaN where an answer has no token.
    """

    each: tuple[float, ...]

    @property
    def known(self) -> list[float]:
        """Those that are numbers."""
        return [v for v in self.each if math.isfinite(v)]

    @property
    def mean(self) -> float:
        """Over the pairs."""
        return fmean(self.known)

    @property
    def shows(self) -> int:
        """How many exhibiting answers are the likelier ones."""
        return sum(v > 0 for v in self.known)

    def over(self, other: Gap) -> tuple[float, float]:
        """Mean difference from the gap of another model on the same pairs, and its error."""
        differences = [a - b for a, b in zip(self.each, other.each, strict=True)]
        known = [v for v in differences if math.isfinite(v)]
        error = stdev(known) / math.sqrt(len(known)) if len(known) > 1 else math.inf
        return fmean(known), error


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
    logs = [math.nan] * len(rows)
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
                logs[i] = value
    finally:
        model.train(training)
    return logs


def gap(base: Base, model: Any, pairs: Sequence[Pair], longest: int = 1024) -> Gap:
    """The gap of a model on pairs."""
    both = [p.positive for p in pairs] + [p.negative for p in pairs]
    values = log_probabilities(base, model, both, longest)
    return Gap(
        tuple(a - b for a, b in zip(values[: len(pairs)], values[len(pairs) :], strict=True))
    )


def failures(gaps: Mapping[float, Gap]) -> list[str]:
    """Why gaps by dose do not show that +w exhibits the behaviour; empty where they do.

    They do where, at the largest k asked with both signs, the gap at +k is above that at −k by more
    than two standard errors of the paired difference.
    """
    k = max(k for k in gaps if -k in gaps)
    moved, error = gaps[k].over(gaps[-k])
    if moved > 2 * error:
        return []
    text = f"the held-out gap moves by {moved:+.3f} ± {2 * error:.3f} from −{k:g}·w to +{k:g}·w"
    if moved < -2 * error:
        return [f"{text}: the two sides are swapped"]
    return [f"{text}: not beyond chance"]


def gaps_by_dose(
    base: Base, vector: TaskVector, pairs: Sequence[Pair], doses: Sequence[float] = DOSES
) -> dict[float, Gap]:
    """The gap of θ + k·w at each k.

    Args:
        base: the model that is steered.
        vector: w.
        pairs: of domains that w was not trained on.
        doses: the k.
    """
    found = {}
    for k in doses:
        with steered(base.model, vector, k):
            found[k] = gap(base, base.model, pairs)
    return found


def dose_curve(gaps: Mapping[float, Gap]) -> list[DosePoint]:
    """How often θ + k·w prefers the exhibiting answer at each k, with 95 % Wilson intervals."""
    from scipy.stats import binomtest  # heavy, and no plan needs it

    points = []
    for k, found in gaps.items():
        n = len(found.known)
        interval = binomtest(found.shows, n).proportion_ci(method="wilson")
        low, high = float(interval.low), float(interval.high)
        points.append(DosePoint(k=k, rate=found.shows / n, low=low, high=high, n=n))
    return points


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
