"""What comes out of measuring checkpoints, and what a scan of them amounts to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from wvmonitor.detection.judgement import State, Statistics
from wvmonitor.outputs.scan_record import CheckpointResult

FailOn = Literal["warn", "alarm"]


@dataclass(frozen=True)
class Known:
    """The checkpoint was measured before: nothing of it was read but for its digest.

    Attributes:
        key: of the measurement in the cache.
    """

    key: str


@dataclass(frozen=True)
class Measured:
    """What one pass over a checkpoint gave: everything that a verdict needs, and no tensors.

    Attributes:
        base_digest: of the base that the weights start from, if known.
        method: how the weights were trained, if known.
        rank: the adapter's largest rank, if it is one.
        warnings: beside those of the scores.
        key: of this measurement in a cache, if one is kept.
    """

    statistics: Statistics
    base_digest: str | None
    method: str | None = None
    rank: int | None = None
    warnings: tuple[str, ...] = ()
    key: str | None = None


def reaches(state: State, fail_on: FailOn) -> bool:
    """Whether a verdict is at or above the one that fails a gate."""
    return State(fail_on) <= state


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
    open_results = []
    for index, result in enumerate(results):
        states = {r.verdict for r in result.references.values()} or {State.UNKNOWN}
        excused = result.run is not None and last_warm.get(result.run, -1) > index
        if result.error or "unknown" in states or ("warming" in states and not excused):
            open_results.append(result)
    return open_results


def exit_code(results: Sequence[CheckpointResult], fail_on: FailOn = "alarm") -> int:
    """0 all judged and below `fail_on`; 1 a verdict at or above it; 2 something was not judged.

    1 outranks 2. A scan of nothing has judged nothing: 2.

    Results are in the order of the scan's targets (a run's checkpoints in the order of steps);
    `fail_on` is the least verdict that fails.
    """
    states = [r.verdict for result in results for r in result.references.values()]
    if any(reaches(state, fail_on) for state in states):
        return 1
    return 2 if not results or unjudged(results) else 0
