"""Inner products of weight updates: pure functions of tensors.

Dimension suffixes: O outputs, I inputs, R and S ranks, N rows of a probe; `...` stands for leading
batch dimensions (fused experts). Products are computed in float32, or in float64 when an operand
is float64; sums over elements are always float64, because a float32 (let alone bf16) sum over
10⁷ elements loses the digits that matter here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# A chunk of this many elements stays in a CPU core's cache; on an accelerator launches dominate.
_CHUNK_ON_CPU = 1 << 16
_CHUNK_ON_DEVICE = 1 << 26


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any operand is float64, otherwise float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product a·b in the operands' own precision, also inside `torch.autocast`.

    Under autocast a plain matmul of float32 operands is computed in bfloat16 or float16.
    """
    if not torch.is_autocast_enabled(a.device.type):
        return a @ b
    with torch.autocast(device_type=a.device.type, enabled=False):
        return a @ b


def sum64(values: Tensor) -> Tensor:
    """Sum of all elements as a float64 scalar tensor on the values' device."""
    return values.sum(dtype=torch.float64)


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    flat = tensor.reshape(-1)
    size = _CHUNK_ON_CPU if flat.device.type == "cpu" else _CHUNK_ON_DEVICE
    yield from torch.split(flat, size)


def dense_inner(delta: Tensor, other: Tensor) -> Tensor:
    """⟨delta, other⟩ = Σ delta ∘ other of two tensors of one shape, a float64 scalar tensor.

    Works chunk by chunk, so that no float32 copy of a low-precision tensor is ever whole.
    """
    dtype = working_dtype(delta, other)
    parts = [
        torch.dot(a.to(dtype), b.to(dtype)).to(torch.float64)
        for a, b in zip(_chunks(delta), _chunks(other), strict=True)
    ]
    if not parts:
        return torch.zeros((), dtype=torch.float64, device=delta.device)
    return torch.stack(parts).sum()


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
