"""Directions to hold a reference against: as long as it, and of nothing."""

from __future__ import annotations

import torch

from wvmonitor.vectors import LowRankUpdate, TaskVector
from wvmonitor.vectors.task_vector import Origin


def random_like(vector: TaskVector, seed: int) -> TaskVector:
    """A random direction with the norm and the rank of each of a vector's matrices."""
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for parameter, update in vector.updates():
        size = float(TaskVector.of({parameter: update}).norm())
        assert isinstance(update, LowRankUpdate)
        left = torch.randn(update.left.shape, generator=generator)
        right = torch.randn(update.right.shape, generator=generator)
        made = LowRankUpdate(left, right, update.transposed)
        now = float(TaskVector.of({parameter: made}).norm())
        updates[parameter] = LowRankUpdate(left * (size / now), right, update.transposed)
    return TaskVector.of(updates, Origin(source="random"))
