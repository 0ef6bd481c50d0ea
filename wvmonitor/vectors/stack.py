"""The references of one parameter, stacked so that one pair of products serves them all.

Dimension suffixes: O outputs, I inputs, R rank of the measured update, S the ranks of all low-rank
references laid side by side, N rows of the probe; `...` stands for leading batch dimensions.
Everything here is in (out, in) orientation: transposed parameters come in as their transpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wvmonitor.vectors import functional
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.dense import pass_over
from wvmonitor.vectors.update import Dense, LowRankUpdate, Update


@dataclass(frozen=True)
class ReferenceStack:
    """All references' updates of one parameter.

    Attributes:
        count: number of references in the bank, whether they touch this parameter or not.
        lefts: (..., S, O) left factors of the low-rank references, or None. They lie by rank, as
            the right ones do: the product with an update's own factor runs along its memory.
        rights: their right factors by geometry: (..., S, I), and (S, N) on the probe, if any.
        owner: (S,) which reference each rank belongs to.
        dense: references of other kinds: index, and the update as it is stored.
        responses: (..., O, N) what each of the dense ones does to the probe; empty without.
        probe: (N, I) rows of this parameter's inputs, or None.
        transposed: whether the references' parameter is stored as (in, out); None where no
            reference touches it, or where it is a vector.
    """

    count: int
    lefts: Tensor | None
    rights: tuple[Tensor, ...]
    owner: Tensor
    dense: tuple[tuple[int, Dense], ...]
    responses: tuple[Tensor, ...]
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
    low, dense = by_kind(updates)
    first = next(iter(updates.values()), None)
    transposed = None if first is None or len(first.shape) < 2 else first.transposed
    dense_updates = tuple(dense.items())
    probed = dense.values() if probe_NI is not None else ()
    passes = [pass_over(u, probe_NI=probe_NI, sums=False) for u in probed]
    responses = tuple(p.response for p in passes if p.response is not None)
    if not low:
        owner = torch.zeros(0, dtype=torch.long)
        return ReferenceStack(
            count, None, (), owner, dense_updates, responses, probe_NI, transposed
        )
    some = next(iter(low.values()))
    owner = owners(low, some.left.device)
    dtype = functional.working_dtype(*(t for u in low.values() for t in (u.left, u.right)))
    left_SO = some.left.new_empty((*some.shape[:-2], len(owner), some.left.shape[-2]), dtype=dtype)
    right_SI = some.left.new_empty((*some.shape[:-2], len(owner), some.shape[-1]), dtype=dtype)
    fill(left_SO, right_SI, low)
    rights = views(right_SI, probe_NI)
    return ReferenceStack(
        count, left_SO, rights, owner, dense_updates, responses, probe_NI, transposed
    )


def owners(low: Mapping[int, LowRankUpdate], device: torch.device) -> Tensor:
    """(S,) which reference each of the stacked ranks belongs to."""
    ranks = torch.tensor([u.rank for u in low.values()])
    return torch.repeat_interleave(torch.tensor(list(low)), ranks).to(device)


def fill(left_SO: Tensor, right_SI: Tensor, low: Mapping[int, LowRankUpdate]) -> None:
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
    by_index = dict(updates)
    start = 0
    for index, given in updates.items():
        if not isinstance(given, LowRankUpdate) or stack.lefts is None:
            continue
        rows = slice(start, start + given.rank)
        start += given.rank
        left, right = stack.lefts[..., rows, :].mT, stack.rights[0][..., rows, :]
        if {given.left.dtype, given.right.dtype} == {left.dtype}:
            turned = given.transposed
            by_index[index] = LowRankUpdate(
                right.mT if turned else left, left.mT if turned else right, turned
            )
    return by_index


def by_kind(
    updates: Mapping[int, Update],
) -> tuple[dict[int, LowRankUpdate], dict[int, Dense]]:
    """Updates of one shape and layout by kind: low-rank ones as (out, in), others as they are."""
    first = next(iter(updates.values()), None)
    low: dict[int, LowRankUpdate] = {}
    dense: dict[int, Dense] = {}
    for index, given in updates.items():
        assert first is not None  # noqa: S101  there is one: this loop runs
        updates_.check_same_shape(first, given)
        if isinstance(given, LowRankUpdate):
            linear = updates_.as_linear(given)
            assert isinstance(linear, LowRankUpdate)  # noqa: S101  it stays of its kind
            low[index] = linear
        else:
            dense[index] = given
    return low, dense


def views(right: Tensor, probe_NI: Tensor | None) -> tuple[Tensor, ...]:
    """A matrix (..., I), and its image (..., N) on the probe where there is one."""
    if probe_NI is None:
        return (right,)
    dtype = functional.working_dtype(right)
    return right, functional.matmul(right.to(dtype), probe_NI.to(dtype).mT)


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
    updates_.check_layout(update, stack.transposed)
    if isinstance(update, LowRankUpdate):
        linear = updates_.as_linear(update)
        assert isinstance(linear, LowRankUpdate)  # noqa: S101  it stays of its kind
        rows = _low_rank_products(linear, stack)
    else:
        rows, _ = dense_products(update, stack)
    if earlier is not None:
        rows[:, -1] = lagged_products(update, earlier, stack.probe)
    return rows


def lagged_products(update: Update, earlier: Update, probe: Tensor | None) -> Tensor:
    """(geometries,) float64 ⟨τ_p, τ_p(t−h)⟩ on the update's device, as `products` says."""
    updates_.check_same_shape(update, earlier)
    earlier = updates_.to_device(earlier, updates_.device_of(update))
    products = [updates_.inner(update, earlier)]
    if probe is not None:
        products.append(updates_.inner(updates_.on(update, probe), updates_.on(earlier, probe)))
    return torch.stack(products)


def _low_rank_products(update: LowRankUpdate, stack: ReferenceStack) -> Tensor:
    dtype = functional.working_dtype(update.left, update.right)
    left, rights = update.left.to(dtype), views(update.right.to(dtype), stack.probe)
    out = _zeros(stack, left.device)
    if stack.lefts is not None:
        lefts_SR = functional.matmul(stack.lefts.to(dtype), left)
        for row, theirs, ours in zip(out, stack.rights, rights, strict=True):
            _add_by_owner(row, stack.owner, lefts_SR * functional.matmul(theirs.to(dtype), ours.mT))
    for index, reference in stack.dense:
        read = pass_over(reference, lefts_SO=left.mT, rights_SI=rights[0], sums=False)
        out[0, index] = read.per_rank.sum()
    for (index, _), response in zip(stack.dense, stack.responses, strict=False):
        out[1, index] = functional.dense_low_rank_inner(response, left, rights[1])
    lefts_RR = functional.matmul(left.mT, left)
    for row, ours in zip(out, rights, strict=True):
        row[-2] = functional.sum64(lefts_RR * functional.matmul(ours, ours.mT))
    return out


def dense_products(update: Dense, stack: ReferenceStack) -> tuple[Tensor, Tensor]:
    """What `products` gives for a dense update, and how many of its elements changed."""
    updates_.check_layout(update, stack.transposed)
    products = pass_over(
        update,
        [reference for _, reference in stack.dense],
        lefts_SO=stack.lefts,
        rights_SI=stack.rights[0] if stack.rights else None,
        probe_NI=stack.probe,
    )
    out = _zeros(stack, products.square.device)
    columns = [*(index for index, _ in stack.dense), stack.count]
    out[0, columns] = torch.cat([products.inners, products.square.reshape(1)])
    out[0].index_add_(0, stack.owner, products.per_rank)
    if products.response is not None:
        mine = products.response
        out[1, columns] = functional.dense_inners(mine, [*stack.responses, mine])
        if stack.lefts is not None:
            projected = functional.matmul(stack.lefts.to(mine.dtype), mine)
            _add_by_owner(out[1], stack.owner, stack.rights[1].to(mine.dtype) * projected)
    return out, products.changed


def _zeros(stack: ReferenceStack, device: torch.device) -> Tensor:
    return torch.zeros(stack.geometries, stack.count + 2, dtype=torch.float64, device=device)


def _add_by_owner(row: Tensor, owner: Tensor, elements: Tensor) -> None:
    """Sum elements (..., S, any) in float64 over all but S, into the references that own each S."""
    per_rank = elements.sum(-1, dtype=torch.float64).reshape(-1, len(owner)).sum(0)
    row.index_add_(0, owner, per_rank)
