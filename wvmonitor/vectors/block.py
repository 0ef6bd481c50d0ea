"""The references of many parameters of one shape, measured together.

An accelerator is kept waiting by launches, and Python by thousands of small experts, not by
arithmetic. Dimension suffixes as in `stack.py`; G parameters lie in a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wvmonitor.vectors import functional
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.stack import (
    ReferenceStack,
    by_kind,
    check_layout,
    fill,
    owners,
    views,
)
from wvmonitor.vectors.update import LowRankUpdate, Update


@dataclass(frozen=True)
class ReferenceBlock:
    """The references of G parameters of one shape, touched by the same low-rank references.

    Attributes:
        count: number of references in the bank.
        lefts: (G, S, O) stacked left factors of each parameter.
        rights: (G, S, I) right factors, and (G, S, N) on the probes, if any.
        owner: (S,) which reference each rank belongs to.
        probes: (N, I) rows of each parameter's inputs; empty without.
        transposed: whether the parameters are stored as (in, out).
    """

    count: int
    lefts: Tensor
    rights: tuple[Tensor, ...]
    owner: Tensor
    probes: tuple[Tensor, ...]
    transposed: bool

    def __len__(self) -> int:
        return len(self.lefts)

    def stack(self, member: int) -> ReferenceStack:
        """The references of one of the parameters: views, no copies."""
        return ReferenceStack(
            self.count,
            self.lefts[member],
            tuple(r[member] for r in self.rights),
            self.owner,
            (),
            (),
            self.probes[member] if self.probes else None,
            self.transposed,
        )


class BlockBuilder:
    """Lays the low-rank updates of parameters of one shape side by side, one after another.

    An update is copied as it comes and can be let go at once, so that nothing is held twice. Memory
    for parameters that never come is not touched, and what is not touched takes no space.
    """

    def __init__(
        self,
        first: Mapping[int, Update],
        count: int,
        capacity: int,
        probe_NI: Tensor | None = None,
    ) -> None:
        """Make room.

        Args:
            first: one parameter's updates by index of the reference, in float32 or less. Those of
                the others must be of the same references, shape, layout and ranks.
            count: number of references in the bank.
            capacity: the most parameters that will come.
            probe_NI: rows of that parameter's inputs; None where they have no response.
        """
        low = by_kind(first)[0]
        some = next(iter(low.values()))
        self._count, self._transposed = count, next(iter(first.values())).transposed
        self._owner = owners(low, some.left.device)
        widths = [*some.shape, *([] if probe_NI is None else [len(probe_NI)])]
        shape = capacity, len(self._owner)
        self._left_GSO, *self._rights = (
            some.left.new_empty((*shape, width), dtype=torch.float32) for width in widths
        )
        self._probes: list[Tensor] = []
        self._members = 0

    def __len__(self) -> int:
        return self._members

    @property
    def full(self) -> bool:
        """Whether no more parameters fit in."""
        return self._members == len(self._left_GSO)

    def add(self, updates: Mapping[int, Update], probe_NI: Tensor | None = None) -> ReferenceStack:
        """Copy the updates of the next parameter; gives its references where they lie now."""
        left_SO, right_SI = self._left_GSO[self._members], self._rights[0][self._members]
        fill(left_SO, right_SI, by_kind(updates)[0])
        if probe_NI is not None:
            self._rights[1][self._members] = views(right_SI, probe_NI)[1]
            self._probes.append(probe_NI)
        self._members += 1
        return self.block().stack(self._members - 1)

    def block(self) -> ReferenceBlock:
        """The parameters that have come."""
        return ReferenceBlock(
            self._count,
            self._left_GSO[: self._members],
            tuple(right[: self._members] for right in self._rights),
            self._owner,
            tuple(self._probes),
            self._transposed,
        )


def block_products(
    updates: Sequence[LowRankUpdate],
    block: ReferenceBlock,
    start: int,
    earlier: Sequence[LowRankUpdate] | None = None,
) -> Tensor:
    """What `products` gives for each of several parameters that follow one another in a block.

    Args:
        updates: of the block's parameters `start`, `start` + 1, … All of one rank and dtype.
        block: the references.
        start: the first parameter.
        earlier: the updates h steps earlier, of one rank and dtype as well.

    Returns:
        (updates, geometries, count + 2) float64 on the updates' device. Nothing is synchronised.

    Raises:
        ShapeMismatchError: an update is stored as (in, out) where the references are not, or the
            other way round.
    """
    members = slice(start, start + len(updates))
    left, rights = _gathered(updates, block, members)
    shape = (len(updates), len(rights), block.count + 2)
    out = torch.zeros(shape, dtype=torch.float64, device=left.device)
    lefts_SR = functional.matmul(block.lefts[members], left)
    lefts_RR = functional.matmul(left.mT, left)
    lagged = None if earlier is None else _gathered(earlier, block, members)
    lefts_RE = None if lagged is None else functional.matmul(left.mT, lagged[0])
    for geometry, (theirs, ours) in enumerate(zip(block.rights, rights, strict=True)):
        rows = out[:, geometry]
        elements = lefts_SR * functional.matmul(theirs[members], ours.mT)
        rows.index_add_(1, block.owner, elements.sum(-1, dtype=torch.float64))
        rows[:, -2] = _sums64(lefts_RR * functional.matmul(ours, ours.mT))
        if lagged is not None and lefts_RE is not None:
            rows[:, -1] = _sums64(lefts_RE * functional.matmul(ours, lagged[1][geometry].mT))
    return out


def _sums64(values_GAB: Tensor) -> Tensor:
    return values_GAB.sum((-2, -1), dtype=torch.float64)


def _gathered(
    updates: Sequence[LowRankUpdate], block: ReferenceBlock, members: slice
) -> tuple[Tensor, list[Tensor]]:
    """Factors of several updates as (G, O, R) and, by geometry, (G, R, I) and (G, R, N)."""
    for update in updates:
        check_layout(update, block.transposed)
    turned = [updates_.as_linear(u) for u in updates]
    linear = [u for u in turned if isinstance(u, LowRankUpdate)]
    device, dtype = block.lefts.device, block.lefts.dtype
    left = _joined([u.left for u in linear]).to(device, dtype)
    right = _joined([u.right for u in linear]).to(device, dtype)
    if not block.probes:
        return left, [right]
    probes = block.probes[members]
    on_probe = [functional.matmul(r, p.to(dtype).mT) for r, p in zip(right, probes, strict=True)]
    return left, [right, _joined(on_probe)]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """(G, ...) of G tensors: a view of the only one, a copy of several."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))
