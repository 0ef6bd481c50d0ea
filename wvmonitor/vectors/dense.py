"""One pass over a dense update, piece by piece: everything that a measurement needs of it.

A piece is read, used for every product while it lies in a core's cache, and let go: no update is
ever whole in memory, be it a reference or what is measured. Dimension suffixes: O outputs, I
inputs, S ranks of low-rank references laid side by side, N rows of a probe; `...` stands for
leading batch dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wvmonitor.vectors import functional
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.update import Dense

# Rows of a matrix that are multiplied at once on a CPU: fewer would read the other factor from
# memory for nothing.
_ROWS = 128


@dataclass(frozen=True)
class DensePass:
    """What one pass found; float64 on the update's device, nothing is synchronised.

    Attributes:
        inners: (others,) ⟨update, other⟩ with each dense update.
        square: ‖update‖².
        changed: how many elements are not 0.
        per_rank: (S,) ⟨update, left_s ⊗ right_s⟩ of each rank.
        response: (..., O, N) update · Xᵀ in the working precision; None without a probe.
    """

    inners: Tensor
    square: Tensor
    changed: Tensor
    per_rank: Tensor
    response: Tensor | None


def pass_over(
    update: Dense,
    others: Sequence[Dense] = (),
    *,
    lefts_SO: Tensor | None = None,
    rights_SI: Tensor | None = None,
    probe_NI: Tensor | None = None,
    sums: bool = True,
) -> DensePass:
    """Read a dense update once, and multiply it with everything that is given.

    Args:
        update: what is read; (..., O, I), or (..., I, O) where `transposed`.
        others: dense updates of its shape and layout.
        lefts_SO: (..., S, O) left factors of low-rank updates, by rank, or None.
        rights_SI: (..., S, I) their right factors, or None.
        probe_NI: (N, I) rows of the parameter's inputs, or None.
        sums: False leaves `inners`, `square` and `changed` at 0: they are not asked for.
    """
    device, dtype = updates_.device_of(update), updates_.dtype_of(update)
    maps = len(update.shape) > 1 and (lefts_SO is not None or probe_NI is not None)
    size = _piece_elements(update.shape, device, maps=maps)
    products = _MapProducts(update, dtype, lefts_SO, rights_SI, probe_NI)
    dots: list[Tensor] = []
    moved: Tensor | int = 0
    start = 0
    streams = [updates_.pieces(u, size) for u in (update, *others)]
    for mine, *theirs in zip(*streams, strict=True):
        if sums:
            dots += functional.dots_of_chunks(mine, [*theirs, mine])
            moved = moved + functional.count_changed(mine)
        if maps:
            for member, rows, part in _matrix_rows(mine.to(dtype), start, update.shape):
                products.add(member, rows, part)
        start += mine.numel()
    inners = functional.sum_of_dots(dots, len(others) + 1).to(device)
    count = torch.as_tensor(moved, dtype=torch.float64, device=device)
    return DensePass(inners[:-1], inners[-1], count, products.per_rank, products.whole_response())


class _MapProducts:
    """Products of a linear map's rows, as they come, with low-rank updates and a probe."""

    def __init__(
        self,
        update: Dense,
        dtype: torch.dtype,
        lefts_SO: Tensor | None,
        rights_SI: Tensor | None,
        probe_NI: Tensor | None,
    ) -> None:
        device, self._turned = updates_.device_of(update), update.transposed
        factors = [t.to(dtype) for t in (lefts_SO, rights_SI) if t is not None]
        flat = [t.reshape(-1, *t.shape[-2:]) for t in factors]
        # the rows of a stored (out, in) matrix are outputs, those of an (in, out) one are inputs
        self._factors = flat[::-1] if self._turned else flat
        ranks = flat[0].shape[-2] if flat else 0
        self.per_rank = torch.zeros(ranks, dtype=torch.float64, device=device)
        self._probe = None if probe_NI is None else probe_NI.to(dtype)
        self._response: Tensor | None = None
        if self._probe is not None:
            outputs = update.shape[-1 if self._turned else -2]
            shape = (*update.shape[:-2], outputs, len(self._probe))
            self._response = torch.zeros(shape, dtype=dtype, device=device)

    def add(self, member: int, rows: slice, part: Tensor) -> None:
        """Use some rows, as they are stored, of one of the matrices."""
        if self._factors:
            along, across = (factor[member] for factor in self._factors)
            elements = functional.matmul(part, across.mT) * along[:, rows].mT
            self.per_rank += elements.sum(0, dtype=torch.float64)
        if self._response is not None and self._probe is not None:
            response_ON = self._response.view(-1, *self._response.shape[-2:])[member]
            if self._turned:
                response_ON += functional.matmul(part.mT, self._probe[:, rows].mT)
            else:
                response_ON[rows] = functional.matmul(part, self._probe.mT)

    def whole_response(self) -> Tensor | None:
        """(..., O, N), once every row was added."""
        return self._response


def _piece_elements(shape: torch.Size, device: torch.device, *, maps: bool) -> int:
    size = functional.chunk_elements(device)
    if not maps:
        return size
    rows = max(size // max(1, shape[-1]), _ROWS if device.type == "cpu" else 1)
    return rows * max(1, shape[-1])


def _matrix_rows(
    piece: Tensor, start: int, shape: torch.Size
) -> Iterator[tuple[int, slice, Tensor]]:
    """The rows in a flat piece that begins at element `start`: (matrix, which rows, the rows)."""
    height, width = shape[-2:]
    rest, row = piece.view(-1, width), start // width
    while len(rest):
        member, first = divmod(row, height)
        part = rest[: height - first]
        yield member, slice(first, first + len(part)), part
        rest, row = rest[len(part) :], row + len(part)
