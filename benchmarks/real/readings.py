"""Every kept adapter read against a bank: its scores, the bank's verdict, and what it cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.real.protocol import Setting
from benchmarks.real.runs import Made, training_of
from wvmonitor.builder.base import Base
from wvmonitor.builder.finetune import read_finetuned
from wvmonitor.builder.stages import Work
from wvmonitor.detection.calibration import Calibration
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judge import Judge
from wvmonitor.detection.judgement import Statistics
from wvmonitor.detection.state import JudgeState
from wvmonitor.files.documents import read_json, write_json
from wvmonitor.reading import Reading
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.calibrated import calibration_of
from wvmonitor.vectors import DenseUpdate, LowRankUpdate
from wvmonitor.vectors.task_vector import TaskVector

FILE = "readings.json"
SPECTRAL = ("stable rank", "spectral entropy", "largest share")
Row = dict[str, Any]


@dataclass(frozen=True)
class Against:
    """What runs are read against.

    Attributes:
        bank: the references.
        calibration: its own; None where it has none.
    """

    bank: ReferenceBank
    calibration: Calibration | None

    @classmethod
    def load(cls, folder: Path) -> Against:
        """The bank of a folder, with the calibration beside it.

        Raises:
            WVMonitorError: as `ReferenceBank.load` and `Calibration.load` say.
        """
        bank = ReferenceBank.load(folder)
        return cls(bank, calibration_of(bank))


def read(base: Base, work: Work, made: Made, setting: Setting, against: Against) -> Row:
    """What every reading of a run says, and the bank's verdict on it; kept under the bank.

    Args:
        base: the model.
        work: where runs are kept.
        made: the run.
        setting: how it was made.
        against: the bank.
    """
    calibration = against.calibration
    inputs = {
        "run": made.folder.name,
        "bank": against.bank.fingerprint,
        "calibration": None if calibration is None else calibration.model_dump(mode="json"),
    }

    def fill(hidden: Path) -> None:
        write_json(hidden / FILE, _read(base, made, setting, against))

    return dict(read_json(work.tree(f"read-{made.run.name}", inputs, fill) / FILE))


def _read(base: Base, made: Made, setting: Setting, against: Against) -> Row:
    bank = against.bank
    judge = Judge.of(bank, against.calibration)
    training = training_of(made.run, setting)
    steps = [int(s) for s in made.record["checkpoints"]]
    rows: list[Row] = []
    found: list[Statistics] = []
    earlier: tuple[TaskVector, Reading] | None = None
    for step in steps:
        folder = made.folder / f"checkpoint-{step}"
        vector = read_finetuned(base, folder, training.method).held()
        began = time.process_time()
        reading = bank.measure(
            vector,
            step=step,
            progress=step / setting.steps,
            earlier=None if earlier is None else earlier[0],
        )
        before = None if earlier is None else earlier[1]
        reading = replace(reading, lag_step=None if before is None else before.step)
        statistics = judge.statistics(reading, before)
        seconds = time.process_time() - began
        began = time.process_time()
        spectrum = dict(_spectrum(vector))
        spectral = time.process_time() - began
        scores = statistics.scores
        rows.append(
            {
                "step": step,
                "progress": step / setting.steps,
                "norm": scores.norm,
                "rotation": None if before is None else _rotation(reading, before),
                "seconds": seconds,
                "seconds_spectral": spectral,
                "scores": {
                    f"{name}/{geometry}/{which}": value
                    for name, held in scores.references.items()
                    for geometry, values in held.values.items()
                    for which, value in values.items()
                },
                "doses": {n: h.dose for n, h in scores.references.items() if h.dose is not None},
                "modules": _by_module(reading),
                "spectrum": spectrum,
            }
        )
        found.append(statistics)
        earlier = vector, reading
    context = RunContext(
        method=training.method,
        rank=training.settings.rank if training.method == "lora" else None,
        optimizer="adamw",
        learning_rate=training.learning_rate,
        planned_steps=setting.steps,
        readings_planned=len(steps),
    )
    return {
        "readings": json.loads(json.dumps(rows).replace("NaN", "null")),
        "verdict": _judged(judge, found, context),
        # The same band on a run that is longer than those behind it: no promise holds there.
        "band": _judged(judge, found, replace(context, planned_steps=None)),
    }


def _judged(judge: Judge, found: Sequence[Statistics], context: RunContext) -> dict[str, Any]:
    """Which behaviours alarmed and warned at any reading, when first, and why."""
    state, first = JudgeState(), None
    warned: set[str] = set()
    states: set[str] = set()
    reasons: dict[str, str] = {}
    for n, statistics in enumerate(found, 1):
        judged = judge(statistics, context, state, last=n == len(found))
        verdicts, state = judged.verdicts, judged.state
        warned |= {n for n, v in verdicts.items() if v.state == "warn"}
        states |= {v.state for v in verdicts.values()}
        reasons |= {n: v.reason for n, v in verdicts.items()}
        if state.alarmed and first is None:
            first = statistics.scores.progress
    return {
        "alarmed": sorted(state.alarmed),
        "warned": sorted(warned - set(state.alarmed)),
        "at": first,
        "states": sorted(states),
        "reasons": reasons,
    }


def _rotation(now: Reading, earlier: Reading) -> float:
    """1 − cos(τ_t, τ_{t−k}), Frobenius, over every parameter."""
    here, before = now.geometries["frobenius"], earlier.geometries["frobenius"]
    assert here.lagged is not None
    size = here.squared_norms.sum() * before.squared_norms.sum()
    return float(1 - here.lagged.sum() / np.sqrt(size))


def _by_module(reading: Reading) -> dict[str, float]:
    """‖τ_p‖ by parameter, Frobenius."""
    squares = reading.geometries["frobenius"].squared_norms
    return {n: float(np.sqrt(v)) for n, v in zip(reading.parameters, squares, strict=True)}


def _spectrum(vector: TaskVector) -> Iterator[tuple[str, list[float]]]:
    """Of each matrix's update: stable rank, entropy of its squared singular values, first's share.

    The spectral summaries of arXiv 2604.08844, but for its cosine with a centroid of healthy
    adapters; of dense updates none, as theirs are LoRA's.
    """
    for name in vector.names():
        update = vector.update(name)
        if isinstance(update, DenseUpdate) or not isinstance(update, LowRankUpdate):
            continue
        _, left = torch.linalg.qr(update.left.double())
        _, right = torch.linalg.qr(update.right.double().mT)
        squares = torch.linalg.svdvals(left @ right.mT) ** 2
        total = float(squares.sum())
        if not total:
            continue
        share = squares / total
        entropy = float(-(share * share.clamp_min(1e-300).log()).sum())
        yield name, [total / float(squares[0]), entropy, float(share[0])]
