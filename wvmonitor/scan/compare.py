"""Cosines between any task vectors and references, all pairs in one pass.

The paper's figures 8, 9, 34 and 35 (arXiv 2511.05408) are such matrices. Gram matrices are
accumulated parameter by parameter: n vectors cost n reads, not n².
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wvmonitor.errors import BaseMismatchError, NonFiniteError, ShapeMismatchError, WVMonitorError
from wvmonitor.files.storage import shown
from wvmonitor.outputs.scan_record import Failure, failure_of
from wvmonitor.reading import Component, Float64, Geometry, component_of
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.measure import find_base, read_target
from wvmonitor.scan.targets import Target
from wvmonitor.vectors import functional
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.dense import pass_over
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import Dense, LowRankUpdate, Update

# Ranks handled at once: bounds the square matrices between all ranks of all vectors.
_RANKS = 2048
_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Comparison:
    """Inner products between n vectors.

    Attributes:
        labels: (n,) what each vector is called.
        gram: (n, n), ⟨τ_i, τ_j⟩ over the parameters compared.
        components: the parts of the model compared; empty for all.
    """

    labels: tuple[str, ...]
    gram: Float64
    geometry: Geometry
    components: tuple[Component, ...]
    parameters: int

    @property
    def norms(self) -> Float64:
        """(n,), ‖τ_i‖ over the parameters compared."""
        return np.asarray(np.sqrt(np.maximum(np.diagonal(self.gram), 0.0)))

    @property
    def cosines(self) -> Float64:
        """(n, n); NaN beside a vector that has not moved at all."""
        norms = self.norms
        scale = np.outer(norms, norms)
        filled = np.full(self.gram.shape, np.nan)
        np.divide(self.gram, scale, out=filled, where=scale > 0)
        return np.asarray(np.clip(filled, -1.0, 1.0))


@torch.no_grad()
def compare(
    vectors: Mapping[str, TaskVector],
    *,
    components: Sequence[Component] = ("blocks",),
    probe: Mapping[str, Tensor] | None = None,
) -> Comparison:
    """All inner products between task vectors of one base.

    Each update of each vector is produced once. Memory: one parameter's updates of all vectors.

    Args:
        vectors: by label.
        components: the parts of the model to compare; empty for every parameter.
        probe: (rows, inputs) by parameter name: compares what the vectors do to these inputs (the
            response geometry) in place of the weights themselves.

    Raises:
        BaseMismatchError: the vectors are known to start from different bases.
        ShapeMismatchError: a parameter has different shapes in two of them.
        NonFiniteError: a product is not finite.
    """
    _check_bases(vectors)
    names = [
        name
        for name, shape in _shapes(vectors).items()
        if (not components or component_of(name, shape) in components)
        and (probe is None or name in probe)
    ]
    every = list(vectors.values())
    gram = np.zeros((len(every), len(every)))
    for name in names:
        changed = {i: v.update(name) for i, v in enumerate(every) if name in v}
        part = gram_of(changed, len(every), None if probe is None else probe[name])
        if not np.isfinite(part).all():
            guilty = [k for i, k in enumerate(vectors) if not np.isfinite(part[i, i])]
            raise NonFiniteError(
                f"{shown(name)} of {', '.join(map(shown, guilty)) or 'a vector'} is not finite, or "
                "too large to multiply: leave it out"
            )
        gram += part
    return Comparison(
        labels=tuple(vectors),
        gram=gram,
        geometry="frobenius" if probe is None else "response",
        components=tuple(components),
        parameters=len(names),
    )


def gram_of(updates: Mapping[int, Update], count: int, probe: Tensor | None = None) -> Float64:
    """(count, count) inner products between updates of one parameter.

    Args:
        updates: by index; vectors that leave the parameter alone are absent, and get zeros.
        count: how many vectors there are.
        probe: (rows, inputs) of the parameter, for the response geometry.
    """
    low: dict[int, LowRankUpdate] = {}
    dense: dict[int, Dense] = {}
    first = next(iter(updates.values()))
    for index, given in updates.items():
        updates_.check_same_shape(first, given)
        mapped = given if probe is None else updates_.on(given, probe)
        if isinstance(mapped, LowRankUpdate):
            low[index] = mapped
        else:
            dense[index] = mapped
    gram = torch.zeros(count, count, dtype=torch.float64)
    if low:
        _add_low_rank(gram, low)
        _add_mixed(gram, low, dense)
    _add_dense(gram, dense)
    return np.asarray(((gram + gram.mT) / 2).numpy())  # rounding is the only asymmetry


def _add_low_rank(gram: Tensor, low: Mapping[int, LowRankUpdate]) -> None:
    left, right, owner = _stacked(low)
    for rows in torch.split(torch.arange(len(owner)), _RANKS):
        lefts = functional.matmul(left[..., rows].mT, left)
        rights = functional.matmul(right[..., rows, :], right.mT)
        products = (lefts * rights).to(torch.float64).reshape(-1, len(rows), len(owner)).sum(0)
        by_row = torch.zeros(len(rows), len(gram), dtype=torch.float64)
        by_row.index_add_(1, owner, products)
        gram.index_add_(0, owner[rows], by_row)


def _add_mixed(gram: Tensor, low: Mapping[int, LowRankUpdate], dense: Mapping[int, Dense]) -> None:
    if not dense:
        return
    left, right, owner = _stacked({i: _linear(u) for i, u in low.items()})
    for index, update in dense.items():
        products = pass_over(update, lefts_SO=left.mT, rights_SI=right, sums=False)
        row = torch.zeros(len(gram), dtype=torch.float64).index_add_(0, owner, products.per_rank)
        gram[index] += row
        gram[:, index] += row


def _linear(update: LowRankUpdate) -> LowRankUpdate:
    turned = updates_.as_linear(update)
    assert isinstance(turned, LowRankUpdate)  # noqa: S101  it stays of its kind
    return turned


def _add_dense(gram: Tensor, dense: Mapping[int, Dense]) -> None:
    if not dense:
        return
    indices = torch.tensor(list(dense))
    dtype = torch.float64 if torch.float64 in map(updates_.dtype_of, dense.values()) else None
    for pieces in zip(*(updates_.pieces(u, _ELEMENTS) for u in dense.values()), strict=True):
        block = torch.stack([p.to(dtype or torch.float32) for p in pieces])
        gram[indices.unsqueeze(1), indices] += functional.matmul(block, block.mT).to(torch.float64)


def _stacked(low: Mapping[int, LowRankUpdate]) -> tuple[Tensor, Tensor, Tensor]:
    """Factors side by side: (..., O, S), (..., S, I), and (S,) whose each rank is."""
    dtype = functional.working_dtype(*(t for u in low.values() for t in (u.left, u.right)))
    left = torch.cat([u.left.to(dtype) for u in low.values()], dim=-1)
    right = torch.cat([u.right.to(dtype) for u in low.values()], dim=-2)
    owner = torch.cat([torch.full((u.rank,), i) for i, u in low.items()])
    return left, right, owner


def read_all(
    targets: Iterable[Target],
    *,
    base: str | None = None,
    bank: ReferenceBank | None = None,
) -> tuple[dict[str, TaskVector], dict[str, Failure]]:
    """The task vectors of targets and, behind them, of a bank's references, by label.

    Returns:
        The vectors that can be read, and why the others cannot.
    """
    vectors: dict[str, TaskVector] = {}
    failures: dict[str, Failure] = {}
    for target in targets:
        if target.error is not None:
            failures[target.path] = target.error
            continue
        try:
            own_base, _ = find_base(target, base, bank)
            vectors[target.path] = read_target(target, base, own_base)
        except (WVMonitorError, OSError) as error:
            failures[target.path] = failure_of(error)
    for reference in bank or ():
        vectors[f"{reference.card.kind}:{reference.name}"] = reference.vector
    return vectors, failures


def _check_bases(vectors: Mapping[str, TaskVector]) -> None:
    bases: dict[str, str] = {}
    for label, vector in vectors.items():
        if vector.origin.base_digest is not None:
            bases.setdefault(vector.origin.base_digest, label)
    if len(bases) > 1:
        raise BaseMismatchError(
            f"{' and '.join(map(shown, list(bases.values())[:2]))} start from different bases: "
            "cosines exist between vectors of one base only"
        )


def _shapes(vectors: Mapping[str, TaskVector]) -> dict[str, torch.Size]:
    shapes: dict[str, tuple[torch.Size, str]] = {}
    for label, vector in vectors.items():
        for name in vector.names():
            shape, owner = shapes.setdefault(name, (vector.shape(name), label))
            if shape != vector.shape(name):
                raise ShapeMismatchError(
                    f"{shown(name)} has shape {tuple(shape)} in {shown(owner)} but "
                    f"{tuple(vector.shape(name))} in {shown(label)}: they do not come from one base"
                )
    return {name: shape for name, (shape, _) in shapes.items()}
