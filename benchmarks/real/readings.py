"""Every kept adapter read against a bank: its scores, the bank's verdict, and what it cost."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.detectors import by_module, rotation, spectrum
from benchmarks.real.protocol import Setting
from benchmarks.real.runs import Made, training_of
from wvmonitor.builder.base import Base
from wvmonitor.builder.finetune import read_finetuned
from wvmonitor.builder.stages import Work
from wvmonitor.detection.calibration import Calibration
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judge import Judge
from wvmonitor.detection.judgement import JudgeState, Statistics
from wvmonitor.files.documents import read_json, write_json
from wvmonitor.reading import Reading
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.calibrated import calibration_of
from wvmonitor.vectors.task_vector import TaskVector

FILE = "readings.json"
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
        "format": 2,
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
        spectral_features = dict(spectrum(vector))
        spectral = time.process_time() - began
        scores = statistics.scores
        rows.append(
            {
                "step": step,
                "progress": step / setting.steps,
                "norm": scores.norm,
                "rotation": None if before is None else rotation(reading, before),
                "seconds": seconds,
                "seconds_spectral": spectral,
                "scores": {
                    f"{name}/{geometry}/{which}": value
                    for name, held in scores.references.items()
                    for geometry, values in held.values.items()
                    for which, value in values.items()
                },
                "doses": {n: h.dose for n, h in scores.references.items() if h.dose is not None},
                "modules": by_module(reading),
                "spectrum": spectral_features,
            }
        )
        found.append(statistics)
        earlier = vector, reading
    assert earlier is not None
    objective = "sft" if made.run.rejected is None else "dpo"
    planned = context_of(setting, training.learning_rate, len(steps), objective)
    context = judge.context(earlier[0].origin, planned)
    return {
        "readings": json.loads(json.dumps(rows).replace("NaN", "null")),
        "verdict": judged(judge, found, context),
        # The same band on a run that is longer than those behind it, or trained in another way: no
        # promise holds there.
        "band": judged(judge, found, _taken_as_covered(context, against.calibration)),
    }


def _taken_as_covered(context: RunContext, calibration: Calibration | None) -> RunContext:
    """The same run as if it were as long as those behind a calibration, and trained like them."""
    context = replace(context, planned_steps=None)
    if calibration is None:
        return context
    support = calibration.support
    if context.objective not in support.objectives:
        context = replace(context, objective=None)
    method, ranks = next(iter(support.methods.items()))
    return replace(context, method=method, rank=None if ranks is None else ranks[0])


def context_of(
    setting: Setting, learning_rate: float | None, readings: int, objective: str = "sft"
) -> RunContext:
    """What a Trainer would know of a run of the setting."""
    return RunContext(
        optimizer="adamw",
        learning_rate=learning_rate,
        planned_steps=setting.steps,
        readings_planned=readings,
        objective=objective,
        schedule="linear",
    )


def judged(judge: Judge, found: Sequence[Statistics], context: RunContext) -> dict[str, Any]:
    """Which behaviours alarmed and warned at any reading, when first, and why.

    And how near each came to its alarm: the farthest that the run was out of the behaviour's band,
    as a share of what alarms; empty where the calibration does not cover the run.
    """
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
        "nearness": _nearness(judge.calibration, state),
    }


def _nearness(calibration: Calibration | None, state: JudgeState) -> dict[str, float]:
    if calibration is None:
        return {}
    found = {}
    for name, held in state.behaviours.items():
        out = [m for m in (held.running_maximum, held.gain_maximum) if m is not None]
        if out and name in calibration.multiplier:
            found[name] = max(out) / calibration.multiplier[name]
    return found
