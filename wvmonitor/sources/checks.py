"""What is checked of every tensor before it counts: that it is finite, and of its base's shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wvmonitor.errors import NonFiniteError, ShapeMismatchError
from wvmonitor.files.storage import shown
from wvmonitor.vectors.coverage import component_of


def check_finite(tensor: Tensor, name: str, where: str) -> Tensor:
    """The tensor itself.

    Raises:
        NonFiniteError: it holds NaN or infinity.
    """
    if not is_finite(tensor):
        raise NonFiniteError(
            f"{shown(name)} of {where} holds NaN or infinity: the run diverged or the file is "
            "damaged; take an earlier checkpoint"
        )
    return tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    # torch sums no 8 bits
    values = tensor.to(torch.float32) if tensor.dtype.itemsize == 1 else tensor
    # the sum finds a NaN or infinity in one pass, and may only have overflowed
    return math.isfinite(values.sum()) or bool(torch.isfinite(values).all())


def compare_shapes(name: str, start: Sequence[int], now: Sequence[int], where: str) -> list[str]:
    """What to say of a parameter's two shapes: nothing, or that its vocabulary was resized.

    Args:
        name: the parameter.
        start: its shape in the base.
        now: its shape after training.
        where: how messages name what was trained.

    Raises:
        ShapeMismatchError: the shapes differ, and not in a vocabulary's rows only.
    """
    if tuple(start) == tuple(now):
        return []
    vocabulary = component_of(name, start) in ("embeddings", "head")
    if vocabulary and len(start) == len(now) > 0 and tuple(start[1:]) == tuple(now[1:]):
        return [
            f"{name} has {now[0]} rows where the base has {start[0]}: compared on the "
            f"{min(now[0], start[0])} they share"
        ]
    raise ShapeMismatchError(
        f"{shown(name)} has shape {tuple(now)} in {where} and {tuple(start)} in the base: check "
        "that this is the model that training started from"
    )
