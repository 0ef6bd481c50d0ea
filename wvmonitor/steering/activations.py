"""Activation steering: the baseline that weight steering is held against.

A behaviour's direction a^l is the mean, over responses, of what block l puts out on answers that
show the behaviour, minus the same on answers that show its opposite. Steering adds k·a^l to what
block l puts out (arXiv 2511.05408, section 3, after the persona vectors of arXiv 2507.21509). The
all-layers variant adds k·(a^l − a^{l−1}) at every block, so that the additions telescope to k·a^l.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wvmonitor.errors import InputError, NonFiniteError, ShapeMismatchError
from wvmonitor.steering.live_parameters import without_wrappers

Batches = Iterable[tuple[Mapping[str, Tensor], Tensor]]
"""(inputs of the model, mask): the mask is (batch, length), true on the tokens of the response."""

_USUAL = "model.layers"


@dataclass(frozen=True)
class ActivationDirection:
    """The mean difference of response activations along a model's depth.

    Attributes:
        means: (blocks + 1, hidden), float32. Row 0 is at the first block's input, row l + 1 after
            block l, counted from 0.
    """

    means: Tensor

    @property
    def blocks(self) -> int:
        """How many blocks the model has."""
        return len(self.means) - 1

    def after(self, block: int) -> Tensor:
        """a^l: (hidden,), for one block counted from 0."""
        return self.means[block + 1]

    def increments(self) -> Tensor:
        """a^l − a^{l−1} for every block: (blocks, hidden)."""
        return self.means[1:] - self.means[:-1]


@torch.no_grad()
def mean_difference(
    model: nn.Module, positive: Batches, negative: Batches, *, layers: str = _USUAL
) -> ActivationDirection:
    """The direction of a behaviour: mean response activations, positive − negative.

    Each response counts once, whatever its length: the mean over its tokens is taken first.

    Args:
        model: called as `model(**inputs)`, in evaluation mode.
        positive: responses that show the behaviour.
        negative: responses that show its opposite.
        layers: where the model keeps its list of blocks, for instance `transformer.h`.

    Raises:
        InputError: the model has no such list of blocks, or a side has no responses.
    """
    blocks = blocks_of(model, layers)
    means = [_mean_activations(model, blocks, b) for b in (positive, negative)]
    return ActivationDirection((means[0] - means[1]).to(torch.float32))


@contextmanager
def activation_steered(
    model: nn.Module,
    direction: ActivationDirection,
    k: float,
    *,
    block: int | None,
    positions: Literal["all", "last"] = "all",
    layers: str = _USUAL,
) -> Iterator[nn.Module]:
    """Add to the model's activations while the block runs; hooks only, no weight is touched.

    Args:
        model: the live model.
        direction: what to add.
        k: how much of it; negative steers away.
        block: add k·a^l after this block, counted from 0; None adds k·(a^l − a^{l−1}) after every
            block.
        positions: every position, or only the last: with a cache the end of the prompt and each
            token that is generated.
        layers: where the model keeps its list of blocks.

    Yields:
        The model itself.

    Raises:
        NonFiniteError: k is not finite.
        InputError: there is no such block, or no such list of blocks.
        ShapeMismatchError: the direction is of another depth than the model, or of another width.
    """
    if not math.isfinite(k):
        raise NonFiniteError(f"k must be finite, got {k}")
    modules = blocks_of(model, layers)
    if len(modules) != direction.blocks:
        raise ShapeMismatchError(
            f"the direction is of a model with {direction.blocks} blocks, this one has "
            f"{len(modules)}: compute it with mean_difference on this model"
        )
    added = direction.increments() if block is None else direction.means[1:]
    with ExitStack() as hooks:
        for at in range(len(modules)) if block is None else [_checked(block, modules)]:
            hook = _adding(k * added[at], positions)
            hooks.callback(modules[at].register_forward_hook(hook).remove)
        yield model


def choose_block(
    model: nn.Module,
    direction: ActivationDirection,
    k: float,
    score: Callable[[nn.Module], float],
    *,
    positions: Literal["all", "last"] = "all",
    layers: str = _USUAL,
) -> tuple[int, list[float]]:
    """The single block where steering by k does best on held-out questions (section 4.1.2).

    Args:
        model: the live model.
        direction: what to add.
        k: how much of it, the same at every block.
        score: how well a model does, the more the better, on questions that the evaluation does
            not use.
        positions: as for `activation_steered`.
        layers: as for `activation_steered`.

    Returns:
        The first of the best blocks, and the score of each.

    Raises:
        WVMonitorError: as `activation_steered` says.
    """
    scores = []
    for block in range(direction.blocks):
        with activation_steered(
            model, direction, k, block=block, positions=positions, layers=layers
        ):
            scores.append(float(score(model)))
    return max(range(len(scores)), key=scores.__getitem__), scores


def blocks_of(model: nn.Module, layers: str = _USUAL) -> Sequence[nn.Module]:
    """The decoder's blocks in order, under whatever wraps the model.

    Raises:
        InputError: there is no such list.
    """
    base = without_wrappers(model)
    try:
        blocks = base.get_submodule(layers)
    except AttributeError:
        blocks = None
    if isinstance(blocks, nn.ModuleList) and len(blocks):
        return list(blocks)
    lists = [n for n, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    there = f" (it has {', '.join(lists[:3])})" if lists else ""
    raise InputError(
        f"the model has no list of blocks at {layers!r}{there}: say where with layers="
    )


def _checked(block: int, modules: Sequence[nn.Module]) -> int:
    if not 0 <= block < len(modules):
        raise InputError(f"there is no block {block}: the model has {len(modules)}, counted from 0")
    return block


def _mean_activations(model: nn.Module, blocks: Sequence[nn.Module], batches: Batches) -> Tensor:
    """(blocks + 1, hidden) in float64: the mean over responses of the mean over their tokens."""
    width, count = len(blocks) + 1, 0
    total: Tensor | None = None
    seen: list[Tensor | None] = [None] * width

    def entering(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[0] = args[0] if args else kwargs["hidden_states"]

    def leaving(row: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            seen[row] = output if isinstance(output, Tensor) else output[0]

        return hook

    handles = [blocks[0].register_forward_pre_hook(entering, with_kwargs=True)]
    handles += [b.register_forward_hook(leaving(i + 1)) for i, b in enumerate(blocks)]
    training = [m for m in model.modules() if m.training]
    model.eval()  # dropout is no part of the activations
    try:
        for inputs, counted in batches:
            model(**inputs)
            vectors = torch.stack([x.detach().double() for x in seen if x is not None])
            mask = counted.to(vectors.device, torch.float64)
            lengths = mask.sum(1)
            if not bool((lengths > 0).all()):
                raise InputError("a response has no tokens: check the masks")
            means = torch.einsum("rbth,bt->rbh", vectors, mask) / lengths[:, None]
            total = means.sum(1) if total is None else total + means.sum(1)
            count += len(lengths)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    if total is None:
        raise InputError("there are no responses to take the mean of: give at least one batch")
    return total / count


def _adding(vector: Tensor, positions: str) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden: Tensor = output if isinstance(output, Tensor) else output[0]
        if hidden.shape[-1] != len(vector):
            raise ShapeMismatchError(
                f"the direction has width {len(vector)}, the model's activations have "
                f"{hidden.shape[-1]}: compute it with mean_difference on this model"
            )
        step = vector.to(hidden.device, hidden.dtype)
        if positions == "all":
            moved = hidden + step
        else:
            moved = torch.cat([hidden[..., :-1, :], hidden[..., -1:, :] + step], dim=-2)
        return moved if isinstance(output, Tensor) else (moved, *output[1:])

    return hook
