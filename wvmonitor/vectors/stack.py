"""The references of one parameter, stacked so that one pair of products serves them all.

Dimension suffixes: O outputs, I inputs, R rank of the measured update, S the ranks of all low-rank
references laid side by side, N rows of the probe; `...` stands for leading batch dimensions.
Everything here is in (out, in) orientation: transposed parameters are turned round on the way in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wvmonitor.errors import ShapeMismatchError
from wvmonitor.vectors import functional
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.update import LowRankUpdate, Update


@dataclass(frozen=True)
class ReferenceStack:
    """All references' updates of one parameter.

    Attributes:
        count: number of references in the bank, whether they touch this parameter or not.
        left: (..., O, S) left factors of the low-rank references, or None.
        rights: their right factors by geometry: (..., S, I), and (S, N) on the probe, if any.
        owner: (S,) which reference each rank belongs to.
        dense: references held densely: index, and the update by geometry.
        probe: (N, I) rows of this parameter's inputs, or None.
        transposed: whether the references' parameter is stored as (in, out); None where no
            reference touches it, or where it is a vector.
    """

    count: int
    left: Tensor | None
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
        return self.left is not None or bool(self.dense)

    def to(self, device: torch.device) -> ReferenceStack:
        """The stack on another device."""
        return ReferenceStack(
            self.count,
            None if self.left is None else self.left.to(device),
            tuple(r.to(device) for r in self.rights),
            self.owner.to(device),
            tuple((i, tuple(t.to(device) for t in views)) for i, views in self.dense),
            None if self.probe is None else self.probe.to(device),
            self.transposed,
        )


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
    first = next(iter(updates.values()), None)
    transposed = None if first is None or len(first.shape) < 2 else first.transposed
    low: dict[int, LowRankUpdate] = {}
    dense: list[tuple[int, tuple[Tensor, ...]]] = []
    for index, given in updates.items():
        assert first is not None  # noqa: S101  there is one: this loop runs
        updates_.check_same_shape(first, given)
        linear = updates_.as_linear(given)
        if isinstance(linear, LowRankUpdate):
            low[index] = linear
        else:
            dense.append((index, _views(updates_.to_dense(linear), probe_NI)))
    if not low:
        return ReferenceStack(
            count, None, (), torch.zeros(0, dtype=torch.long), tuple(dense), probe_NI, transposed
        )
    parts = [t for u in low.values() for t in (u.left, u.right)]
    dtype = functional.working_dtype(*parts)
    left = torch.cat([u.left.to(dtype) for u in low.values()], dim=-1)
    right = torch.cat([u.right.to(dtype) for u in low.values()], dim=-2)
    owner = torch.cat([torch.full((u.rank,), i, dtype=torch.long) for i, u in low.items()])
    rights, owner = _views(right, probe_NI), owner.to(left.device)
    return ReferenceStack(count, left, rights, owner, tuple(dense), probe_NI, transposed)


def _views(right: Tensor, probe_NI: Tensor | None) -> tuple[Tensor, ...]:
    """A matrix (..., I), and its image (..., N) on the probe where there is one."""
    if probe_NI is None:
        return (right,)
    return right, functional.matmul(right, probe_NI.to(right.dtype).mT)


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
    if stack.transposed not in (None, update.transposed):
        raise ShapeMismatchError(
            f"an update of shape {tuple(update.shape)} is stored as "
            f"{'(in, out)' if update.transposed else '(out, in)'}, the references' as "
            f"{'(in, out)' if stack.transposed else '(out, in)'}: one of the two was read without "
            "its model's configuration"
        )
    linear = updates_.as_linear(update)
    if isinstance(linear, LowRankUpdate):
        rows = _low_rank_products(linear, stack)
    else:
        rows = _dense_products(updates_.to_dense(linear), stack)
    norms = _pair(linear, linear, stack.probe)
    lagged = torch.zeros_like(norms)
    if earlier is not None:
        updates_.check_same_shape(update, earlier)
        earlier = updates_.to_device(earlier, norms.device)
        lagged = _pair(linear, updates_.as_linear(earlier), stack.probe)
    return torch.cat([rows, norms.unsqueeze(1), lagged.unsqueeze(1)], dim=1)


def _low_rank_products(update: LowRankUpdate, stack: ReferenceStack) -> Tensor:
    dtype = functional.working_dtype(update.left, update.right)
    left, rights = update.left.to(dtype), _views(update.right.to(dtype), stack.probe)
    out = torch.zeros(stack.geometries, stack.count, dtype=torch.float64, device=left.device)
    if stack.left is not None:
        lefts_SR = functional.matmul(stack.left.to(dtype).mT, left)
        for row, theirs, ours in zip(out, stack.rights, rights, strict=True):
            _add_by_owner(row, stack.owner, lefts_SR * functional.matmul(theirs.to(dtype), ours.mT))
    for index, views in stack.dense:
        for row, theirs, ours in zip(out, views, rights, strict=True):
            row[index] = functional.dense_low_rank_inner(theirs, left, ours)
    return out


def _dense_products(delta: Tensor, stack: ReferenceStack) -> Tensor:
    out = torch.zeros(stack.geometries, stack.count, dtype=torch.float64, device=delta.device)
    if stack.left is not None:
        projected = functional.matmul(stack.left.to(delta.dtype).mT, delta)
        for row, theirs, ours in zip(
            out, stack.rights, _views(projected, stack.probe), strict=True
        ):
            _add_by_owner(row, stack.owner, theirs.to(delta.dtype) * ours)
    if stack.dense:
        mine = _views(delta, stack.probe)
        for index, views in stack.dense:
            for row, theirs, ours in zip(out, views, mine, strict=True):
                row[index] = functional.dense_inner(ours, theirs)
    return out


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
