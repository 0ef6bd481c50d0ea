"""Whether a checkpoint was made from a rounded copy of its base, and what that copy was.

After QLoRA people merge the adapter into the *dequantised* 4-bit base. Against the true base such a
checkpoint's change is W_q − W + ΔW: the rounding of every weight (‖W_q − W‖/‖W‖ is about 0.09 for
NF4) beside a ΔW a tenth as large. It is told by redoing the rounding: a change that was trained is
not correlated with W_q − W, a change that contains it is, and c = ⟨τ, W_q − W⟩/‖W_q − W‖² is 1.

Grids and block sizes: bitsandbytes' 4-bit types (arXiv 2305.14314, section 3) and LLM.int8
(arXiv 2208.07339); OCP Microscaling (MX) 1.0 for MXFP4; groups of integers as GPTQ's and AWQ's
files have them; float8 as compressed-tensors has it.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wvmonitor.reading import component_of
from wvmonitor.sources.folder import ModelFolder

_LAYERS = 6  # looked at, spread over the model
_WHOLE_LAYERS = 2  # of them, where the rounding is redone
_ELEMENTS = 1 << 14  # of each: the correlation of unrelated numbers is then 0.01
# A trained change has a correlation of 0 with the rounding; at 0.2 a cosine is off by 2 %.
_CORRELATED = 0.2
_MOST_FLIPPED = 0.05  # share of ‖ΔW‖² in weights that another rounding would have put elsewhere
_ALIKE = 0.95  # double quantisation is this close to plain, and closer
_DEVIATIONS = 4  # standard deviations of c by which chance may move it
_FOUR_BIT_BLOCK = 64
_GROUPS = (32, 64, 128)

_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4 = tuple(s * v / 12 for s in (-1, 1) for v in (0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0))
_E2M1 = tuple(s * v for s in (-1, 1) for v in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))

Rounding = Callable[[Tensor], Tensor]
"""W_q of a weight (out, in), in float32."""


def _four_bit(values: Sequence[float], *, double: bool = False) -> Rounding:
    """As bitsandbytes' `quantize_4bit` and back; `double`: its `compress_statistics`."""
    grid = torch.tensor(sorted({*values, 0.0}))

    def rounded(weight: Tensor) -> Tensor:
        blocks, pad = _blocks(weight.reshape(1, -1), _FOUR_BIT_BLOCK)
        largest = blocks.abs().amax(-1, keepdim=True)
        scaled = blocks * (1 / largest.clamp(min=1e-38))
        scale = _rounded_statistics(largest.reshape(-1)).view_as(largest) if double else largest
        made = _nearest(scaled, grid) * scale
        return made.reshape(-1)[: made.numel() - pad].reshape(weight.shape)

    return rounded


def _rounded_statistics(largest: Tensor) -> Tensor:
    """The blocks' absmax after it was itself stored in 8 bits, in blocks of 256 about its mean."""
    offset = largest.mean()
    blocks, pad = _blocks((largest - offset).reshape(1, -1), 256)
    scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-38)
    made = _nearest(blocks * (1 / scale), _dynamic_grid()) * scale
    return made.reshape(-1)[: made.numel() - pad] + offset


@functools.cache
def _dynamic_grid() -> Tensor:
    """The signed 8-bit type with a dynamic exponent (arXiv 2110.02861, section 2.2)."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = (10 ** (exponent - 6) * (edges[:-1] + edges[1:]) / 2).tolist()
        values += [*means, *(-m for m in means)]
    return torch.tensor(sorted(values), dtype=torch.float32)


def _int8(weight: Tensor) -> Tensor:
    """LLM.int8: one scale a row, of the weight in float16."""
    half = weight.to(torch.float16).to(torch.float32)
    scale = half.abs().amax(1, keepdim=True).clamp(min=1e-38)
    return torch.round(half * (127.0 / scale)) * scale / 127.0


def _mxfp4(weight: Tensor) -> Tensor:
    blocks, pad = _blocks(weight, 32)
    largest = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-38)
    scale = torch.exp2(torch.floor(torch.log2(largest)) - 2)
    grid = torch.tensor(sorted({*_E2M1, 0.0}))
    return _rows(_nearest(blocks / scale, grid) * scale, pad)


def _nvfp4(weight: Tensor) -> Tensor:
    blocks, pad = _blocks(weight, 16)
    outer = (weight.abs().max() / (6 * 448)).clamp(min=1e-38)
    scale = blocks.abs().amax(-1, keepdim=True) / 6 / outer
    scale = scale.to(torch.float8_e4m3fn).to(torch.float32).clamp(min=2**-9) * outer
    return _rows(_nearest(blocks / scale, torch.tensor(sorted({*_E2M1, 0.0}))) * scale, pad)


def _integers(bits: int, group: int, *, whole_zero: bool = True) -> Rounding:
    """Groups of integers along the inputs, with a zero point that is itself one of them or not."""

    def rounded(weight: Tensor) -> Tensor:
        blocks, pad = _blocks(weight, group)
        low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
        if whole_zero:
            low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / (2**bits - 1)).clamp(min=1e-38)
        zero = torch.round(low / scale) * scale if whole_zero else low
        return _rows(torch.round((blocks - zero) / scale) * scale + zero, pad)

    return rounded


def _symmetric(bits: int, group: int) -> Rounding:
    """Groups of integers along the inputs, about zero."""

    def rounded(weight: Tensor) -> Tensor:
        blocks, pad = _blocks(weight, group)
        half = 2 ** (bits - 1)
        scale = (blocks.abs().amax(-1, keepdim=True) / (half - 0.5)).clamp(min=1e-38)
        return _rows(torch.round(blocks / scale).clamp(-half, half - 1) * scale, pad)

    return rounded


def _float8(group: int | None) -> Rounding:
    def rounded(weight: Tensor) -> Tensor:
        blocks, pad = _blocks(weight, group or weight.shape[1])
        scale = (blocks.abs().amax(-1, keepdim=True) / 448).clamp(min=1e-38)
        return _rows((blocks / scale).to(torch.float8_e4m3fn).to(torch.float32) * scale, pad)

    return rounded


# Those that can be redone to the last bit from the weights alone, ...
_EXACT: Mapping[str, Rounding] = {
    "NF4": _four_bit(_NF4),
    "NF4 with double quantisation": _four_bit(_NF4, double=True),
    "FP4": _four_bit(_FP4),
    "FP4 with double quantisation": _four_bit(_FP4, double=True),
    "int8": _int8,
}
# ... and those that calibration data or rounding of scales may have moved a little.
_SIMILAR: Mapping[str, Rounding] = {
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
    **{f"int{b} in groups of {g}": _integers(b, g) for b in (4, 8) for g in _GROUPS},
    **{
        f"int4 in groups of {g} with a real zero": _integers(4, g, whole_zero=False)
        for g in _GROUPS
    },
    **{f"symmetric int{b} in groups of {g}": _symmetric(b, g) for b in (4, 8) for g in _GROUPS},
    "float8": _float8(None),
    "float8 in blocks of 128": _float8(128),
}


@dataclass(frozen=True)
class RoundedBase:
    """A rounded copy of the base that a checkpoint was made from.

    Attributes:
        correlation: of the checkpoint's change with the rounding, the middle of the layers seen.
        ratios: the smallest and largest ‖τ‖/‖W‖ among them.
        redone: gives that copy of a weight (out, in) exactly; None where it cannot be had.
    """

    kind: str
    correlation: float
    ratios: tuple[float, float]
    redone: Rounding | None

    def __str__(self) -> str:
        low, high = self.ratios
        return (
            f"its change is the rounding of {self.kind} in the layers looked at (correlation "
            f"{self.correlation:.2f}, ‖τ‖/‖W‖ {low:.3g} to {high:.3g}), as of an adapter that was "
            "merged into the dequantised base"
        )


def rounded_base(start: ModelFolder, end: ModelFolder) -> RoundedBase | None:
    """The rounded copy of `start` that `end` was made from, or None where it was made from itself.

    A few rows of a few linear layers are read; where they are correlated with a rounding, two
    layers whole.
    """
    names = [n for n in start.names() if is_linear(start, end, n)]
    spread = names[:: max(1, len(names) // _LAYERS)][:_LAYERS]
    samples = {n: pair for n in spread if (pair := _moved(start, end, n, _ELEMENTS)) is not None}
    if not samples:
        return None
    changes = {n: t.double() - w.double() for n, (w, t) in samples.items()}
    table = {
        kind: {n: _correlation(changes[n], redo(w) - w) for n, (w, _) in samples.items()}
        for kind, redo in {**_EXACT, **_SIMILAR}.items()
    }
    medians = {kind: statistics.median(by_layer.values()) for kind, by_layer in table.items()}
    kind = max(medians, key=medians.__getitem__)
    if medians[kind] < _CORRELATED:
        return None
    ratios = [float((t - w).norm() / w.norm()) for w, t in samples.values()]
    limits = (min(ratios), max(ratios))
    # where least was trained the rounding shows best
    clearest = sorted(samples, key=lambda n: -table[kind][n])[:_WHOLE_LAYERS]
    pairs = [pair for n in clearest if (pair := _moved(start, end, n, None)) is not None]
    exact = _exact(pairs, [k for k in _EXACT if medians[k] > _ALIKE * medians[kind]])
    if exact is None:
        return RoundedBase(kind, medians[kind], limits, None)
    return RoundedBase(exact[0], medians[kind], limits, exact[1])


def since_rounding(weight: Tensor, trained: Tensor, redone: Rounding) -> Tensor:
    """`trained` − the rounded copy of `weight`, or − `weight` itself where that was not rounded.

    Args:
        weight: W (out, in).
        trained: of the same shape.
        redone: gives the rounded copy.
    """
    copy = redone(weight).to(trained.dtype).to(torch.float32)  # as it was held when it was added to
    plain = trained.to(torch.float32) - weight.to(torch.float32)
    rounding = copy - weight.to(torch.float32)
    # chance moves the slope by this much; beyond 0.1 the rounding is a trifle beside the change
    chance = float(plain.norm() / rounding.norm().clamp(min=1e-38)) / plain.numel() ** 0.5
    was_rounded = chance > 0.1 or _slope(plain, rounding) > 0.5
    return plain - rounding if was_rounded else plain


def _exact(
    pairs: Sequence[tuple[Tensor, Tensor]], likely: Sequence[str]
) -> tuple[str, Rounding] | None:
    """The rounding that, taken off whole layers, leaves nothing of itself."""
    best: tuple[float, str, Rounding] | None = None
    for kind in likely:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):

            def cast(
                w: Tensor, redo: Rounding = _EXACT[kind], dtype: torch.dtype = dtype
            ) -> Tensor:
                return redo(w.to(dtype).to(torch.float32))

            left = _left([(w, t, cast(w).to(t.dtype)) for w, t in pairs])
            if left is not None and (best is None or left < best[0] * (1 - 1e-3)):
                best = (left, kind, cast)
    return None if best is None else (best[1], best[2])


def _left(layers: Sequence[tuple[Tensor, Tensor, Tensor]]) -> float | None:
    """‖τ − rounding‖²/‖rounding‖² if the rounding leaves no trace of itself, else None.

    A share f of weights that were rounded to the next step instead takes 6f off the slope, and
    leaves 12f·‖rounding‖² behind: at most a twentieth of what is left may be that.
    """
    flat = [
        torch.cat([x.double().reshape(-1) for x in tensors])
        for tensors in zip(*layers, strict=True)
    ]
    weight, trained, copy = flat
    rounding, change = copy - weight, trained - weight
    size = float(rounding.square().sum())
    left = float((change - rounding).square().sum()) / size
    error = min(_MOST_FLIPPED / 2 * left, 0.1) + _DEVIATIONS * (left / weight.numel()) ** 0.5
    return left if abs(float((change * rounding).sum()) / size - 1) <= error else None


def _moved(
    start: ModelFolder, end: ModelFolder, name: str, elements: int | None
) -> tuple[Tensor, Tensor] | None:
    """A layer's weight and what became of it, (out, in); its first rows only, if so asked.

    None where it has not changed, or is not finite.
    """
    rows, columns = start.shape(name)
    if elements:
        rows = min(rows, max(1, elements // max(columns, 1)))
    turned = start.is_conv1d(name)  # its blocks run over (out, in)
    count = None if turned else rows * columns
    pair = []
    for folder in (start, end):
        blocks = folder.stream(name, 1 << 22, count)
        whole = torch.cat([block.reshape(-1).clone() for block in blocks]).view(-1, columns)
        pair.append((whole.mT if turned else whole)[:rows].contiguous())
    weight, trained = pair[0].float(), pair[1]
    if weight.shape != trained.shape or not bool(torch.isfinite(weight + trained).all()):
        return None
    return None if weight.equal(trained.float()) or not weight.any() else (weight, trained)


def is_linear(start: ModelFolder, end: ModelFolder, name: str) -> bool:
    """Whether a parameter is a linear layer's weight in a block, which quantisers round."""
    return all(
        name in folder
        and folder.key(name) is not None
        and folder.dtype(name).is_floating_point
        and len(folder.shape(name)) == 2
        and component_of(name, folder.shape(name)) == "blocks"
        for folder in (start, end)
    )


def _slope(change: Tensor, rounding: Tensor) -> float:
    size = float(rounding.double().square().sum())
    return float((change.double() * rounding.double()).sum()) / size if size else 0.0


def _correlation(change: Tensor, rounding: Tensor) -> float:
    mine, theirs = change.reshape(-1), rounding.reshape(-1).double()
    size = float(mine.norm() * theirs.norm())
    return float(mine.dot(theirs)) / size if size else 0.0


def _blocks(weight: Tensor, size: int) -> tuple[Tensor, int]:
    """(rows, blocks, size), and how many zeros were put behind each row."""
    pad = -weight.shape[1] % size
    padded = torch.nn.functional.pad(weight.to(torch.float32), (0, pad))
    return padded.reshape(weight.shape[0], -1, size), pad


def _rows(blocks: Tensor, pad: int) -> Tensor:
    rows = blocks.reshape(blocks.shape[0], -1)
    return rows[:, : rows.shape[1] - pad]


def _nearest(values: Tensor, grid: Tensor) -> Tensor:
    """The nearest of the grid's values, the lower one half-way."""
    return grid[torch.bucketize(values.contiguous(), (grid[:-1] + grid[1:]) / 2)]
