"""Checkpoints that were merged into a rounded copy of their base, and those that were not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

from tests.sources import zoo
from wvmonitor.scan.scan import scan
from wvmonitor.sources import read_checkpoints
from wvmonitor.sources.folder import ModelFolder
from wvmonitor.sources.rounding import rounded_base
from wvmonitor.testing import planted_bank
from wvmonitor.vectors import TaskVector

# For the table of docs/what-is-measured.md: kind, where it comes from, read or refused, the test.
MEASURED = [
    (
        "a LoRA merged into the dequantised base: NF4, FP4 (plain, double), int8",
        "QLoRA with bitsandbytes",
        "read: the rounding is redone and left out",
        "test_a_merge_into_a_rounded_base_is_measured_from_that_base",
    ),
    (
        "the same with integers in groups, MXFP4, NVFP4, float8",
        "GPTQ, AWQ, HQQ, microscaling",
        "`unknown`, with the reason",
        "test_a_merge_into_a_base_rounded_otherwise_is_never_judged",
    ),
]
Rounding = Callable[[Tensor], Tensor]
# Packed codes and the largest weight of each block, as bitsandbytes 0.50.2 makes them (on a CPU)
# of `WEIGHT`; the second line with `compress_statistics`, whose codes are the same.
WEIGHT = torch.sin(torch.arange(256) * 1.7) * torch.cos(torch.arange(256) * 0.31)
WEIGHT = (WEIGHT * 0.05 * (1 + torch.arange(256) / 256)).reshape(4, 64)
ABSMAX = (0.05949745327234268, 0.07212052494287491, 0.08474651724100113, 0.09721587598323822)
ROUGH = (0.05963032692670822, 0.07212048768997192, 0.08466970920562744, 0.09715986996889114)
PACKED = {
    "NF4": "7e52979b24e918b7942ec15d7673be12ea3757e40de2497c809f31b98915f70ac6754db06e6474bd12ea27"
    "88c31ed14b7a61be21da6837f50cd4665e908f5286ab14f818a7a32ec15d7762be12ea4748e41dd2586d70"
    "af32a89a15f60ac6933ea06e6564cd13e92768d31ed15a7b61be22c97827f40cc4755e908e4385cc04f7",
    "FP4": "02ed6164ac36a1496fd25af21e9d42aa27c9e12fb52df6941b63ca4616ae39b75e1fc24be29f8f45ad26d9"
    "115ca25af4179a43da57e1d93eb42ceee26b13fd6974ac31a1717cd25ae5919d42ad27c9f12cb52de1951b"
    "73cd7166ae39b7496cc27b929e9c45ad26d1965da25ae794ea42dd5691d83fb45f9ff26b62fc1e44bc31",
}
VALUES = {
    "NF4": (
        *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ),
    "FP4": tuple(s * v / 12 for s in (1, -1) for v in (0, 0.0625, 8, 12, 4, 6, 2, 3)),
}


def four_bit(kind: str, absmax: tuple[float, ...]) -> Tensor:
    """`WEIGHT` as bitsandbytes gives it back."""
    codes = torch.tensor([VALUES[kind][int(digit, 16)] for digit in PACKED[kind]])
    return codes.reshape(4, 64) * torch.tensor(absmax)[:, None]


def int8(weight: Tensor) -> Tensor:
    """LLM.int8's rounding, one row at a time (bitsandbytes, `int8_vectorwise_quant`)."""
    rows = []
    for row in weight.half().float():
        largest = float(row.abs().max())
        rows.append(torch.round(row * (127 / largest)) * largest / 127)
    return torch.stack(rows)


def blockwise(grid: list[float], block: int) -> Rounding:
    """Nearest of the grid's values times the block's largest weight, half-way the lower."""
    values = torch.tensor(grid)

    def rounded(weight: Tensor) -> Tensor:
        blocks = weight.float().reshape(-1, block)
        largest = blocks.abs().amax(1, keepdim=True)
        above = (blocks * (1 / largest))[..., None] > (values[:-1] + values[1:]) / 2
        nearest = values[above.sum(-1)]
        return (nearest * largest).reshape(weight.shape)

    return rounded


def grouped(weight: Tensor) -> Tensor:
    """Four bits in groups of 32 with a zero point, as GPTQ's files hold them."""
    blocks = weight.float().reshape(-1, 32)
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    scale = (high - low) / 15
    zero = torch.round(-low / scale)
    codes = (torch.round(blocks / scale) + zero).clamp(0, 15)
    return ((codes - zero) * scale).view_as(weight)


def microscaled(weight: Tensor) -> Tensor:
    """MXFP4: blocks of 32 with a power of two."""
    blocks = weight.float().reshape(-1, 32)
    scale = 2.0 ** (torch.floor(torch.log2(blocks.abs().amax(1, keepdim=True))) - 2)
    grid = torch.tensor([s * v for s in (-1, 1) for v in (0, 0.5, 1, 1.5, 2, 3, 4, 6)])
    return (grid[((blocks / scale)[..., None] - grid).abs().argmin(-1)] * scale).view_as(weight)


def float8(weight: Tensor) -> Tensor:
    """One float8 scale a row."""
    scale = weight.float().abs().amax(1, keepdim=True) / 448
    return (weight.float() / scale).to(torch.float8_e4m3fn).float() * scale


EXACT: dict[str, Rounding] = {
    "NF4": blockwise(list(VALUES["NF4"]), 64),
    "FP4": blockwise(sorted({*VALUES["FP4"]}), 64),
    "int8": int8,
}
SIMILAR: dict[str, Rounding] = {"int4": grouped, "MXFP4": microscaled, "float8": float8}


def merged(
    folder: Path, kind: str, rounding: Rounding | None, dtype: torch.dtype = torch.float32
) -> tuple[Path, Path, zoo.Weights]:
    """A base, a checkpoint with a small adapter merged into a rounded copy of it, and that change.

    The change is a twentieth of the rounding of 4 bits, as a short fine-tune's.
    """
    model = zoo.build(kind)
    model.to(dtype).save_pretrained(folder / "base")
    weights = dict(model.named_parameters())
    targets = [n for n, _ in model.named_modules() if n.endswith(("_proj", "c_attn", "c_fc"))]
    lora = peft.get_peft_model(zoo.build(kind).to(dtype), peft.LoraConfig(target_modules=targets))
    generator = torch.Generator().manual_seed(3)
    change = {}
    for path in targets:
        module = lora.get_submodule(f"base_model.model.{path}")
        for factor in (module.lora_A, module.lora_B):
            factor["default"].weight.data.normal_(generator=generator)
        weight = weights[f"{path}.weight"]
        delta = module.get_delta_weight("default").detach().double()
        change[f"{path}.weight"] = delta * (0.005 * float(weight.detach().norm() / delta.norm()))
    with torch.no_grad():
        for name, delta in change.items():
            turned = kind == "gpt2"
            weight = weights[name].detach()
            held = (weight.mT if turned else weight).contiguous()
            copy = held if rounding is None else rounding(held.float()).to(dtype)
            whole = (copy.mT if turned else copy).double() + delta
            weights[name].copy_(whole.to(dtype))
    model.save_pretrained(folder / "end")
    return folder / "base", folder / "end", change


def cosine(tau: TaskVector, truth: zoo.Weights) -> float:
    """Of the blocks' linear weights, in float64."""
    got = {n: zoo.updates.to_dense(u).double() for n, u in tau.updates()}
    product = sum(float((got[n] * t).sum()) for n, t in truth.items())
    size = math.sqrt(sum(float(got[n].square().sum()) for n in truth))
    return product / size / math.sqrt(sum(float(t.square().sum()) for t in truth.values()))


@pytest.mark.parametrize("absmax", [ABSMAX, ROUGH])
@pytest.mark.parametrize("kind", ["NF4", "FP4"])
def test_four_bits_are_rounded_as_bitsandbytes_does(
    kind: str, absmax: tuple[float, ...], tmp_path: Path
) -> None:
    """Its codes and scales, plain and double, are redone to the last bit of float32."""
    from wvmonitor.sources.rounding import _EXACT

    suffix = "" if absmax is ABSMAX else " with double quantisation"
    torch.testing.assert_close(
        _EXACT[kind + suffix](WEIGHT), four_bit(kind, absmax), rtol=2e-6, atol=1e-8
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", EXACT)
def test_a_merge_into_a_rounded_base_is_measured_from_that_base(
    name: str, kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Where the rounding can be redone it is left out of the change, and that is said."""
    base, end, change = merged(tmp_path, kind, EXACT[name], dtype)
    tau = read_checkpoints(base, end)
    assert tau.origin.unmeasurable is None
    assert any(f"rounding of {name}" in w and "redone" in w for w in tau.origin.warnings)
    # bfloat16 itself rounds by more than half of so small a change
    assert cosine(tau, change) > (0.999 if dtype == torch.float32 else 0.9)


@pytest.mark.parametrize("name", SIMILAR)
def test_a_merge_into_a_base_rounded_otherwise_is_never_judged(name: str, tmp_path: Path) -> None:
    """What rounding drowned and cannot be redone is unknown, with the reason, in every verdict."""
    base, end, _ = merged(tmp_path, "llama", SIMILAR[name])
    tau = read_checkpoints(base, end)
    assert tau.origin.unmeasurable is not None
    assert "merged into the dequantised base" in tau.origin.unmeasurable
    assert f"rounding of {name}" in tau.origin.unmeasurable
    (result,) = scan([end], planted_bank(base), base=base)
    assert result.verdict == "unknown"
    assert all("dequantised" in r.reason for r in result.references.values())


def trained(model: nn.Module, rate: float, steps: int) -> None:
    """Real optimiser steps on random tokens."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for step in range(steps):
        tokens = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(step))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [1e-4, 1e-2])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_what_was_trained_is_not_taken_for_rounding(
    lora: bool, rate: float, dtype: torch.dtype, bases: Callable[..., Path], tmp_path: Path
) -> None:
    """Full fine-tunes and ordinary merges, weak and strong, in either precision, are measured."""
    model = zoo.build("llama")
    if lora:
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=4))
    trained(model, rate, 10)
    plain = model.merge_and_unload() if lora else model
    plain.to(dtype).save_pretrained(tmp_path)
    assert rounded_base(ModelFolder(bases("llama")), ModelFolder(tmp_path)) is None
    tau = read_checkpoints(bases("llama"), tmp_path)
    assert tau.origin.unmeasurable is None
    assert not any("rounding of" in warning for warning in tau.origin.warnings)


@pytest.mark.parametrize("name", EXACT | SIMILAR)
def test_a_fine_tune_of_a_rounded_base_is_measured_from_it(name: str, tmp_path: Path) -> None:
    """A base that is itself a dequantised copy is a base like any other."""
    model = zoo.build("llama")
    with torch.no_grad():
        for name_, parameter in model.named_parameters():
            if name_.endswith("_proj.weight"):
                parameter.copy_((EXACT | SIMILAR)[name](parameter))
    model.save_pretrained(tmp_path / "base")
    before = zoo.weights_of(model)
    trained(model, 1e-3, 5)
    model.save_pretrained(tmp_path / "end")
    tau = read_checkpoints(tmp_path / "base", tmp_path / "end")
    assert tau.origin.unmeasurable is None
    zoo.assert_equal_change(tau, zoo.change(zoo.weights_of(model), before))
