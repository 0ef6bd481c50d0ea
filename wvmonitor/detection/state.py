"""What a judge carries from one reading of a run to the next: plain values, kept in journals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wvmonitor.detection.finding import State

Path = tuple[tuple[float, float, float], ...]
"""(progress, score, ‖τ‖) of earlier readings, oldest first."""


@dataclass(frozen=True)
class Worst:
    """The worst that a run has earned on one behaviour, of what could be judged.

    Attributes:
        state: ok, warn or alarm.
        step: of the first reading that earned it, if known.
        score: the deciding score at that reading, if there was one.
    """

    state: State
    step: int | None
    score: float | None


@dataclass(frozen=True)
class BehaviourState:
    """Where judging has come to with one behaviour.

    Attributes:
        running_maximum: the largest standardised exceedance so far, if there was one; of an
            open-ended run, in the current block.
        gain_maximum: the same of what the score has gained of late.
        consecutive: readings in a row above the uncalibrated rule, where it was applied; a reading
            that cannot be judged neither counts nor breaks the row.
        alarmed: whether it has alarmed in this run; later readings do not take that back.
        last_ok: the step of the last reading that was ok.
        recent: (step, score) of the last readings, oldest first.
        path: the readings that a gain looks back to, where the band was applied.
        worst: the worst that the run has earned; None where nothing could be judged yet.
    """

    running_maximum: float | None = None
    gain_maximum: float | None = None
    consecutive: int | None = None
    alarmed: bool = False
    last_ok: int | None = None
    recent: tuple[tuple[int, float], ...] = ()
    path: Path | None = None
    worst: Worst | None = None


@dataclass(frozen=True)
class JudgeState:
    """Where judging has come to in a run.

    Attributes:
        behaviours: by reference; one that was never judged has no entry.
        readings: readings so far at which the weights had moved.
        windows: windows of an open-ended run that have ended.
    """

    behaviours: Mapping[str, BehaviourState] = field(default_factory=dict)
    readings: int = 0
    windows: int = 0

    def of(self, behaviour: str) -> BehaviourState:
        """The state of one behaviour; a fresh one where it was never judged."""
        return self.behaviours.get(behaviour, BehaviourState())

    @property
    def alarmed(self) -> frozenset[str]:
        """The behaviours that have alarmed in this run."""
        return frozenset(name for name, state in self.behaviours.items() if state.alarmed)

    @property
    def last_ok(self) -> dict[str, int]:
        """By behaviour, the step of the last reading that was ok."""
        return {n: s.last_ok for n, s in self.behaviours.items() if s.last_ok is not None}
