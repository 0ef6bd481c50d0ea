"""Scans of many adapters, and matrices of cosines: `wvmonitor scan` and `compare` at length.

1,000 small adapters (linear growth, two workers against one, open descriptors), 8 references × a
few 7B-shape adapters extrapolated to 100 (the extrapolation is linear, and named so), and the full
cosine matrix of eight 18,624-module adapters in a process of its own.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import inputs, machine, shapes
from benchmarks.offline import _plain_pair
from benchmarks.report import Check, Figure, arguments, at_least, at_most, publish
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.compare import compare
from wvmonitor.scan.executors import open_executor
from wvmonitor.scan.scan import scan
from wvmonitor.sources import read_adapter


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure the three kinds of scan."""
    asked = arguments("scan", __doc__, argv)
    torch.set_num_threads(1)
    figures: list[Figure] = []
    checks: list[Check] = []
    for part in (_small, _large, _matrix):
        with tempfile.TemporaryDirectory(dir=asked.work) as work:
            found, others = part(Path(work), quick=asked.quick)
        figures += found
        checks += others
    return publish("scan", figures, checks, quick=asked.quick, path=asked.json)


# Many small adapters


def _small(work: Path, *, quick: bool) -> tuple[list[Figure], list[Check]]:
    count = 24 if quick else 1000
    linears = (shapes.TINY if quick else shapes.QWEN_05B.with_layers(4)).linears()
    bank = ReferenceBank.load(inputs.write_bank(work / "bank", linears, 4, 16))
    folders = [inputs.write_adapter(work / f"a{i:04}", linears, 8, i) for i in range(count)]

    def timed(workers: int, some: list[Path]) -> float:
        # before the clock: workers are started and have loaded the bank
        with open_executor("local", workers=workers) as executor:
            list(scan(folders[: 2 * workers], bank, executor=executor))
            began = time.perf_counter()
            results = list(scan(some, bank, executor=executor))
            taken = time.perf_counter() - began
        assert len(results) == len(some)
        assert not any(r.error for r in results), [r.error for r in results if r.error][:1]
        return taken

    one: list[float] = []
    two: list[float] = []
    half: list[float] = []
    for _ in range(1 if quick else 5):
        one.append(timed(1, folders))
        two.append(timed(2, folders))
        half.append(timed(1, folders[: count // 2]))
    first, second, part = (sorted(t)[len(t) // 2] for t in (one, two, half))
    opened = _descriptors(bank, folders)
    name = f"{count} small adapters"
    figures = [
        Figure(f"{name}, one worker", count / first, "adapters/s", detail={"seconds": one}),
        at_least(f"{name}: two workers against one", first / second, 1.8, "×", one=one, two=two),
        at_most(
            f"{name}: time of all over twice the time of half (1 is linear)",
            first / (2 * part),
            1.1,
            "×",
            half=half,
        ),
        at_most(f"{name}: most descriptors open at once, beyond the start", opened, 8, "files"),
    ]
    tau = read_adapter(folders[0])
    reading = bank.measure(tau)
    own = reading.geometries["frobenius"].products[:, 0].sum()
    plain = tau.inner(bank[bank.names[0]].vector)
    return figures, [Check("⟨small adapter, reference⟩", float(own), plain)]


def _descriptors(bank: ReferenceBank, folders: list[Path]) -> int:
    """The most descriptors open at once while this process scans, above those before."""
    own = Path("/proc/self/fd")
    before = len(list(own.iterdir()))
    most, ended = before, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.002):
            most = max(most, len(list(own.iterdir())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in scan(folders, bank):
        pass
    ended.set()
    watcher.join()
    return most - before


# A few large ones


def _large(work: Path, *, quick: bool) -> tuple[list[Figure], list[Check]]:
    shape, rank = (shapes.TINY, 4) if quick else (shapes.QWEN_7B, 32)
    linears = shape.linears()
    folders = [inputs.write_adapter(work / f"a{i}", linears, rank, i) for i in range(3)]
    bank = inputs.bank_of(
        [inputs.reference(f"r{i}", inputs.factors(linears, 2 * rank, 50 + i)) for i in range(8)]
    )

    def ours() -> None:
        for folder in folders:
            bank.measure(read_adapter(folder))

    def plain() -> None:
        for folder in folders:
            loaded = load_file(folder / "adapter_model.safetensors")
            for reference in bank:
                _plain_pair(loaded, dict(reference.vector.updates()))

    gflop = 4 * rank * 8 * shape.lora_parameters(rank) / 1e9
    rates = [machine.matrix_rate(256 if quick else 2048)]
    taken = machine.interleaved({"ours": ours, "plain": plain}, 1 if quick else 5)
    rates.append(machine.matrix_rate(256 if quick else 2048))
    floor = len(folders) * gflop * 1e9 / (sum(rates) / 2)
    name = f"8 references × {shape.name} adapters r={rank}"
    detail = {"seconds_of_three": taken, "floor_of_three": floor, "extrapolated_linearly": True}
    hundred = 100 / len(folders) * taken["ours"]
    return [
        Figure(f"{name}: 100 of them, extrapolated from 3, one core", hundred, "s", detail=detail),
        at_least(f"{name}: times faster than (ii)", taken["plain"] / taken["ours"], 3, "×"),
        at_least(f"{name}: share of the matrix-rate floor", floor / taken["ours"], 0.7, "of it"),
    ], []


# A matrix of cosines


def _matrix(work: Path, *, quick: bool) -> tuple[list[Figure], list[Check]]:
    shape = shapes.TINY if quick else shapes.QWEN_30B_MOE
    linears = shape.linears()
    folders = [
        str(inputs.write_adapter(work / f"a{i}", linears, 16, i, dtype=torch.bfloat16))
        for i in range(8)
    ]
    found = machine.alone("benchmarks.scan:matrix_alone", {"folders": folders})
    taus = [read_adapter(f) for f in folders[:2]]
    name = f"cosine matrix of 8 adapters of {len(linears)} modules, r=16"
    figures = [
        at_most(f"{name}: time, one core", found["seconds"] / 60, 3, "min"),
        at_most(f"{name}: peak anonymous memory", found["peak_bytes"] / 1e9, 2, "GB"),
    ]
    return figures, [Check("cosine of the first two", found["cosine"], taus[0].cosine(taus[1]))]


def matrix_alone(asked: dict[str, Any]) -> dict[str, Any]:
    """The full matrix of cosines (in a process of its own)."""
    made = compare({folder: read_adapter(folder) for folder in asked["folders"]})
    return {"cosine": float(made.cosines[0, 1])}


if __name__ == "__main__":
    main()
