"""The references of many parameters of one shape, measured together.

An accelerator is kept waiting by launches, and Python by thousands of small experts, not by
arithmetic. Dimension suffixes as in `stack.py`; G parameters lie in a block.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wvmonitor.vectors import functional
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.stack import (
    ReferenceStack,
    by_kind,
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
        return self.lefts.shape[0]

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


class Scratch:
    """Memory for factors side by side, used again and again: fresh pages cost more than the copy.

    What it gave holds until it is asked for the same place again.
    """

    def __init__(self) -> None:
        self._held: dict[object, Tensor] = {}

    def tensor(self, place: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Uninitialised memory of a shape, on the device and in the precision of `like`."""
        key, size = (place, like.device, like.dtype), math.prod(shape)
        if key not in self._held or len(self._held[key]) < size:
            self._held.pop(key, None)  # never both at once
            self._held[key] = torch.empty(size, device=like.device, dtype=like.dtype)
        return self._held[key][:size].view(*shape)


def block_products(
    updates: Sequence[Sequence[LowRankUpdate]],
    block: ReferenceBlock,
    start: int,
    scratch: Scratch,
    earlier: Sequence[Sequence[LowRankUpdate]] | None = None,
) -> Tensor:
    """What `products` gives for each of several parameters that follow one another in a block.

    Several task vectors are measured at once: their ranks lie side by side, so that the references,
    which are larger than any cache, are read once for all of them.

    Args:
        updates: of the block's parameters `start`, `start` + 1, …: one of each task vector. All of
            one rank.
        block: the references.
        start: the first parameter.
        scratch: kept from call to call.
        earlier: the same h steps earlier, of one rank as well.

    Returns:
        (parameters, task vectors, geometries, count + 2) float64 on the updates' device. Nothing is
        synchronised.

    Raises:
        ShapeMismatchError: an update is stored as (in, out) where the references are not, or the
            other way round.
    """
    members = slice(start, start + len(updates))
    left, rights = _gathered(updates, block, members, scratch, "now")
    vectors = len(updates[0])
    shape = (len(updates), vectors, len(rights), block.count + 2)
    out = torch.zeros(shape, dtype=torch.float64, device=left.device)
    lefts_MS = _by_rank(left.mT, block.lefts[members])
    ours_NRO = _split(left.mT, vectors)
    lefts_RR = functional.matmul(ours_NRO, ours_NRO.mT)
    lagged = None if earlier is None else _gathered(earlier, block, members, scratch, "then")
    lefts_RE = (
        None if lagged is None else functional.matmul(ours_NRO, _split(lagged[0].mT, vectors).mT)
    )
    for geometry, (theirs, ours) in enumerate(zip(block.rights, rights, strict=True)):
        rows = out[:, :, geometry]
        elements_MS = lefts_MS * _by_rank(ours, theirs[members])
        per_rank = _split(elements_MS, vectors).sum(2, dtype=torch.float64)
        rows.index_add_(2, block.owner, per_rank)
        ours_NRI = _split(ours, vectors)
        rows[..., -2] = _sums64(lefts_RR * functional.matmul(ours_NRI, ours_NRI.mT))
        if lagged is not None and lefts_RE is not None:
            then = _split(lagged[1][geometry], vectors)
            rows[..., -1] = _sums64(lefts_RE * functional.matmul(ours_NRI, then.mT))
    return out


def _by_rank(ours_MI: Tensor, theirs_SI: Tensor) -> Tensor:
    """(..., M, S): the product of each rank with each; BLAS is faster with the fewer from the left.

    With thirty-two against five hundred by a tenth, with sixteen against four several times.
    """
    if ours_MI.shape[-2] <= theirs_SI.shape[-2]:
        return functional.matmul(ours_MI, theirs_SI.mT)
    return functional.matmul(theirs_SI, ours_MI.mT).mT


def _sums64(values: Tensor) -> Tensor:
    return values.sum((-2, -1), dtype=torch.float64)


def _split(factors_GMI: Tensor, vectors: int) -> Tensor:
    """(G, N, R, I): the M = N·R ranks by task vector."""
    members, ranks, width = factors_GMI.shape
    return factors_GMI.view(members, vectors, ranks // vectors, width)


def _gathered(
    updates: Sequence[Sequence[LowRankUpdate]],
    block: ReferenceBlock,
    members: slice,
    scratch: Scratch,
    when: str,
) -> tuple[Tensor, list[Tensor]]:
    """Factors side by side, M = N·R ranks: (G, O, M) and, by geometry, (G, M, I) and (G, M, N)."""
    for update in itertools.chain(*updates):
        updates_.check_layout(update, block.transposed)
    lefts = [[u.right.mT if block.transposed else u.left for u in row] for row in updates]
    rights = [[u.left.mT if block.transposed else u.right for u in row] for row in updates]
    left = _joined(lefts, block.lefts, -1, scratch, f"left {when}")
    right = _joined(rights, block.lefts, -2, scratch, f"right {when}")
    if not block.probes:
        return left, [right]
    probes = block.probes[members]
    on_probe = [functional.matmul(r, p.to(r.dtype).mT) for r, p in zip(right, probes, strict=True)]
    return left, [right, torch.stack(on_probe)]


def _joined(
    factors: Sequence[Sequence[Tensor]], like: Tensor, along: int, scratch: Scratch, place: str
) -> Tensor:
    """(G, ...) factors of G parameters, those of each side by side, as `like`: copied once."""
    first, rank = factors[0][0], factors[0][0].shape[along]
    if len(factors) == len(factors[0]) == 1:
        return first.to(like.device, like.dtype).unsqueeze(0)
    if like.device.type != "cpu":  # few launches rather than few copies
        rows = [m[0] if len(m) == 1 else torch.cat(list(m), along) for m in factors]
        return torch.stack(rows).to(like.device, like.dtype)
    shape = list(first.shape)
    shape[along] *= len(factors[0])
    made = scratch.tensor(place, (len(factors), *shape), like)
    if len(factors[0]) == 1 and first.dtype == like.dtype:
        return torch.stack([m[0] for m in factors], out=made)
    for row, member in zip(made, factors, strict=True):
        for number, factor in enumerate(member):
            row.narrow(along, number * rank, rank).copy_(factor)
    return made
