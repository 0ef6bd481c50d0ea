"""LoRA's arithmetic: what one adapted parameter's factors, magnitude and start stand for.

R is the rank. `a` is (R, in) and `b` (out, R), as PEFT has them, for a weight (out, in) or stored
(in, out). E stacked experts have `a` (E·R, in) and `b` (out, R·E) with the expert running fastest
(peft/tuners/lora/layer.py, `ParamWrapper`).

PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA put part of W into B·A at the start and subtract it from W;
`init_lora_weights=False` starts from noise. B·A is then no update: τ = s(BA − B₀A₀). (PEFT's
`path_initial_model_for_weight_conversion` does this on saving; what it writes is ordinary LoRA.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wvmonitor.errors import AdapterError, ShapeMismatchError
from wvmonitor.files.storage import shown
from wvmonitor.vectors import DenseUpdate, LowRankUpdate, Update
from wvmonitor.vectors import update as updates

_BLOCK_ELEMENTS = 1 << 22

ComputedStart = Literal["pissa", "olora"]


@dataclass(frozen=True)
class Layout:
    """How an adapted parameter is stored.

    Attributes:
        shape: the parameter's; three dimensions for stacked experts.
        outputs_last: whether it is (..., in, out): Conv1D, embeddings, some experts.
        transposed: what its update is marked as.
    """

    shape: tuple[int, ...]
    outputs_last: bool
    transposed: bool


@dataclass(frozen=True)
class LoraModule:
    """One adapted parameter.

    Attributes:
        a: (R, in), or (E·R, in).
        b: (out, R), or (out, R·E).
        scale: alpha/R, or as PEFT resolves it.
        magnitude: DoRA's, one for each output.
        start: the same at step 0, or how PEFT computes it from the base; None: at the base itself.
    """

    name: str
    a: Tensor
    b: Tensor
    scale: float
    layout: Layout
    magnitude: Tensor | None = None
    start: LoraModule | ComputedStart | None = None

    def delta(self, base: Callable[[], Tensor]) -> Update:
        """τ of the parameter.

        Args:
            base: gives the weight that training started from; called only where τ depends on it.

        Raises:
            ShapeMismatchError: the factors do not make the parameter's shape.
            AdapterError: PEFT has no such start for this weight, or magnitudes are missing.
        """
        if self.start is None:
            return self._change(base)
        if isinstance(self.start, LoraModule):
            # DoRA since a start is what two large changes leave: float32 keeps too few digits
            wide = self.magnitude is not None
            now, start = self._change(base, wide=wide), self.start._change(base, wide=wide)
        else:
            now = self._change(base)
            rank, by_column = self.a.shape[0], self.layout.outputs_last
            start = start_product(self.start, base(), rank, self.scale, transposed=by_column)
        return updates.add(now, updates.scale(start, -1.0))

    def product(self, *, wide: bool = False) -> LowRankUpdate:
        """s·B·A, in float32, or in float64 where a factor is or `wide`."""
        is_wide = wide or torch.float64 in (self.a.dtype, self.b.dtype)
        dtype = torch.float64 if is_wide else torch.float32
        a, b = self.a.detach().to(dtype), self.b.detach().to(dtype)
        if len(self.layout.shape) == 3:
            experts = self.layout.shape[0]
            a = a.reshape(experts, -1, a.shape[-1])
            b = b.reshape(b.shape[0], -1, experts).permute(2, 0, 1)
        if self.scale != 1:  # into the smaller factor
            a, b = (a * self.scale, b) if a.numel() < b.numel() else (a, b * self.scale)
        left, right = (a.mT, b.mT) if self.layout.outputs_last else (b, a)
        made = LowRankUpdate(left, right, self.layout.transposed)
        if made.shape != torch.Size(self.layout.shape):
            raise ShapeMismatchError(
                f"the factors of {shown(self.name)} make {tuple(made.shape)}, not "
                f"{self.layout.shape}: give the state that this adapter had at step 0"
            )
        return made

    def _change(self, base: Callable[[], Tensor], *, wide: bool = False) -> Update:
        made = self.product(wide=wide)
        if self.magnitude is None:
            return made
        outputs = self.layout.shape[-1 if self.layout.outputs_last else -2]
        if self.magnitude.numel() != outputs:
            raise AdapterError(
                f"DoRA has {self.magnitude.numel()} magnitudes for the {outputs} outputs of "
                f"{shown(self.name)}: re-save the adapter"
            )
        weight = base().to(torch.float64) if wide else base()
        magnitude = self.magnitude.detach().reshape(-1)
        by_column = self.layout.outputs_last
        delta = dora_delta(weight, made.left, made.right, magnitude, by_column=by_column)
        return DenseUpdate(delta, self.layout.transposed)


def bias_delta(bias: Tensor, start: Tensor | None, scale: float) -> DenseUpdate:
    """What `lora_bias=True` adds: the bias of B, scaled, on top of the layer's own."""
    moved = bias.detach().to(torch.float32)
    if start is not None:
        moved = moved - start.to(moved)
    return DenseUpdate(moved * scale)


def dora_delta(
    weight: Tensor, left: Tensor, right: Tensor, magnitude: Tensor, *, by_column: bool
) -> Tensor:
    """τ = V·m/‖V‖ − W with V = W + left·right, norms over the inputs (arXiv 2402.09353, eq. 5).

    Computed as (m/‖V‖ − 1)·W + m/‖V‖·left·right in float64: τ is a small difference of large
    numbers, of which float32 would keep three digits.

    Args:
        weight: W, (out, in), or stored (in, out) where `by_column`.
        left: (rows of W, R), scaled.
        right: (R, columns of W).
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


def start_product(
    start: ComputedStart, weight: Tensor, rank: int, scale: float, *, transposed: bool
) -> LowRankUpdate:
    """s·B₀A₀ as PEFT computes it from the base: unique, though the factors' signs are not.

    Args:
        start: "pissa" (the best approximation of that rank) or "olora" (the first columns of QR).
        weight: the base's weight.
        rank: of the adapter.
        scale: s. PiSSA's factors are divided by it, OLoRA's are not.
        transposed: whether the weight is stored (inputs, outputs).

    Raises:
        AdapterError: PEFT has no such start for this weight.
    """
    if weight.ndim != 2 or (start == "olora" and transposed):
        # PEFT's OLoRA does not turn a Conv1D round, so that its own merge fails there
        raise AdapterError(
            f"a {start} start does not exist for a weight of shape {tuple(weight.shape)}"
            f"{' (in, out)' if transposed else ''}: check the adapter's configuration"
        )
    # float32, as PEFT does: the training started from its result, not from an exact one
    linear = (weight.mT if transposed else weight).to(torch.float32)
    if start == "pissa":
        left, values, right = torch.linalg.svd(linear, full_matrices=False)
        product = LowRankUpdate(left[:, :rank] * values[:rank], right[:rank])
    else:
        left, right = torch.linalg.qr(linear)
        product = LowRankUpdate(left[:, :rank] * scale, right[:rank])
    if not transposed:
        return product
    return LowRankUpdate(product.right.mT, product.left.mT, transposed=True)
