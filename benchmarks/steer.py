"""Editing a model folder beside copying its files.

A bf16 model of the shape of a 0.5B one is moved along a reference on every linear layer of its
blocks, and its files are copied with the same guarantee (on the disk before the folder shows). Both
read from the page cache; they are taken in turns, and the ratio is the median of the pairs'. The
edit runs in a process of its own whose anonymous memory is watched from outside.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from benchmarks import inputs, machine, shapes
from benchmarks.report import Check, Figure, arguments, at_least, at_most, publish
from wvmonitor.references import Reference
from wvmonitor.steering import steer_checkpoint

RANK = 64
K = -0.5


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run and publish."""
    asked = arguments("steer", __doc__, argv)
    torch.set_num_threads(1)
    shape = shapes.TINY if asked.quick else shapes.QWEN_05B
    with tempfile.TemporaryDirectory(dir=asked.work) as work:
        figures, checks = edit(Path(work), shape, quick=asked.quick)
    return publish("steer", figures, checks, quick=asked.quick, path=asked.json)


def edit(work: Path, shape: shapes.Shape, *, quick: bool) -> tuple[list[Figure], list[Check]]:
    """Time and memory of one edit, and what it wrote."""
    base = inputs.write_checkpoint(work / "base", shape.tensors(), 0)
    linears = shape.linears()
    reference = inputs.reference("reference", inputs.factors(linears, 4 if quick else RANK, 1))
    reference.save(work / "reference")
    argument = {"base": str(base), "reference": str(work / "reference"), "out": str(work / "out")}
    edits, copies, peaks = [], [], []
    copied(base, work / "warm")  # into the page cache
    for _ in range(1 if quick else 3):
        found = machine.alone("benchmarks.steer:steered", argument, quick=quick)
        edits.append(found["edit_seconds"])
        peaks.append(found["peak_bytes"])
        copies.append(machine.seconds(lambda: copied(base, work / "copy")))
        checks = checked(base, work / "out", reference, list(linears)[:2])
        shutil.rmtree(work / "out")
    largest = max(torch.Size(s).numel() for s in shape.tensors().values()) * 2
    name = f"{shape.name} bf16, one reference of rank {RANK}"
    speed = statistics.median(c / e for c, e in zip(copies, edits, strict=True))
    detail = {"edit_seconds": edits, "copy_seconds": copies, "gb": 2 * shape.parameters() / 1e9}
    return [
        at_least(f"{name}: speed beside a copy of the files", speed, 0.5, "of the copy", **detail),
        at_most(
            f"{name}: anonymous memory beside the largest tensor",
            statistics.median(peaks) / largest,
            2,
            "× the tensor",
            peak_mb=[p / 1e6 for p in peaks],
            largest_mb=largest / 1e6,
        ),
    ], checks


def steered(argument: dict[str, Any]) -> dict[str, Any]:
    """One edit (in a process of its own)."""
    reference = Reference.load(argument["reference"])
    taken = machine.seconds(
        lambda: steer_checkpoint(argument["base"], {reference: K}, argument["out"])
    )
    return {"edit_seconds": taken}


def copied(source: Path, target: Path) -> None:
    """Copy a folder's files and wait until they are on the disk, as the edit does."""
    shutil.copytree(source, target)
    for path in target.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(target)


def checked(base: Path, out: Path, reference: Reference, names: list[str]) -> list[Check]:
    """Norms of what was written, beside θ + k·w computed in float64 and rounded once."""
    checks = []
    with (
        safe_open(base / "model.safetensors", "pt") as before,
        safe_open(out / "model.safetensors", "pt") as after,
    ):
        for name in names:
            moved = K * inputs.dense(reference.vector.update(name))
            expected = (before.get_tensor(name).double() + moved).to(torch.bfloat16)
            ours = float(after.get_tensor(name).double().norm())
            checks.append(Check(f"‖{name}‖", ours, float(expected.double().norm())))
    return checks


if __name__ == "__main__":
    main()
