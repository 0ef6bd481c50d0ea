"""A thousand checkpoints of which one in twenty is hostile, in one scan."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import time
from pathlib import Path

from benchmarks.report import Figure, at_least, at_most
from benchmarks.soak.readings import resident_megabytes
from tests.hostile.corpus import Case, all_cases
from tests.hostile.harness import Workshop
from wvmonitor.files.safetensors import SafetensorsFile, write_safetensors
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.scan import scan

CHECKPOINTS = 1_000
HOSTILE_SHARE = 0.05
_TOO_LARGE_TO_KEEP = ("99 MB", "million", "as many tensors", "200,000", "escapes", "deflated")


def run(folder: Path, scale: float = 1.0) -> list[Figure]:
    """Build the archive, scan it, and count.

    Args:
        folder: for the archive.
        scale: how much of the full size.
    """
    count = max(int(CHECKPOINTS * scale), 40)
    workshop = Workshop(folder / "workshop")
    paths = archive(workshop, folder / "archive", count)
    bank = ReferenceBank.load(workshop.bank)
    begun, descriptors, wrong, flagged = time.perf_counter(), [], 0, 0
    memory = []
    for number, result in enumerate(scan([p for p, _ in paths], bank, ordered=True)):
        _, case = paths[number]
        kind = None if result.error is None else result.error.type
        if case is None:
            wrong += kind is not None or not result.references
        else:
            flagged += case.expected is not None and kind == case.expected.__name__
        descriptors.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208  counted a thousand times
        memory.append(resident_megabytes())
    seconds = time.perf_counter() - begun
    hostile = sum(case is not None for _, case in paths)
    half = len(descriptors) // 2
    return [
        at_least(f"hostile files flagged, of {hostile}", flagged, hostile, "files"),
        at_most(f"errors on {len(paths) - hostile} sound adapters", wrong, 0, "files"),
        at_most(
            "descriptors gained from the first half to the second (medians)",
            statistics.median(descriptors[half:]) - statistics.median(descriptors[:half]),
            0,
            "descriptors",
            most=max(descriptors),
        ),
        Figure(
            f"{len(paths)} checkpoints scanned by one process",
            seconds,
            "s",
            detail={"megabytes_gained_in_the_second_half": memory[-1] - memory[half]},
        ),
    ]


def archive(workshop: Workshop, folder: Path, count: int) -> list[tuple[Path, Case | None]]:
    """Sound adapters of many sizes, and cases of the corpus at random places among them."""
    rng = random.Random(0)
    usable = [
        case
        for case in all_cases()
        if case.expected is not None and not any(w in case.name for w in _TOO_LARGE_TO_KEEP)
    ]
    hostile = rng.sample(usable, min(int(count * HOSTILE_SHARE), len(usable)))
    places = set(rng.sample(range(count), len(hostile)))
    with SafetensorsFile(workshop.adapter / "adapter_model.safetensors") as file:
        tensors = {name: file.read(name) for name in file.tensors}
    found: list[tuple[Path, Case | None]] = []
    for number in range(count):
        place = folder / f"{number:04d}"
        place.mkdir(parents=True)
        if number in places:
            case = hostile.pop()
            found.append((case.build(workshop.place(place)), case))
            continue
        shutil.copy(workshop.adapter / "adapter_config.json", place)
        scaled = {n: t * (0.5 + rng.random()) for n, t in tensors.items()}
        write_safetensors(place / "adapter_model.safetensors", scaled)
        found.append((place, None))
    return found
