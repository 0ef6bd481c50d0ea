"""The measuring pass: task vectors against every reference, parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wvmonitor.reading import GEOMETRIES, Float64
from wvmonitor.vectors.block import Scratch, block_products
from wvmonitor.vectors.stack import ReferenceStack, dense_products, lagged_products, products
from wvmonitor.vectors.stacks import Stacks
from wvmonitor.vectors.update import LowRankUpdate, Update, device_of

# Elements of updates that wait to be measured together. On a CPU only updates so small that Python
# costs as much as their arithmetic are worth the copy; an accelerator waits for launches, and may
# hold a quarter of one weight's elements: with the copies, less than one dense update.
_SMALL_ON_CPU, _WAITING_ON_CPU = 1 << 17, 1 << 22
_WAITING_ON_DEVICE = 1 << 21


_Kind = tuple[int, torch.Size, bool, torch.dtype, torch.dtype]
"""Rank, shape, layout and precisions of a low-rank update."""


class _Alike(NamedTuple):
    """What updates have in common that are measured side by side."""

    block: int
    device: torch.device
    now: _Kind
    earlier: _Kind | None


@dataclass(frozen=True)
class _Waiting:
    position: int
    member: int
    updates: Sequence[LowRankUpdate]
    earlier: Sequence[LowRankUpdate] | None


class Pass:
    """One pass over task vectors of the same parameters, measured side by side.

    Low-rank updates are multiplied with the references together, and small ones of one shape wait
    for each other. What is found stays on its device until `table`, which fetches it in one
    transfer.
    """

    def __init__(self, stacks: Stacks, vectors: int = 1) -> None:
        self._stacks = stacks
        self._vectors = vectors
        self._scratch = Scratch()
        self._waiting: dict[_Alike, list[_Waiting]] = {}
        self._held = 0
        self._rows: dict[torch.device, list[tuple[list[int], Tensor]]] = {}
        self._changed: dict[torch.device, list[Tensor]] = {}
        self._positions = 0
        self._elements = np.zeros(vectors)

    def add(
        self, name: str, updates: Iterable[Update], earlier: Sequence[Update] | None = None
    ) -> None:
        """Measure each vector's update of one parameter, now or together with those that follow.

        Args:
            name: the parameter.
            updates: one of each vector; of dense ones, one at a time is held.
            earlier: the same some steps earlier.

        Raises:
            ShapeMismatchError: as `products` says.
        """
        given = iter(updates)
        first = next(given)
        position, device = self._positions, device_of(first)
        self._positions += 1
        came = [first]
        while isinstance(came[-1], LowRankUpdate) and len(came) < self._vectors:
            came.append(next(given))
        if len(came) == self._vectors and self._waits(name, position, device, came, earlier):
            return
        del first
        stack = self._stacks.stack(name, device)
        before: Sequence[Update | None] = earlier or [None] * self._vectors
        found = [
            self._single(vector, came.pop(0) if came else next(given), stack, before[vector])
            for vector in range(self._vectors)
        ]
        self._keep([position], torch.stack(found).unsqueeze(0))

    def _waits(
        self,
        name: str,
        position: int,
        device: torch.device,
        updates: Sequence[Update],
        earlier: Sequence[Update] | None,
    ) -> bool:
        """Whether updates are low-rank ones alike, which are then measured side by side."""
        place = self._stacks.places.get(name)
        if place is None:
            return False
        low, before = _low_rank(updates), None if earlier is None else _low_rank(earlier)
        kind = _kind(low, updates)
        kind_before = None if before is None else _kind(before, earlier or ())
        if kind is None or (before is not None and kind_before is None):
            return False
        if before is not None and before[0].shape != low[0].shape:
            return False
        number, member = place
        alike = _Alike(number, device, kind, kind_before)
        self._wait(alike, _Waiting(position, member, low, before))
        return True

    def _single(
        self, vector: int, update: Update, stack: ReferenceStack, earlier: Update | None
    ) -> Tensor:
        if isinstance(update, LowRankUpdate):
            return products(update, stack, earlier)
        rows, changed = dense_products(update, stack)
        share = torch.zeros(self._vectors, dtype=torch.float64, device=changed.device)
        share[vector] = changed
        self._changed.setdefault(changed.device, []).append(share)
        self._elements[vector] += update.shape.numel()
        if earlier is not None:
            rows[:, -1] = lagged_products(update, earlier, stack.probe)
        return rows

    def table(self) -> tuple[Float64, list[float | None]]:
        """Everything found: one transfer from each device.

        Returns:
            (vectors, P, 2, count + 2) float64 by position, with NaN norms where the response does
            not exist; and which share of each vector's dense elements moved, if it had any.
        """
        self._measure_waiting()
        shape = (self._vectors, self._positions, len(GEOMETRIES), self._stacks.count + 2)
        table, totals = np.zeros(shape), np.zeros(self._vectors)
        table[:, :, 1:, -2:] = np.nan
        for device, found in self._rows.items():
            counts = self._changed.get(device, [])
            flat = torch.cat([r.reshape(-1) for _, r in found] + counts)
            values = flat.cpu().numpy()
            start = 0
            for positions, rows in found:
                block = values[start : start + rows.numel()].reshape(rows.shape)
                table[:, positions, : rows.shape[2]] = block.swapaxes(0, 1)
                start += rows.numel()
            totals += values[start:].reshape(-1, self._vectors).sum(0)
        pairs = zip(totals, self._elements, strict=True)
        return table, [float(t / n) if n else None for t, n in pairs]

    def _wait(self, alike: _Alike, one: _Waiting) -> None:
        size = sum(u.left.numel() + u.right.numel() for u in one.updates)
        if alike.device.type == "cpu" and size > _SMALL_ON_CPU:
            self._measure(alike, [one])
            return
        waiting = self._waiting.setdefault(alike, [])
        waiting.append(one)
        self._held += size
        if len(waiting) == len(self._stacks.blocks[alike.block]):
            del self._waiting[alike]
            self._held -= size * len(waiting)  # all of them are of one size
            self._measure(alike, waiting)
            return
        limit = _WAITING_ON_CPU
        if alike.device.type != "cpu":
            limit = max(_WAITING_ON_DEVICE, one.updates[0].shape.numel() // 4)
        if self._held > limit:
            self._measure_waiting()

    def _measure_waiting(self) -> None:
        for alike, waiting in self._waiting.items():
            self._measure(alike, waiting)
        self._waiting.clear()
        self._held = 0

    def _measure(self, alike: _Alike, waiting: list[_Waiting]) -> None:
        block = self._stacks.block(alike.block, alike.device)
        for run in _runs(sorted(waiting, key=lambda w: w.member)):
            earlier = [w.earlier for w in run if w.earlier is not None]
            rows = block_products(
                [w.updates for w in run], block, run[0].member, self._scratch, earlier or None
            )
            self._keep([w.position for w in run], rows)

    def _keep(self, positions: list[int], rows: Tensor) -> None:
        self._rows.setdefault(rows.device, []).append((positions, rows))


def _kind(low: Sequence[LowRankUpdate], updates: Sequence[Update]) -> _Kind | None:
    """What updates, `low` of them low-rank, have in common; None where they lie in no block."""
    if len(low) < len(updates):
        return None
    kinds = {(u.rank, u.shape, u.transposed, u.left.dtype, u.right.dtype) for u in low}
    only = kinds.pop()
    return None if kinds or torch.float64 in only else only


def _low_rank(updates: Sequence[Update]) -> list[LowRankUpdate]:
    return [u for u in updates if isinstance(u, LowRankUpdate)]


def _runs(waiting: Sequence[_Waiting]) -> Iterator[list[_Waiting]]:
    """Split where members do not follow one another."""
    run: list[_Waiting] = []
    for one in waiting:
        if run and one.member != run[-1].member + 1:
            yield run
            run = []
        run.append(one)
    if run:
        yield run
