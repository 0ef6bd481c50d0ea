"""The references of one parameter, stacked so that one pair of products serves them all.

Dimension suffixes: O outputs, I inputs, R rank of the measured update, S the ranks of all low-rank
references laid side by side, N rows of the probe; `...` stands for leading batch dimensions.
Everything here is in (out, in) orientation: transposed parameters are turned round on the way in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wvmonitor.errors import ShapeMismatchError
from wvmonitor.vectors import functional
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.update import DenseUpdate, LowRankUpdate, Update


@dataclass(frozen=True)
class ReferenceStack:
    """All references' updates of one parameter.

    Attributes:
        count: number of references in the bank, whether they touch this parameter or not.
        lefts: (..., S, O) left factors of the low-rank references, or None. They lie by rank, as
            the right ones do: the product with an update's own factor runs along its memory.
        rights: their right factors by geometry: (..., S, I), and (S, N) on the probe, if any.
        owner: (S,) which reference each rank belongs to.
        dense: references held densely: index, and the update by geometry.
        probe: (N, I) rows of this parameter's inputs, or None.
        transposed: whether the references' parameter is stored as (in, out); None where no
            reference touches it, or where it is a vector.
    """

    count: int
    lefts: Tensor | None
    rights: tuple[Tensor, ...]
    owner: Tensor
    dense: tuple[tuple[int, tuple[Tensor, ...]], ...]
    probe: Tensor | None
    transposed: bool | None = None

    @property
    def geometries(self) -> int:
        """2 where the response exists beside Frobenius, else 1."""
        return 1 if self.probe is None else 2

    @property
    def touched(self) -> bool:
        """Whether any reference changes this parameter."""
        return self.lefts is not None or bool(self.dense)


def stack_references(
    updates: Mapping[int, Update], count: int, probe_NI: Tensor | None
) -> ReferenceStack:
    """Lay the updates of one parameter side by side.

    Args:
        updates: by index of the reference; references that leave the parameter alone are absent.
        count: number of references in the bank.
        probe_NI: (N, I) rows of the parameter's inputs, or None where it has no response.

    Raises:
        ShapeMismatchError: the references disagree on the parameter's shape or layout.
    """
    low, dense = _by_kind(updates)
    first = next(iter(updates.values()), None)
    transposed = None if first is None or len(first.shape) < 2 else first.transposed
    held = tuple((i, _views(u.delta, probe_NI)) for i, u in dense.items())
    if not low:
        owner = torch.zeros(0, dtype=torch.long)
        return ReferenceStack(count, None, (), owner, held, probe_NI, transposed)
    some = next(iter(low.values()))
    owner = _owners(low, some.left.device)
    dtype = functional.working_dtype(*(t for u in low.values() for t in (u.left, u.right)))
    left_SO = some.left.new_empty((*some.shape[:-2], len(owner), some.left.shape[-2]), dtype=dtype)
    right_SI = some.left.new_empty((*some.shape[:-2], len(owner), some.shape[-1]), dtype=dtype)
    _fill(left_SO, right_SI, low)
    rights = _views(right_SI, probe_NI)
    return ReferenceStack(count, left_SO, rights, owner, held, probe_NI, transposed)


def _owners(low: Mapping[int, LowRankUpdate], device: torch.device) -> Tensor:
    """(S,) which reference each of the stacked ranks belongs to."""
    ranks = torch.tensor([u.rank for u in low.values()])
    return torch.repeat_interleave(torch.tensor(list(low)), ranks).to(device)


def _fill(left_SO: Tensor, right_SI: Tensor, low: Mapping[int, LowRankUpdate]) -> None:
    """Copy (out, in) updates into one stack, one below the other."""
    start = 0
    for update in low.values():
        rows = slice(start, start + update.rank)
        left_SO[..., rows, :].copy_(update.left.mT)
        right_SI[..., rows, :].copy_(update.right)
        start += update.rank


def shared(stack: ReferenceStack, updates: Mapping[int, Update]) -> dict[int, Update]:
    """The same updates, held where the stack holds them wherever that loses nothing.

    Args:
        stack: what `stack_references` made of them.
        updates: as they were given to it.
    """
    found = dict(updates)
    start = 0
    for index, given in updates.items():
        if not isinstance(given, LowRankUpdate) or stack.lefts is None:
            continue
        rows = slice(start, start + given.rank)
        start += given.rank
        left, right = stack.lefts[..., rows, :].mT, stack.rights[0][..., rows, :]
        if {given.left.dtype, given.right.dtype} == {left.dtype}:
            turned = given.transposed
            found[index] = LowRankUpdate(
                right.mT if turned else left, left.mT if turned else right, turned
            )
    return found


def _by_kind(
    updates: Mapping[int, Update],
) -> tuple[dict[int, LowRankUpdate], dict[int, DenseUpdate]]:
    """(out, in) updates by kind, all of one shape and layout."""
    first = next(iter(updates.values()), None)
    low: dict[int, LowRankUpdate] = {}
    dense: dict[int, DenseUpdate] = {}
    for index, given in updates.items():
        assert first is not None  # noqa: S101  there is one: this loop runs
        updates_.check_same_shape(first, given)
        linear = updates_.as_linear(given)
        if isinstance(linear, LowRankUpdate):
            low[index] = linear
        else:
            dense[index] = linear
    return low, dense


def _views(right: Tensor, probe_NI: Tensor | None) -> tuple[Tensor, ...]:
    """A matrix (..., I), and its image (..., N) on the probe where there is one."""
    if probe_NI is None:
        return (right,)
    dtype = functional.working_dtype(right)
    return right, functional.matmul(right.to(dtype), probe_NI.to(dtype).mT)


def check_layout(update: Update, transposed: bool | None) -> None:  # noqa: FBT001
    """Raise `ShapeMismatchError` if the references store the parameter the other way round."""
    if transposed not in (None, update.transposed):
        raise ShapeMismatchError(
            f"an update of shape {tuple(update.shape)} is stored as "
            f"{'(in, out)' if update.transposed else '(out, in)'}, the references' as "
            f"{'(in, out)' if transposed else '(out, in)'}: one of the two was read without "
            "its model's configuration"
        )


def products(update: Update, stack: ReferenceStack, earlier: Update | None = None) -> Tensor:
    """⟨τ_p, w_p⟩ for every reference, ‖τ_p‖² and ⟨τ_p, τ_p(t−h)⟩, by geometry.

    Args:
        update: the update of this parameter, on the stack's device.
        stack: the references of this parameter.
        earlier: the update h steps earlier, where a window is wanted.

    Returns:
        (geometries, count + 2) float64 on the update's device: the products, the squared norm and
        the lagged product (0 without `earlier`). Nothing is synchronised.

    Raises:
        ShapeMismatchError: the update or `earlier` is of another shape, or is stored as (in, out)
            where the references are not, or the other way round.
    """
    check_layout(update, stack.transposed)
    if earlier is not None:
        updates_.check_same_shape(update, earlier)
    linear = updates_.as_linear(update)
    if isinstance(linear, LowRankUpdate):
        rows = _low_rank_products(linear, stack)
    else:
        rows = _dense_products(linear.delta, stack)
    if earlier is not None:
        earlier = updates_.as_linear(updates_.to_device(earlier, rows.device))
        rows[:, -1] = _pair(linear, earlier, stack.probe)
    return rows


def _low_rank_products(update: LowRankUpdate, stack: ReferenceStack) -> Tensor:
    dtype = functional.working_dtype(update.left, update.right)
    left, rights = update.left.to(dtype), _views(update.right.to(dtype), stack.probe)
    out = _zeros(stack, left.device)
    if stack.lefts is not None:
        lefts_SR = functional.matmul(stack.lefts.to(dtype), left)
        for row, theirs, ours in zip(out, stack.rights, rights, strict=True):
            _add_by_owner(row, stack.owner, lefts_SR * functional.matmul(theirs.to(dtype), ours.mT))
    for index, views in stack.dense:
        for row, theirs, ours in zip(out, views, rights, strict=True):
            row[index] = functional.dense_low_rank_inner(theirs, left, ours)
    lefts_RR = functional.matmul(left.mT, left)
    for row, ours in zip(out, rights, strict=True):
        row[-2] = functional.sum64(lefts_RR * functional.matmul(ours, ours.mT))
    return out


def _dense_products(delta: Tensor, stack: ReferenceStack) -> Tensor:
    out = _zeros(stack, delta.device)
    if stack.lefts is not None:
        whole = delta.to(functional.working_dtype(delta))
        projected = functional.matmul(stack.lefts.to(whole.dtype), whole)
        for row, theirs, ours in zip(
            out, stack.rights, _views(projected, stack.probe), strict=True
        ):
            _add_by_owner(row, stack.owner, theirs.to(whole.dtype) * ours)
    columns = [*(index for index, _ in stack.dense), stack.count]
    for geometry, mine in enumerate(_views(delta, stack.probe)):
        others = [views[geometry] for _, views in stack.dense]
        found = functional.dense_inners(mine, [*others, mine])
        for column, value in zip(columns, found, strict=True):
            out[geometry, column] = value
    return out


def _zeros(stack: ReferenceStack, device: torch.device) -> Tensor:
    return torch.zeros(stack.geometries, stack.count + 2, dtype=torch.float64, device=device)


def _add_by_owner(row: Tensor, owner: Tensor, elements: Tensor) -> None:
    """Sum elements (..., S, any) in float64 over all but S, into the references that own each S."""
    per_rank = elements.sum(-1, dtype=torch.float64).reshape(-1, len(owner)).sum(0)
    row.index_add_(0, owner, per_rank)


def _pair(a: Update, b: Update, probe: Tensor | None) -> Tensor:
    """(geometries,) the product of two (out, in) updates in each geometry."""
    found = [updates_.inner(a, b)]
    if probe is not None:
        found.append(updates_.inner(updates_.on(a, probe), updates_.on(b, probe)))
    return torch.stack(found)


# Many parameters of one shape at once: an accelerator is kept waiting by launches, and Python by
# thousands of small experts, not by arithmetic.


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
            self.probes[member] if self.probes else None,
            self.transposed,
        )


def stack_block(
    members: Sequence[Mapping[int, Update]], count: int, probes: Sequence[Tensor]
) -> ReferenceBlock:
    """Lay the low-rank updates of several parameters of one shape side by side.

    Args:
        members: each parameter's updates by index of the reference; all of the same references,
            shape, layout and ranks, in float32 or less.
        count: number of references in the bank.
        probes: (N, I) rows of each parameter's inputs; empty where they have no response.
    """
    stacked = [_by_kind(updates)[0] for updates in members]
    some = next(iter(stacked[0].values()))
    owner = _owners(stacked[0], some.left.device)
    outputs, inputs = some.shape
    left_GSO = some.left.new_empty((len(members), len(owner), outputs), dtype=torch.float32)
    right_GSI = some.left.new_empty((len(members), len(owner), inputs), dtype=torch.float32)
    for left_SO, right_SI, low in zip(left_GSO, right_GSI, stacked, strict=True):
        _fill(left_SO, right_SI, low)
    rights: tuple[Tensor, ...] = (right_GSI,)
    if probes:
        images = [_views(r, p)[1] for r, p in zip(right_GSI, probes, strict=True)]
        rights = right_GSI, torch.stack(images)
    turned = next(iter(members[0].values())).transposed
    return ReferenceBlock(count, left_GSO, rights, owner, tuple(probes), turned)


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
