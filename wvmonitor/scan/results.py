"""What a scan finds out: plain frozen records, their exit code, and the JSON document of them.

These records are the public contract of `wvmonitor scan --format json` (docs/schemas/
scan.schema.json is made from them): fields may be added, none is renamed or removed. Numbers are
finite or None, so that every record is valid JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from wvmonitor.detection.explanation import in_full
from wvmonitor.detection.verdict import CalibrationStatus, State
from wvmonitor.reading import Component, Geometry

SCHEMA_VERSION: Literal[1] = 1
FailOn = Literal["warn", "alarm"]
ScanScore = Literal["cosine", "residual", "margin"]
SCAN_SCORES: tuple[ScanScore, ...] = ("cosine", "residual", "margin")

Values = Mapping[Geometry, Mapping[ScanScore, float | None]]


@dataclass(frozen=True)
class ReferenceResult:
    """What a checkpoint's weights say about one behaviour.

    Attributes:
        scores: by geometry; null where a score does not exist or is not finite.
        dose: the steering coefficient k for which k·w explains the change, if known.
        score: the deciding score, if there is one.
        threshold: what the deciding score is held against, if there is one.
        calibration: what the threshold rests on.
        verdict: ok, warn, alarm, warming (too little has changed to judge) or unknown.
        reason: one sentence for people.
        account: of a warning or an alarm, what it means and what to do, one sentence each.
    """

    scores: Values
    dose: float | None
    score: float | None
    threshold: float | None
    calibration: CalibrationStatus
    verdict: State
    reason: str
    account: Sequence[str] = ()

    @property
    def words(self) -> str:
        """Reason and account as one text."""
        return in_full(self.reason, self.account)


@dataclass(frozen=True)
class ControlResult:
    """How alike a checkpoint's weights are to a control; controls carry no verdict.

    Attributes:
        scores: by geometry; null where a score does not exist or is not finite.
        dose: the steering coefficient k for which k·w explains the change, if known.
    """

    scores: Values
    dose: float | None


@dataclass(frozen=True)
class Failure:
    """Why a checkpoint could not be judged.

    Attributes:
        type: the error's class, one of those in `wvmonitor.errors` for anything foreseen.
        message: what was wrong, where, and what to do, in one line.
    """

    type: str
    message: str


@dataclass(frozen=True)
class CheckpointResult:
    """What the scan found out about one checkpoint.

    Attributes:
        path: as it was given, or found in a folder that was given.
        step: optimiser step, if known.
        norm: ‖τ‖ over every parameter (Frobenius, in units of the weights).
        coverage: the share of ‖τ‖² that lies where the scores look, in [0, 1].
        verdict: the worst of the references' verdicts; unknown where there is an error.
        references: by name, the behaviours of the bank.
        error: null, or why nothing could be said.
        controls: by name, the controls of the bank.
        component_shares: the share of ‖τ‖² in each part of the model.
        warnings: what a reader of the numbers must know.
        run: the output folder whose trajectory the checkpoint belongs to, if it does.
        progress: the fraction of the run's planned steps in [0, 1], if known.
        method: how the weights were trained ("lora", "full", …), if known.
        rank: the adapter's largest rank, if it is one.
        bank: fingerprint of the references measured against.
        saved_at: when the checkpoint was saved (Unix seconds, by its file's time), if known.
    """

    path: str
    step: int | None
    norm: float | None
    coverage: float | None
    verdict: State
    references: Mapping[str, ReferenceResult]
    error: Failure | None
    controls: Mapping[str, ControlResult] = field(default_factory=dict)
    component_shares: Mapping[Component, float | None] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    run: str | None = None
    progress: float | None = None
    method: str | None = None
    rank: int | None = None
    bank: str | None = None
    saved_at: float | None = None


def failed(
    path: str, error: Failure, *, run: str | None = None, step: int | None = None
) -> CheckpointResult:
    """The result for a checkpoint that could not be judged."""
    return CheckpointResult(
        path=path,
        step=step,
        norm=None,
        coverage=None,
        verdict="unknown",
        references={},
        error=error,
        run=run,
    )


def failure_of(error: BaseException) -> Failure:
    """An exception as a record: its class and its message, on one line."""
    return Failure(type(error).__name__, " ".join(str(error).split()) or "no further explanation")


def finite(value: float | None) -> float | None:
    """A Python float, or None where it is missing, NaN or infinite."""
    return None if value is None or not math.isfinite(value) else float(value)


def reaches(state: State, fail_on: FailOn) -> bool:
    """Whether a verdict is at or above the one that fails a gate."""
    return state == "alarm" or (state == "warn" and fail_on == "warn")


def unjudged(results: Sequence[CheckpointResult]) -> list[CheckpointResult]:
    """The results of which a release gate must not say that they are clean.

    Those with an error or an unknown verdict, and those with a warming one: too little has changed
    to judge. One exception: a run's early checkpoints are warming by nature, so a warming
    checkpoint is excused where a later one of the same run has warmed up.
    """
    last_warm: dict[str, int] = {}
    for index, result in enumerate(results):
        states = {r.verdict for r in result.references.values()}
        if result.run is not None and states and not states & {"warming", "unknown"}:
            last_warm[result.run] = index
    found = []
    for index, result in enumerate(results):
        states = {r.verdict for r in result.references.values()} or {"unknown"}
        excused = result.run is not None and last_warm.get(result.run, -1) > index
        if result.error or "unknown" in states or ("warming" in states and not excused):
            found.append(result)
    return found


def exit_code(results: Sequence[CheckpointResult], fail_on: FailOn = "alarm") -> int:
    """0 all judged and below `fail_on`; 1 a verdict at or above it; 2 something was not judged.

    1 outranks 2. A scan of nothing has judged nothing: 2.

    Args:
        results: in the order of the scan's targets (a run's checkpoints in the order of steps).
        fail_on: the least verdict that fails.
    """
    states = [r.verdict for result in results for r in result.references.values()]
    if any(reaches(state, fail_on) for state in states):
        return 1
    return 2 if not results or unjudged(results) else 0


def as_dict(record: CheckpointResult) -> dict[str, Any]:
    """One result as JSON-ready Python values."""
    return asdict(record)
