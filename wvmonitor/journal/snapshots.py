"""One reading's task vector on disk, small enough to keep them all: a snapshot's file.

Beside the journal `wvmonitor.db` lies `wvmonitor.snapshots/RUN/ATTEMPT-STEP.safetensors`, RUN being
the start of the run id's SHA-256 (an id may hold characters that no file name can). Low-rank
updates are kept as their factors, exactly; dense ones as a sketch (`vectors/sketch.py`), and
`kept` says which share of ‖τ‖² it holds.

A snapshot takes 4 bytes for each number of its factors: 4·r·Σ(out + in) for LoRA of rank r, at most
that with the sketch's rank for full fine-tuning, and 4 bytes for each element of vectors and of
matrices so small that factors gain nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wvmonitor.errors import MalformedFileError
from wvmonitor.files.safetensors import SafetensorsFile, write_safetensors
from wvmonitor.files.updates import as_tensors, read_updates
from wvmonitor.vectors.task_vector import Origin, TaskVector

FORMAT = "wvmonitor.snapshot"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Snapshot:
    """A task vector as it was at one reading.

    Attributes:
        run, attempt, step: which reading.
        vector: held in memory; `vector.origin.kept` is the share of ‖τ‖² that it holds.
    """

    run: str
    attempt: int
    step: int
    vector: TaskVector


def folder_of(journal: Path, run: str) -> Path:
    """Where the snapshots of a run lie, given its journal's file."""
    name = hashlib.sha256(run.encode()).hexdigest()[:16]
    return journal.parent / f"{journal.stem}.snapshots" / name


def path_of(journal: Path, run: str, attempt: int, step: int) -> Path:
    """Where the snapshot of one reading lies."""
    return folder_of(journal, run) / f"{attempt:04d}-{step:09d}.safetensors"


def write_snapshot(snapshot: Snapshot, journal: Path) -> Path:
    """Write a snapshot to its place, whole or not at all, readable by its owner only.

    It could be merged into the base to give the run's weights, so it is as private as a checkpoint.

    Raises:
        OSError: the system refuses.
    """
    target = path_of(journal, snapshot.run, snapshot.attempt, snapshot.step)
    target.parent.mkdir(parents=True, exist_ok=True)
    tensors, layout = as_tensors(snapshot.vector.updates())
    origin = snapshot.vector.origin
    about = {
        "version": FORMAT_VERSION,
        "run": snapshot.run,
        "attempt": snapshot.attempt,
        "step": snapshot.step,
        "base_digest": origin.base_digest,
        "base_name": origin.base_name,
        "method": origin.method,
        "rank": origin.rank,
        "kept": origin.kept,
        "warnings": origin.warnings,
    }
    metadata = {"format": FORMAT, "about": json.dumps(about, allow_nan=False), **layout}
    write_safetensors(target, tensors, metadata, mode=0o600)
    return target


def read_snapshot(path: Path) -> Snapshot:
    """Read a snapshot into memory.

    Raises:
        MissingPathError: there is none.
        MalformedFileError: it breaks its format, or a newer wvmonitor wrote it.
    """
    with SafetensorsFile(path) as file:
        about = _about(file)
        updates = read_updates(file, "leave this reading out")
    warnings = [str(w) for w in about.get("warnings") or ()]
    kept = float(about["kept"])
    if kept < 1:
        warnings.append(
            f"measured on a sketch that holds {kept:.2%} of ‖τ‖²: a Frobenius cosine is off by at "
            f"most {(1 - kept) ** 0.5 + (1 - kept**0.5):.2g}, mostly by far less"
        )
    origin = Origin(
        source=str(path),
        base_digest=about.get("base_digest"),
        base_name=about.get("base_name"),
        method=about.get("method"),
        rank=about.get("rank"),
        step=int(about["step"]),
        kept=kept,
        warnings=tuple(warnings),
    )
    run, attempt, step = str(about["run"]), int(about["attempt"]), int(about["step"])
    return Snapshot(run, attempt, step, TaskVector.of(updates, origin))


def _about(file: SafetensorsFile) -> dict[str, Any]:
    try:
        about = json.loads(file.metadata["about"])
        if file.metadata["format"] != FORMAT or not about["version"] <= FORMAT_VERSION:
            raise ValueError("another format")  # noqa: TRY301
        int(about["attempt"]), int(about["step"]), float(about["kept"]), str(about["run"])
    except (KeyError, TypeError, ValueError):
        raise MalformedFileError(
            f"{file.where} is no snapshot that this wvmonitor can read: upgrade wvmonitor, or "
            "leave this reading out"
        ) from None
    return dict(about)
