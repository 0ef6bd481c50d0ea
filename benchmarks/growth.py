"""How the time of a measurement grows, one size at a time, beside the time to read its bytes.

Parameters (dense checkpoints of more and more layers), rank, references and modules (adapters of a
mixture of experts, up to the 18,624 modules of a 30B model). A straight line is fitted through the
medians; its slope is set beside the slope of a plain read of the same files. Where the products'
own arithmetic at the machine's float32 rate takes longer than the read, the growth is bound by
arithmetic, and its slope is set beside that floor. One size is held at a time.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import inputs, machine, shapes
from benchmarks.offline import of_unknown_base
from benchmarks.report import Check, Figure, arguments, at_least, at_most, publish
from wvmonitor.references import ReferenceBank
from wvmonitor.sources import read_adapter, read_checkpoints


@dataclass(frozen=True)
class Point:
    """One size: how large, how long, the files read and the arithmetic done."""

    size: float
    run: Callable[[], Any]
    files: tuple[Path, ...]
    gflop: float


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure the four growths."""
    asked = arguments("growth", __doc__, argv)
    torch.set_num_threads(1)
    figures: list[Figure] = []
    parts = {
        "parameters (dense, millions)": ("million", _parameters),
        "rank": ("rank", _ranks),
        "references": ("reference", _references),
        "modules (r=16)": ("module", _modules),
    }
    for name, (unit, part) in parts.items():
        with tempfile.TemporaryDirectory(dir=asked.work) as work:
            points = part(Path(work), asked.part, quick=asked.quick)
            figures += _grown(name, unit, points, asked.rounds, quick=asked.quick)
    with tempfile.TemporaryDirectory(dir=asked.work) as work:
        checks = _checks(Path(work))
    return publish("growth", figures, checks, quick=asked.quick, path=asked.json)


def _grown(
    name: str, unit: str, points: Iterator[Point], rounds: int, *, quick: bool
) -> list[Figure]:
    found = []
    a, b = (torch.randn(256 if quick else 1024, 256 if quick else 1024) for _ in range(2))
    for point in points:
        runs = {
            "ours": point.run,
            "read": lambda p=point: machine.read_through(list(p.files)),  # type: ignore[misc]
            "square": lambda: a @ b,
        }
        taken = machine.paired(runs, rounds)
        middle = {way: statistics.median(seconds) for way, seconds in taken.items()}
        arithmetic = point.gflop * 1e9 * middle["square"] / (2 * len(a) ** 3)
        found.append((point.size, middle["ours"], middle["read"], arithmetic))
    sizes, taken_, reading, arithmetics = (np.array(column) for column in zip(*found, strict=True))
    slope, start = np.polyfit(sizes, taken_, 1)
    fitted = slope * sizes + start
    spread = float(((taken_ - taken_.mean()) ** 2).sum())
    fit = 1 - float(((taken_ - fitted) ** 2).sum()) / spread if spread else 1.0
    per_read, per_flop = (float(np.polyfit(sizes, t, 1)[0]) for t in (reading, arithmetics))
    detail: dict[str, Any] = {
        "sizes": sizes.tolist(),
        "seconds": taken_.tolist(),
        "read_seconds": reading.tolist(),
        "arithmetic_seconds": arithmetics.tolist(),
        "seconds_at_0": float(start),
    }
    figures = [
        at_least(f"{name}: share of variance on a straight line", fit, 0.98, "of 1", **detail)
    ]
    if per_flop > per_read:
        # Beside the read's it would say nothing: more references do not make more to read.
        figures.append(
            Figure(f"{name}: slope (bound by arithmetic)", 1e3 * float(slope), f"ms a {unit}")
        )
        share = per_flop / float(slope)
        figures.append(
            Figure(f"{name}: slope, share of the arithmetic's floor", share, "of the floor")
        )
    else:
        ratio = float(slope) / max(per_read, 1e-12)
        figures.append(at_most(f"{name}: slope beside the read's", ratio, 3, "×", per=unit))
    return figures


def _parameters(work: Path, part: int, *, quick: bool) -> Iterator[Point]:
    """Dense checkpoints of more and more layers, against one dense reference."""
    for layers in (1, 2, 3) if quick else (4, 8, 16, 24):
        shape = shapes.TINY if quick else shapes.QWEN_05B
        shape = shape.with_layers(layers).part(part)
        linears = dict(shape.linears())
        base = inputs.write_checkpoint(work / "base", linears, 0)
        run = inputs.write_checkpoint(work / "run", linears, 1, moved=0.01)
        inputs.bank_of([inputs.reference("r", read_checkpoints(base, run))]).save(work / "bank")
        bank = ReferenceBank.load(work / "bank")

        def measure(base: Path = base, run: Path = run, bank: ReferenceBank = bank) -> None:
            bank.measure(of_unknown_base(read_checkpoints(base, run)))

        size = sum(o * i for o, i in linears.values())
        files = [folder / "model.safetensors" for folder in (base, run)]
        files.append(work / "bank" / "r" / "reference.safetensors")
        yield Point(size / 1e6, measure, tuple(files), 4 * size / 1e9)
        shutil.rmtree(work / "bank")


def _ranks(work: Path, part: int, *, quick: bool) -> Iterator[Point]:
    """Adapters of rising rank against four references of rank 32."""
    shape = shapes.TINY if quick else shapes.QWEN_05B.part(part)
    linears = shape.linears()
    bank = inputs.bank_of(
        inputs.reference(f"r{i}", inputs.factors(linears, 32, i)) for i in range(4)
    )
    for rank in (2, 4, 8) if quick else (8, 16, 32, 64):
        folder = inputs.write_adapter(work / str(rank), linears, rank, rank)
        yield _adapter(rank, folder, bank, shape.lora_parameters(1), rank, 4 * 32)


def _references(work: Path, part: int, *, quick: bool) -> Iterator[Point]:
    """Banks of more and more references of rank 64, one adapter of rank 32."""
    shape = shapes.TINY if quick else shapes.QWEN_05B.part(part)
    linears = shape.linears()
    folder = inputs.write_adapter(work / "run", linears, 32, 1)
    for count in (1, 2, 4) if quick else (1, 4, 8, 16):
        bank = inputs.bank_of(
            inputs.reference(f"r{i}", inputs.factors(linears, 64, i)) for i in range(count)
        )
        yield _adapter(count, folder, bank, shape.lora_parameters(1), 32, 64 * count)


def _modules(work: Path, part: int, *, quick: bool) -> Iterator[Point]:
    """Adapters of a mixture of experts with more and more layers, one reference of rank 4."""
    whole = shapes.TINY if quick else shapes.QWEN_30B_MOE
    for layers in (1, 2, 3) if quick else (8, 16, 48):
        shape = whole.with_layers(layers).part(part)
        linears = shape.linears()
        folder = inputs.write_adapter(work / "run", linears, 16, layers, dtype=torch.bfloat16)
        bank = inputs.bank_of([inputs.reference("r", inputs.factors(linears, 4, 7))])
        yield _adapter(len(linears), folder, bank, shape.lora_parameters(1), 16, 4)


def _adapter(
    size: float, folder: Path, bank: ReferenceBank, width: int, rank: int, stacked: int
) -> Point:
    """`width` is the sum of inputs and outputs, `stacked` all references' ranks together."""
    gflop = 2 * rank * (stacked + rank) * width / 1e9
    files = (folder / "adapter_model.safetensors",)
    return Point(size, lambda: bank.measure(read_adapter(folder)), files, gflop)


def _checks(work: Path) -> list[Check]:
    """An adapter's norm as a reading has it, and as the dense float64 matrices have it."""
    linears = shapes.TINY.linears()
    tau = read_adapter(inputs.write_adapter(work / "checked", linears, 4, 9))
    bank = inputs.bank_of([inputs.reference("r", inputs.factors(linears, 8, 3))])
    expected = sum(float((inputs.dense(u) ** 2).sum()) for _, u in tau.updates()) ** 0.5
    return [Check("‖τ‖", bank.measure(tau).norm(), expected)]


if __name__ == "__main__":
    main()
