"""Compression of updates: the closest update of a lower rank.

Dimension suffixes: O outputs, I inputs, R rank; `...` stands for leading batch dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wvmonitor.errors import InputError, NonFiniteError
from wvmonitor.vectors import functional
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.update import DenseUpdate, LowRankUpdate, Update


@dataclass(frozen=True)
class Compression:
    """A compressed update and what it kept.

    Attributes:
        update: the compressed update (itself where nothing could be gained).
        kept: squared Frobenius norm of what was kept.
        total: squared Frobenius norm of the update before.
    """

    update: Update
    kept: float
    total: float


def compress(update: Update, rank: int) -> Compression:
    """The best approximation of rank ≤ `rank` in the Frobenius norm (Eckart–Young).

    A low-rank update is never multiplied out: with left = Q_l·T_l and rightᵀ = Q_r·T_r (QR), the
    SVD of the small (R, R) matrix T_l·T_rᵀ gives the SVD of the product. The singular values are
    shared evenly between the two factors. Vectors are kept as they are, and so is a dense update
    that has no higher rank.

    Raises:
        InputError: `rank` is below 1.
        NonFiniteError: the update holds NaN or infinity.
    """
    update = updates_.held(update)
    if rank < 1:
        raise InputError(f"rank must be at least 1, got {rank}")
    if not all(bool(torch.isfinite(t).all()) for t in _tensors(update)):
        raise NonFiniteError(
            f"an update of shape {tuple(update.shape)} holds NaN or infinity and cannot be "
            "compressed: take an earlier checkpoint"
        )
    if len(update.shape) < 2:
        return _unchanged(update)
    if isinstance(update, DenseUpdate):
        if rank >= min(update.shape[-2:]):
            return _unchanged(update)
        delta = update.delta.to(torch.float64)
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    else:
        if update.rank <= rank:
            return _unchanged(update)
        q_left, t_left = torch.linalg.qr(update.left.to(torch.float64))
        q_right, t_right = torch.linalg.qr(update.right.to(torch.float64).mT)
        u, s, vh = torch.linalg.svd(t_left @ t_right.mT, full_matrices=False)
        u, vh = q_left @ u, vh @ q_right.mT
    dtype = functional.working_dtype(*_tensors(update))
    root = s[..., :rank].sqrt()
    compressed = LowRankUpdate(
        (u[..., :rank] * root.unsqueeze(-2)).to(dtype).contiguous(),
        (vh[..., :rank, :] * root.unsqueeze(-1)).to(dtype).contiguous(),
        update.transposed,
    )
    return Compression(compressed, float((s[..., :rank] ** 2).sum()), float((s**2).sum()))


def _tensors(update: DenseUpdate | LowRankUpdate) -> tuple[torch.Tensor, ...]:
    if isinstance(update, DenseUpdate):
        return (update.delta,)
    return update.left, update.right


def _unchanged(update: DenseUpdate | LowRankUpdate) -> Compression:
    if isinstance(update, DenseUpdate):
        square = float(functional.dense_inner(update.delta, update.delta))
    else:
        square = float(
            functional.low_rank_inner(update.left, update.right, update.left, update.right)
        )
    return Compression(update, square, square)
