"""Inner products of weight updates: pure functions of tensors.

Dimension suffixes: O outputs, I inputs, R and S ranks, N rows of a probe; `...` stands for leading
batch dimensions (fused experts). Products are computed in float32, or in float64 when an operand
is float64; sums over elements are always float64, because a float32 (let alone bf16) sum over
10⁷ elements loses the digits that matter here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A chunk of this many elements stays in a CPU core's cache; on an accelerator launches dominate.
_CHUNK_ON_CPU = 1 << 17
_CHUNK_ON_DEVICE = 1 << 26


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any operand is float64, otherwise float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product a·b in the operands' own precision, whatever the trainer has set up.

    Under autocast a plain matmul of float32 operands is computed in bfloat16 or float16; with TF32
    (`torch.set_float32_matmul_precision`, `torch.backends`), in as few bits on the inside.
    """
    kind = a.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(device_type=kind, enabled=False), full_precision(kind):
            return a @ b
    if a.dtype != torch.float32 or not _reduced(kind):
        return a @ b
    with full_precision(kind):
        return a @ b


@contextmanager
def full_precision(kind: str) -> Iterator[None]:
    """Products of float32 matrices on devices of this kind keep float32's digits in here.

    Whatever was set before is set again at the end, also after an error.
    """
    if not _reduced(kind):
        yield
        return
    settings = _settings(kind)
    if settings is None:  # before torch 2.9 there was one setting for all
        whole = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(whole)
        return
    before = settings.fp32_precision
    settings.fp32_precision = "none"  # what then still is reduced comes from a wider setting
    inherited = settings.fp32_precision == before
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = "none" if inherited else before


@functools.cache
def _settings(kind: str) -> Any:
    """The setting of a kind of device's float32 matrix products, where torch has one."""
    backend = torch.backends.cuda if kind == "cuda" else torch.backends.mkldnn
    matmul = getattr(backend, "matmul", None)
    return matmul if hasattr(matmul, "fp32_precision") else None


def _reduced(kind: str) -> bool:
    settings = _settings(kind)
    if settings is None:
        return torch.get_float32_matmul_precision() != "highest"
    return settings.fp32_precision not in ("ieee", "none")


def sum64(values: Tensor) -> Tensor:
    """Sum of all elements as a float64 scalar tensor on the values' device."""
    return values.sum(dtype=torch.float64)


def chunk_elements(device: torch.device) -> int:
    """How many elements are best worked on at once."""
    return _CHUNK_ON_CPU if device.type == "cpu" else _CHUNK_ON_DEVICE


def _chunks(flat: Tensor) -> tuple[Tensor, ...]:
    return torch.split(flat, chunk_elements(flat.device))


def dense_inner(delta: Tensor, other: Tensor) -> Tensor:
    """⟨delta, other⟩ = Σ delta ∘ other of two tensors of one shape, a float64 scalar tensor."""
    return dense_inners(delta, [other])[0]


def dense_inners(delta: Tensor, others: Sequence[Tensor]) -> Tensor:
    """(len(others),) float64: ⟨delta, other⟩ with each of several tensors of delta's shape.

    Works chunk by chunk, so that no float32 copy of a low-precision tensor is ever whole.
    """
    if delta.ndim > 1 and not delta.is_contiguous() and delta.mT.is_contiguous():
        # an (in, out) parameter, transposed: flat as it lies, or it would be copied whole
        delta, others = delta.mT, [other.mT for other in others]
    return inners_of_pieces([[t.reshape(-1) for t in (delta, *others)]], len(others))


def inners_of_pieces(pieces: Iterable[Sequence[Tensor]], others: int) -> Tensor:
    """(others,) float64: ⟨first, other⟩ of flat tensors that come piece by piece.

    Args:
        pieces: (first, *others) of each piece, in one precision or several.
        others: how many others there are.
    """
    dots = [dot for first, *rest in pieces for dot in dots_of_chunks(first, rest)]
    return sum_of_dots(dots, others)


def dots_of_chunks(first: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
    """⟨first, other⟩ for each other, chunk after chunk, each while it is in the cache."""
    if first.numel() > chunk_elements(first.device):
        chunks = zip(*(_chunks(t) for t in (first, *others)), strict=True)
        return [dot for mine, *theirs in chunks for dot in dots_of_chunks(mine, theirs)]
    dtype = working_dtype(first, *others)
    # a call of `to` that has nothing to do takes half as long as these products
    wide, *rest = (t if t.dtype == dtype else t.to(dtype) for t in (first, *others))
    return [torch.dot(wide, other) for other in rest]


def sum_of_dots(dots: Sequence[Tensor], others: int) -> Tensor:
    """(others,) float64 sums of what `dots_of_chunks` gave; zeros of nothing."""
    if not dots:
        return torch.zeros(others, dtype=torch.float64)
    return torch.stack(list(dots)).reshape(-1, others).sum(0, dtype=torch.float64)


def count_changed(delta: Tensor) -> Tensor | int:
    """How many elements are not 0: a number on the CPU, elsewhere a scalar tensor that waits."""
    if delta.device.type != "cpu":
        return torch.count_nonzero(delta)
    delta = delta.detach()
    if delta.numel() > _CHUNK_ON_CPU:
        return sum(int(count_changed(chunk)) for chunk in _chunks(delta.reshape(-1)))
    if delta.dtype not in (torch.float32, torch.float64):
        delta = delta.to(torch.float32)  # numpy knows no bfloat16
    # several times faster than torch, which is slow at comparing
    return int(np.count_nonzero(delta.numpy() != 0))


def low_rank_inner(left_OR: Tensor, right_RI: Tensor, left_OS: Tensor, right_SI: Tensor) -> Tensor:
    """⟨left·right, L·R⟩ = Σ (leftᵀL) ∘ (right·Rᵀ), without forming either product.

    Args:
        left_OR: (..., O, R).
        right_RI: (..., R, I).
        left_OS: (..., O, S).
        right_SI: (..., S, I).

    Returns:
        A float64 scalar tensor.
    """
    dtype = working_dtype(left_OR, right_RI, left_OS, right_SI)
    lefts_RS = matmul(left_OR.to(dtype).mT, left_OS.to(dtype))
    rights_RS = matmul(right_RI.to(dtype), right_SI.to(dtype).mT)
    return sum64(lefts_RS * rights_RS)


def dense_low_rank_inner(delta_OI: Tensor, left_OR: Tensor, right_RI: Tensor) -> Tensor:
    """⟨delta, left·right⟩ = Σ (leftᵀ·delta) ∘ right, a float64 scalar tensor.

    Args:
        delta_OI: (..., O, I).
        left_OR: (..., O, R).
        right_RI: (..., R, I).
    """
    dtype = working_dtype(delta_OI, left_OR, right_RI)
    return sum64(matmul(left_OR.to(dtype).mT, delta_OI.to(dtype)) * right_RI.to(dtype))
