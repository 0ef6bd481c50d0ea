"""A run's checkpoints as one trajectory: first crossing, trend, and the step to go back to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wvmonitor.detection.explanation import Trend, slope, trend
from wvmonitor.detection.judgement import State
from wvmonitor.outputs.scan_record import CheckpointResult
from wvmonitor.scan.results import reaches


@dataclass(frozen=True)
class BehaviourTrend:
    """One behaviour over a run.

    Attributes:
        first_warn: step of the first verdict of warn or worse; null if there was none.
        first_alarm: step of the first alarm; null if there was none.
        trend: where the deciding score is heading, by its median slope.
        slope: median slope (Theil–Sen) of the deciding score, per optimiser step.
        last: the deciding score at the last checkpoint that has one.
    """

    first_warn: int | None
    first_alarm: int | None
    trend: Trend
    slope: float | None
    last: float | None


@dataclass(frozen=True)
class Trajectory:
    """One run's checkpoints together.

    Attributes:
        run: the output folder.
        checkpoints: how many were scanned.
        verdict: the worst of their verdicts.
        go_back_to: path of the last checkpoint before the first crossing at which every behaviour
            was ok; null where nothing crossed, or nothing before it was ok.
        go_back_to_step: its step.
        references: by behaviour.
    """

    run: str
    checkpoints: int
    verdict: State
    go_back_to: str | None
    go_back_to_step: int | None
    references: dict[str, BehaviourTrend]


def trajectories(results: Sequence[CheckpointResult]) -> list[Trajectory]:
    """The trajectories among the results, each with its checkpoints in the order of steps."""
    runs: dict[str, list[CheckpointResult]] = {}
    for result in results:
        if result.run is not None:
            runs.setdefault(result.run, []).append(result)
    return [_trajectory(run, readings) for run, readings in runs.items()]


def sentence(trajectory: Trajectory) -> str:
    """What a trajectory says, in one line for people."""
    parts = []
    for name, course in trajectory.references.items():
        word: str = "trend unknown" if course.trend == "unknown" else course.trend
        if course.first_alarm is not None:
            word = f"alarm from step {course.first_alarm}, {word}"
        elif course.first_warn is not None:
            word = f"warn from step {course.first_warn}, {word}"
        parts.append(f"{name}: {word}")
    crossed = any(t.first_warn is not None for t in trajectory.references.values())
    if trajectory.go_back_to_step is not None:
        parts.append(f"go back to step {trajectory.go_back_to_step}")
    elif crossed:
        parts.append("no earlier checkpoint was ok: go back to the base")
    many = "" if trajectory.checkpoints == 1 else "s"
    return f"{trajectory.run}, {trajectory.checkpoints} checkpoint{many}: {'; '.join(parts)}"


def _trajectory(run: str, readings: list[CheckpointResult]) -> Trajectory:
    names = list(dict.fromkeys(name for r in readings for name in r.references))
    back = _last_good(readings)
    verdicts = {r.verdict for r in readings}
    return Trajectory(
        run=run,
        checkpoints=len(readings),
        verdict=max(verdicts, default=State.UNKNOWN),
        go_back_to=None if back is None else back.path,
        go_back_to_step=None if back is None else back.step,
        references={name: _trend(name, readings) for name in names},
    )


def _last_good(readings: Sequence[CheckpointResult]) -> CheckpointResult | None:
    good = None
    for reading in readings:
        if any(reaches(r.verdict, "warn") for r in reading.references.values()):
            return good
        if reading.error is None and reading.verdict == "ok":
            good = reading
    return None


def _trend(name: str, readings: Sequence[CheckpointResult]) -> BehaviourTrend:
    judged = [(r.step, r.references[name]) for r in readings if name in r.references]
    points = [(s, r.score) for s, r in judged if s is not None and r.score is not None]
    return BehaviourTrend(
        first_warn=next((s for s, r in judged if reaches(r.verdict, "warn")), None),
        first_alarm=next((s for s, r in judged if reaches(r.verdict, "alarm")), None),
        trend=trend(points, next((r.threshold for _, r in reversed(judged) if r.threshold), None)),
        slope=slope(points),
        last=points[-1][1] if points else None,
    )
