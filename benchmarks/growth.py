"""How the time of a measurement grows, one size at a time, beside the time to read its bytes.

Parameters (dense checkpoints of more and more layers), rank, references and modules (adapters of a
mixture of experts, up to the 18,624 modules of a 30B model). A straight line is fitted through the
medians; its slope is set beside the slope of a plain read of the same files. Where the products'
own arithmetic at the machine's float32 rate takes longer than the read, the growth is bound by
arithmetic, and its slope is set beside that floor.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import inputs, machine, shapes
from benchmarks.report import Check, Figure, arguments, at_least, at_most, publish
from wvmonitor.sources import read_adapter, read_checkpoints
from wvmonitor.vectors import TaskVector, Update


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
    checks: list[Check] = []
    for part in (_parameters, _ranks, _references, _modules):
        with tempfile.TemporaryDirectory(dir=asked.work) as work:
            name, unit, points = part(Path(work), quick=asked.quick)
            figures += _grown(name, unit, points, quick=asked.quick)
            if part is _ranks:
                checks += _rank_checks(Path(work))
            shutil.rmtree(work)
            Path(work).mkdir()
    return publish("growth", figures, checks, quick=asked.quick, path=asked.json)


def _grown(name: str, unit: str, points: list[Point], *, quick: bool) -> list[Figure]:
    ours = [[] for _ in points]  # type: list[list[float]]
    reads = [[] for _ in points]  # type: list[list[float]]
    rates = []
    for round_ in range(2 if quick else 6):
        rates.append(machine.matrix_rate(256 if quick else 1024))
        for i, point in enumerate(points):
            mine = machine.seconds(point.run)
            read = machine.seconds(lambda p=point: machine.read_through(list(p.files)))
            if round_:  # the first warms up
                ours[i].append(mine)
                reads[i].append(read)
    taken = np.array([np.median(t) for t in ours])
    reading = np.array([np.median(t) for t in reads])
    sizes = np.array([p.size for p in points])
    arithmetic = np.array([p.gflop for p in points]) * 1e9 / float(np.median(rates))
    slope, start = np.polyfit(sizes, taken, 1)
    fitted = slope * sizes + start
    spread = float(((taken - taken.mean()) ** 2).sum())
    fit = 1 - float(((taken - fitted) ** 2).sum()) / spread if spread else 1.0
    per_read, per_flop = (float(np.polyfit(sizes, t, 1)[0]) for t in (reading, arithmetic))
    detail: dict[str, Any] = {
        "sizes": sizes.tolist(),
        "seconds": taken.tolist(),
        "read_seconds": reading.tolist(),
        "arithmetic_seconds": arithmetic.tolist(),
        "seconds_at_0": float(start),
    }
    ratio_to_read = float(slope) / max(per_read, 1e-12)
    bound = per_flop > per_read
    figures = [
        at_least(f"{name}: share of variance on a straight line", fit, 0.98, "of 1", **detail)
    ]
    if bound:
        figures.append(
            Figure(
                f"{name}: slope beside the read's (bound by arithmetic)",
                ratio_to_read,
                f"× ({float(slope) * 1e6:.3g} µs a {unit})",
            )
        )
        share = per_flop / float(slope)
        figures.append(
            Figure(f"{name}: slope, share of the arithmetic's floor", share, "of the floor")
        )
    else:
        figures.append(at_most(f"{name}: slope beside the read's", ratio_to_read, 3, "×", per=unit))
    return figures


def _parameters(work: Path, *, quick: bool) -> tuple[str, str, list[Point]]:
    """Dense checkpoints of more and more layers, against one dense reference."""
    points = []
    for layers in (1, 2, 3) if quick else (4, 8, 16, 24):
        shape = (shapes.TINY if quick else shapes.QWEN_05B).with_layers(layers)
        linears = dict(shape.linears())
        base = inputs.write_checkpoint(work / f"base-{layers}", linears, 0, dtype=torch.float32)
        run = inputs.write_checkpoint(
            work / f"run-{layers}", linears, 1, moved=0.01, dtype=torch.float32
        )
        updates: dict[str, Update] = dict(read_checkpoints(base, run).held().updates())
        bank = inputs.bank_of([inputs.reference("r", updates)])

        def measure(base: Path = base, run: Path = run, bank: Any = bank) -> None:
            bank.measure(unnamed(read_checkpoints(base, run)))

        size = sum(o * i for o, i in linears.values())
        files = (base / "model.safetensors", run / "model.safetensors")
        points.append(Point(size / 1e6, measure, files, 4 * size / 1e9))
    return "parameters (dense, millions)", "million", points


def _ranks(work: Path, *, quick: bool) -> tuple[str, str, list[Point]]:
    """Adapters of rising rank against four references of rank 32."""
    shape = shapes.TINY if quick else shapes.QWEN_05B
    linears = shape.linears()
    bank = inputs.bank_of(
        [inputs.reference(f"r{i}", inputs.factors(linears, 32, i)) for i in range(4)]
    )
    points = []
    for rank in (2, 4, 8) if quick else (8, 16, 32, 64):
        folder = inputs.write_adapter(work / str(rank), linears, rank, rank)
        points.append(_adapter(rank, folder, bank, shape.lora_parameters(1), rank, 4 * 32))
    return "rank", "rank", points


def _references(work: Path, *, quick: bool) -> tuple[str, str, list[Point]]:
    """Banks of more and more references of rank 64, one adapter of rank 32."""
    shape = shapes.TINY if quick else shapes.QWEN_05B
    linears = shape.linears()
    folder = inputs.write_adapter(work / "run", linears, 32, 1)
    made = [inputs.reference(f"r{i}", inputs.factors(linears, 64, i)) for i in range(16)]
    points = []
    for count in (1, 2, 4) if quick else (1, 4, 8, 16):
        bank = inputs.bank_of(made[:count])
        points.append(_adapter(count, folder, bank, shape.lora_parameters(1), 32, 64 * count))
    return "references", "reference", points


def _modules(work: Path, *, quick: bool) -> tuple[str, str, list[Point]]:
    """Adapters of a mixture of experts with more and more layers, one reference of rank 16."""
    whole = shapes.TINY if quick else shapes.QWEN_30B_MOE
    points = []
    for layers in (1, 2, 3) if quick else (6, 12, 24, 48):
        shape = whole.with_layers(layers)
        linears = shape.linears()
        folder = inputs.write_adapter(work / str(layers), linears, 16, layers)
        bank = inputs.bank_of([inputs.reference("r", inputs.factors(linears, 16, 7))])
        points.append(_adapter(len(linears), folder, bank, shape.lora_parameters(1), 16, 16))
    return "modules (r=16)", "module", points


def _adapter(size: float, folder: Path, bank: Any, width: int, rank: int, stacked: int) -> Point:
    """`width` is the sum of inputs and outputs, `stacked` all references' ranks together."""
    gflop = 2 * rank * (stacked + rank) * width / 1e9
    files = (folder / "adapter_model.safetensors",)
    return Point(size, lambda: bank.measure(read_adapter(folder)), files, gflop)


def unnamed(tau: TaskVector) -> TaskVector:
    """The same vector without its base's digest, which no bank of these benchmarks names."""
    from dataclasses import replace

    tau.origin = replace(tau.origin, base_digest=None)
    return tau


def _rank_checks(work: Path) -> list[Check]:
    """An adapter's norm as a reading has it, and as the dense float64 matrices have it."""
    linears = shapes.TINY.linears()
    tau = read_adapter(inputs.write_adapter(work / "checked", linears, 4, 9))
    bank = inputs.bank_of([inputs.reference("r", inputs.factors(linears, 8, 3))])
    expected = sum(float((inputs.dense(u) ** 2).sum()) for _, u in tau.updates()) ** 0.5
    return [Check("‖τ‖", bank.measure(tau).norm(), expected)]


if __name__ == "__main__":
    main()
