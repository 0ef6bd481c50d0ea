"""Many adapters, and the full cosine matrix of a few very large ones.

A thousand small adapters scanned by one worker process and by two (time, and whether all take twice
as long as half of them), the descriptors open meanwhile, and the cosine matrix of eight adapters of
18,624 modules in a process of its own. Worker processes are timed by the clock.
"""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import inputs, machine, shapes
from benchmarks.report import Check, Figure, at_least, at_most, publish_parts
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.compare import compare
from wvmonitor.scan.executors import open_executor
from wvmonitor.scan.scan import scan
from wvmonitor.sources import read_adapter


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure both kinds of scan."""
    return publish_parts("scan", __doc__, (_small, _matrix), argv)


# Many small adapters


def _small(work: Path, rounds: int, _part: int, *, quick: bool) -> tuple[list[Figure], list[Check]]:
    count = 8 if quick else 1000
    linears = (shapes.TINY if quick else shapes.QWEN_05B.with_layers(1)).linears()
    bank = ReferenceBank.load(inputs.write_bank(work / "bank", linears, 4, 16))
    folders = [inputs.write_adapter(work / f"a{i:04}", linears, 8, i) for i in range(count)]
    asked = {"one": (1, folders), "two": (2, folders), "half": (1, folders[: count // 2])}
    taken: dict[str, list[float]] = {way: [] for way in asked}
    for _ in range(rounds):
        for way, (workers, some) in asked.items():
            # before the clock: workers are started and have loaded the bank
            with open_executor(workers=workers) as executor:
                list(scan(folders[: 2 * workers], bank, executor=executor))
                began = time.perf_counter()
                results = list(scan(some, bank, executor=executor))
                taken[way].append(time.perf_counter() - began)
            assert len(results) == len(some)
            assert not any(r.error for r in results), [r.error for r in results if r.error][:1]
    one, two, half = (statistics.median(taken[way]) for way in asked)
    opened = _descriptors(bank, folders)
    name = f"{count} small adapters"
    figures = [
        Figure(f"{name}, one worker", count / one, "adapters/s", detail={"seconds": taken}),
        at_least(f"{name}: two workers against one", one / two, 1.8, "×"),
        at_most(
            f"{name}: time of all over twice that of half (1: linear)", one / (2 * half), 1.1, "×"
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


# A matrix of cosines


def _matrix(
    work: Path, _rounds: int, part: int, *, quick: bool
) -> tuple[list[Figure], list[Check]]:
    shape = shapes.TINY if quick else shapes.QWEN_30B_MOE.part(part)
    linears = shape.linears()
    folders = [work / f"a{i}" for i in range(8)]
    for seed, folder in enumerate(folders[:2]):
        inputs.write_adapter(folder, linears, 16, seed, dtype=torch.bfloat16)
    for number, folder in enumerate(folders[2:]):  # two files under four names each: less to cache
        folder.mkdir()
        for file in folders[number % 2].iterdir():
            (folder / file.name).hardlink_to(file)
    asked = {"folders": [str(f) for f in folders]}
    found = machine.alone("benchmarks.scan:matrix_alone", asked, quick=quick)
    taus = [read_adapter(f) for f in folders[:2]]
    name = "cosine matrix of 8 adapters, r=16"
    minutes = found["seconds"] / 60
    whole = f"{name}, {len(linears) * part} modules" + (" (extrapolated)" if part > 1 else "")
    figures = [
        at_most(f"{whole}: time, one core", minutes * part, 3, "min"),
        at_most(f"{whole}: peak anonymous memory", found["peak_bytes"] * part / 1e9, 2, "GB"),
    ]
    if part > 1:
        figures.insert(0, Figure(f"{name}, {len(linears)} modules: time, one core", minutes, "min"))
    return figures, [Check("cosine of the first two", found["cosine"], taus[0].cosine(taus[1]))]


def matrix_alone(asked: dict[str, Any]) -> dict[str, Any]:
    """The full matrix of cosines (in a process of its own)."""
    made = compare({folder: read_adapter(folder) for folder in asked["folders"]})
    return {"cosine": float(made.cosines[0, 1])}


if __name__ == "__main__":
    main()
