"""A dense update in few numbers: low-rank factors from random products, cheap beside measuring.

Dimension suffixes: O outputs, I inputs, K columns of the sketch; `...` stands for leading batch
dimensions.
"""

from __future__ import annotations

import zlib

import torch

from wvmonitor.errors import InputError, NonFiniteError
from wvmonitor.vectors import functional
from wvmonitor.vectors.compress import Compression
from wvmonitor.vectors.update import DenseUpdate, LowRankUpdate, clone, inner

OVERSAMPLING = 8
"""Columns beyond the rank that is kept; a few make the range as good as it will get."""


def sketch(update: DenseUpdate, rank: int, *, name: str) -> Compression:
    """Nearly the best approximation of rank ≤ `rank`, by the randomised SVD.

    Halko, Martinsson & Tropp 2011 (arXiv 0909.4061), algorithms 4.4 (one power iteration) and 5.1:
    four products with `OVERSAMPLING` + `rank` columns and a QR of as many, where `compress` needs
    the SVD of the whole. The random columns are fixed by the parameter's name, and torch's own
    generators are left alone. Vectors, and matrices that factors would not make smaller, are copied
    as they are.

    Returns:
        The factors, with the exact ‖update‖² and what of it they hold.

    Raises:
        InputError: `rank` is below 1.
        NonFiniteError: the update holds NaN or infinity.
    """
    if rank < 1:
        raise InputError(f"rank must be at least 1, got {rank}")
    square = float(inner(update, update))
    if not square < float("inf"):
        raise NonFiniteError(f"the change of {name} holds NaN or infinity and cannot be kept")
    if not _gains(update, rank):
        return Compression(clone(update), square, square)
    dtype = functional.working_dtype(update.delta)
    delta_OI = update.delta.to(dtype)
    columns = min(rank + OVERSAMPLING, *delta_OI.shape[-2:])
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    random_IK = torch.randn(delta_OI.shape[-1], columns, generator=generator, dtype=dtype)
    random_IK = random_IK.to(delta_OI.device)
    range_OK = torch.linalg.qr(functional.matmul(delta_OI, random_IK))[0]
    range_IK = torch.linalg.qr(functional.matmul(delta_OI.mT, range_OK))[0]
    range_OK = torch.linalg.qr(functional.matmul(delta_OI, range_IK))[0]
    u, s, vh = torch.linalg.svd(functional.matmul(range_OK.mT, delta_OI), full_matrices=False)
    root = s[..., :rank].sqrt()
    left = functional.matmul(range_OK, u[..., :rank]) * root.unsqueeze(-2)
    right = vh[..., :rank, :] * root.unsqueeze(-1)
    sketched = LowRankUpdate(left.contiguous(), right.contiguous(), update.transposed)
    squared = float((s[..., :rank].double() ** 2).sum())
    return Compression(sketched, min(squared, square), square)


def _gains(update: DenseUpdate, rank: int) -> bool:
    """Whether factors of this rank hold fewer numbers than the matrix."""
    shape = update.shape
    return len(shape) > 1 and rank * (shape[-2] + shape[-1]) < shape[-2] * shape[-1]
