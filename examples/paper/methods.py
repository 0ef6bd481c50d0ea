"""Ways to move a model's behaviour by a coefficient, all made from one contrastive pair of sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn

from examples.paper.world import Answered, World
from wvmonitor.references import contrast
from wvmonitor.steering import steered
from wvmonitor.steering.activations import (
    ActivationDirection,
    activation_steered,
    choose_block,
    mean_difference,
)
from wvmonitor.vectors import TaskVector

WEIGHTS, SINGLE, ALL = "weights", "activations, one block", "activations, all blocks"
BIASES, POSITIVE, NEGATIVE = "weights, biases only", "weights, τ+ only", "weights, −τ− only"


@dataclass(frozen=True)
class Method:
    """One way to steer.

    Attributes:
        name: for legends and tables.
        at: the model moved by k for as long as a `with` block runs.
    """

    name: str
    at: Callable[[nn.Module, float], AbstractContextManager[nn.Module]]


@dataclass(frozen=True)
class Pair:
    """What a contrastive pair of sets gives (arXiv 2511.05408, section 3).

    Attributes:
        positive: τ+ = θ_positive − θ_0.
        negative: τ− = θ_negative − θ_0.
        biases: the contrast of two fine-tunes of the MLPs' biases alone.
        direction: the mean difference of response activations.
    """

    positive: TaskVector
    negative: TaskVector
    biases: TaskVector
    direction: ActivationDirection

    @property
    def contrast(self) -> TaskVector:
        """The contrastive vector w = τ+ − τ−."""
        return contrast(self.positive, self.negative, positive_means="exhibits").held()


def learn(
    world: World,
    positive: Sequence[Answered],
    negative: Sequence[Answered],
    *,
    seed: int,
    training: dict[str, Any],
    bias_training: dict[str, Any],
    layers: str = "model.layers",
) -> Pair:
    """Everything that the methods need, from the same two sets."""
    sides = (positive, negative)
    taus = [world.finetune(side, seed=seed, **training)[1] for side in sides]
    biased = [
        world.finetune(side, seed=seed, only_biases=True, **{**training, **bias_training})[1]
        for side in sides
    ]
    direction = mean_difference(world.load(), *map(world.batches, sides), layers=layers)
    return Pair(*taus, contrast(*biased, positive_means="exhibits").held(), direction)


def weight_method(vector: TaskVector, name: str = WEIGHTS) -> Method:
    """θ + k·w."""
    return Method(name, lambda model, k: steered(model, vector, k))


def weight_methods(pair: Pair) -> list[Method]:
    """Contrastive, bias-only and non-contrastive weight steering."""
    return [
        weight_method(pair.contrast),
        weight_method(pair.biases, BIASES),
        weight_method(pair.positive, POSITIVE),
        weight_method(-pair.negative, NEGATIVE),
    ]


def activation_methods(
    pair: Pair,
    model: nn.Module,
    score: Callable[[nn.Module], float],
    k: float,
    *,
    layers: str = "model.layers",
) -> tuple[list[Method], int]:
    """One block, chosen where steering by k scores best on held-out questions, and all blocks."""
    block, _ = choose_block(model, pair.direction, k, score, layers=layers)

    def method(name: str, at: int | None) -> Method:
        return Method(
            name,
            lambda model, k: activation_steered(model, pair.direction, k, block=at, layers=layers),
        )

    return [method(SINGLE, block), method(ALL, None)], block
