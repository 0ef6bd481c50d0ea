"""One judged reading, as every way from weights to words has it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from wvmonitor.detection.finding import State
from wvmonitor.detection.groups import LayerShares
from wvmonitor.detection.scores import Scores
from wvmonitor.detection.state import JudgeState
from wvmonitor.detection.verdict import Verdict, overall
from wvmonitor.reading import Component, Reading


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
