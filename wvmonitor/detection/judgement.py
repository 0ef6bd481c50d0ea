"""What judging yields: the verdict on each behaviour, one judged reading, and what is carried on.

Plain values: journals keep them, workers send them home, and every way from weights to words has
the same ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from wvmonitor.detection.scores import ScoreName, Scores
from wvmonitor.reading import Component, Geometry, LayerShares, Reading


class State(StrEnum):
    """What is thought of a behaviour, from the least to the most that someone must look at.

    States compare in that order: unknown is worse than warming, which passes by itself, and
    neither is ever ok.
    """

    OK = "ok"
    WARMING = "warming"
    UNKNOWN = "unknown"
    WARN = "warn"
    ALARM = "alarm"

    @property
    def severity(self) -> int:
        """The place in the order, from 0."""
        return _SEVERITY[self]

    def __lt__(self, other: str) -> bool:
        return self.severity < State(other).severity

    def __le__(self, other: str) -> bool:
        return self.severity <= State(other).severity

    def __gt__(self, other: str) -> bool:
        return self.severity > State(other).severity

    def __ge__(self, other: str) -> bool:
        return self.severity >= State(other).severity


_SEVERITY = {state: index for index, state in enumerate(State)}
CalibrationStatus = Literal["calibrated", "provisional", "uncalibrated", "transferred"]


@dataclass(frozen=True)
class Verdict:
    """What is to be thought of one reference at one reading.

    Attributes:
        score: the deciding score's value; None where there is none, or it is not finite.
        threshold: the value that `score` is held against at this progress, if there is one.
        calibration: what the threshold rests on.
        reason: for people, in words.
        account: what it means and what to do, one sentence each; empty where nothing was raised.
        geometry, score_name: which score decides; None where nothing could be looked at.
        acknowledged: whether somebody has silenced the behaviour in this run.
    """

    reference: str
    state: State
    reason: str
    score: float | None
    threshold: float | None
    calibration: CalibrationStatus
    step: int | None = None
    account: tuple[str, ...] = ()
    geometry: Geometry | None = None
    score_name: ScoreName | None = None
    acknowledged: bool = False


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


@dataclass(frozen=True)
class Statistics:
    """All that a verdict needs of a reading; small, so that a scan's workers send it home.

    Attributes:
        scores: against every reference.
        component_shares: the share of ‖τ‖² in each part of the model.
        layers: which layers carry the inner products.
    """

    scores: Scores
    component_shares: Mapping[Component, float]
    layers: LayerShares = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """One judged reading.

    Attributes:
        reading: the inner products, where they are at hand.
        scores: their statistics.
        verdicts: by behaviour.
        state: what the judge carries on to the run's next reading.
        component_shares: the share of ‖τ‖² in each part of the model; empty where not at hand.
        layers: which layers carry the inner products; empty where not at hand.
    """

    reading: Reading | None
    scores: Scores
    verdicts: Mapping[str, Verdict]
    state: JudgeState = field(default_factory=JudgeState)
    component_shares: Mapping[Component, float] = field(default_factory=dict)
    layers: LayerShares = field(default_factory=dict)

    @property
    def step(self) -> int | None:
        """The optimiser step, if known."""
        return self.scores.step

    @property
    def overall(self) -> State:
        """The worst of the verdicts' states."""
        return overall(self.verdicts)

    @property
    def acknowledged(self) -> frozenset[str]:
        """The behaviours that somebody has silenced in this run."""
        return frozenset(name for name, v in self.verdicts.items() if v.acknowledged)

    def acknowledging(self, behaviours: Collection[str]) -> Judgement:
        """The same, where just these behaviours have been silenced by now."""
        verdicts = {n: replace(v, acknowledged=n in behaviours) for n, v in self.verdicts.items()}
        return replace(self, verdicts=verdicts)

    def unwatched(self, why: str) -> Judgement:
        """The last judgement on a run that nobody watches any more, with the reason in words.

        What was fine at the time is unknown now; a warning or an alarm stays what it was.
        """
        verdicts = {
            n: v
            if v.state > State.UNKNOWN
            else replace(v, state=State.UNKNOWN, reason=why, account=())
            for n, v in self.verdicts.items()
        }
        return replace(self, verdicts=verdicts)


def overall(verdicts: Mapping[str, Verdict]) -> State:
    """The state that most needs someone to look; no verdict at all is unknown."""
    return max((State(v.state) for v in verdicts.values()), default=State.UNKNOWN)


def named(judgement: Judgement) -> Judgement:
    """A judgement read from what an older version wrote, whose verdicts don't name their score.

    It is the score whose value the verdict carries.
    """
    verdicts = dict(judgement.verdicts)
    for name, verdict in judgement.verdicts.items():
        reference = judgement.scores.references.get(name)
        if verdict.geometry is not None or verdict.score is None or reference is None:
            continue
        for geometry, values in reference.values.items():
            for score_name, value in values.items():
                if value == verdict.score:
                    verdicts[name] = replace(verdict, geometry=geometry, score_name=score_name)
    return replace(judgement, verdicts=verdicts)
