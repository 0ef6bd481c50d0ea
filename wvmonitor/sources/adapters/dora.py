"""DoRA: direction by LoRA, magnitude by a vector of its own (arXiv 2402.09353, equation 5)."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 22


def dora_delta(
    weight: Tensor, left: Tensor, right: Tensor, magnitude: Tensor, *, by_column: bool
) -> Tensor:
    """τ = V·m/‖V‖ − W with V = W + left·right, norms over the inputs.

    Computed as (m/‖V‖ − 1)·W + m/‖V‖·left·right in float64: τ is a small difference of large
    numbers, of which float32 would keep three digits.

    Args:
        weight: W, (out, in), or stored (in, out) where `by_column`.
        left: (rows of W, rank), scaled.
        right: (rank, columns of W).
        magnitude: m, one for each output.
        by_column: whether outputs are columns (Conv1D, embeddings).

    Returns:
        float32 (float64 for a float64 weight), of W's shape.
    """
    rows = max(1, _BLOCK_ELEMENTS // max(1, weight.shape[1]))
    wide_left, wide_right = left.to(torch.float64), right.to(torch.float64)
    wide_magnitude = magnitude.to(device=weight.device, dtype=torch.float64)
    slices = [slice(i, i + rows) for i in range(0, weight.shape[0], rows)]
    squares = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    if by_column:
        for part in slices:
            moved = weight[part].to(torch.float64) + wide_left[part] @ wide_right
            squares += moved.square().sum(dim=0)
    wide = weight.dtype == torch.float64
    delta = torch.empty(
        weight.shape, dtype=torch.float64 if wide else torch.float32, device=weight.device
    )
    for part in slices:
        before = weight[part].to(torch.float64)
        step = wide_left[part] @ wide_right
        if by_column:
            factor = (wide_magnitude / squares.sqrt())[None, :]
        else:
            factor = (wide_magnitude[part] / (before + step).norm(dim=1))[:, None]
        delta[part] = (factor - 1) * before + factor * step
    return delta
