"""The flight recorder: how far its sketches are off, how large its files are, and what it costs.

The error is the largest difference, over all references of the bundled bank, between scores of the
sketch and of the whole task vector, on full fine-tunes of the bundled model on bad and good advice.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Check, Figure, arguments, at_most, publish
from wvmonitor.detection.scores import Scores, score
from wvmonitor.journal.snapshot_writer import SnapshotWriter
from wvmonitor.journal.snapshots import path_of, read_snapshot
from wvmonitor.organism import finetune, sets
from wvmonitor.reading import GEOMETRIES
from wvmonitor.references import ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.sources import read_model
from wvmonitor.vectors.task_vector import TaskVector

RANKS = (8, 16, 32)
SCORES = ("cosine", "residual")
RATES = {"full": 5e-4, "lora": 1e-3}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure error, size and cost."""
    asked = arguments("record", __doc__, argv)
    torch.set_num_threads(1)
    base = bundled_path("tiny-organism", "base")
    bank = ReferenceBank.load(bundled_path("tiny-organism", "bank"))
    steps = 2 if asked.quick else 60
    figures: list[Figure] = []
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(dir=asked.work) as work:
        for name, maker in {
            "bad advice": sets.bad_advice("medical"),
            "good advice": sets.good_advice("medical"),
        }.items():
            vectors = {
                method: read_model(
                    finetune(
                        base,
                        maker(240, 5),
                        seed=5,
                        steps=steps,
                        method=method,  # type: ignore[arg-type]
                        learning_rate=rate,
                    ).model,
                    base,
                ).held()
                for method, rate in RATES.items()
            }
            for rank in RANKS if name == "bad advice" or not asked.quick else ():
                figures += _errors(Path(work), name, vectors["full"], bank, rank)
            figures += _costs(Path(work), name, vectors, bank, repeats=2 if asked.quick else 15)
            checks.append(_exact(Path(work), name, vectors["lora"], bank))
    return publish("record", figures, checks, quick=asked.quick, path=asked.json)


def _snapshot(work: Path, name: str, tau: TaskVector, rank: int) -> tuple[TaskVector, int]:
    """What the recorder keeps of a vector, read back, and its size in bytes."""
    journal, run = work / "wvmonitor.db", f"{name}, rank {rank}"
    recorder = SnapshotWriter(journal, run, 1, rank=rank, limit_bytes=1e12)
    for _ in recorder.watching(tau).updates():
        pass
    recorder.record(tau, 1)
    recorder.close()
    path = path_of(journal, run, 1, 1)
    return read_snapshot(path).vector, path.stat().st_size


def _scores(tau: TaskVector, bank: ReferenceBank) -> Scores:
    return score(bank.measure(tau), bank.gram)


def _errors(work: Path, name: str, tau: TaskVector, bank: ReferenceBank, rank: int) -> list[Figure]:
    kept, size = _snapshot(work, name, tau, rank)
    whole, sketched = _scores(tau, bank), _scores(kept, bank)
    about = f"full fine-tune on {name}, sketch of rank {rank}"
    figures = [
        Figure(f"{about}: share of ‖τ‖² held", kept.origin.kept, ""),
        Figure(f"{about}: size", size / 1e6, "MB"),
    ]
    for geometry in GEOMETRIES:
        errors = {
            s: max(
                abs(
                    whole.references[r].values[geometry][s]  # type: ignore[index]
                    - sketched.references[r].values[geometry][s]  # type: ignore[index]
                )
                for r in bank.names
            )
            for s in SCORES
        }
        worst = max(errors.values())
        figures.append(Figure(f"{about}: largest error ({geometry})", worst, "", detail=errors))
    return figures


def _costs(
    work: Path, name: str, vectors: dict[str, TaskVector], bank: ReferenceBank, *, repeats: int
) -> list[Figure]:
    """Processor time of a recorded reading over that of a plain one, of the training thread."""
    figures = []
    for method, tau in vectors.items():
        recorder = SnapshotWriter(
            work / "cost.db", f"{name} {method}", 1, rank=16, limit_bytes=1e12
        )
        ratios = []
        for step in range(repeats + 1):
            began = time.thread_time()
            bank.measure(tau)
            middle = time.thread_time()
            bank.measure(recorder.watching(tau))
            recorder.record(tau, step)
            ratios.append((time.thread_time() - middle) / (middle - began))
        recorder.close()
        what = f"{method} fine-tune on {name}: a recorded reading over a plain one"
        figures.append(at_most(what, statistics.median(ratios[1:]), 3.0, "×", ratios=ratios))
    return figures


def _exact(work: Path, name: str, tau: TaskVector, bank: ReferenceBank) -> Check:
    """LoRA: the response residual of evil, from the snapshot and from the vector itself."""
    kept, _ = _snapshot(work, f"LoRA on {name}", tau, 16)
    found = [
        s.references["evil"].values["response"]["residual"]
        for s in (_scores(kept, bank), _scores(tau, bank))
    ]
    return Check(f"LoRA on {name}: residual of evil (response)", found[0], found[1])


if __name__ == "__main__":
    main()
