"""What a journal holds of a run: its starts, its readings as they were judged, its events."""

from __future__ import annotations

from dataclasses import dataclass

from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judgement import Judgement, JudgeState, Verdict
from wvmonitor.detection.scores import Scores


@dataclass(frozen=True)
class JournalRow:
    """One reading of a run as it was judged at the time.

    Attributes:
        wall_time: when it was made, seconds since 1970.
        measure_seconds: how long measuring took, if it was timed.
        judgement: what was thought of it; `JournalReader.reading` has the reading itself.
    """

    run: str
    attempt: int
    step: int
    wall_time: float
    measure_seconds: float | None
    judgement: Judgement

    @property
    def scores(self) -> Scores:
        """Its scores."""
        return self.judgement.scores

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The verdicts passed on it."""
        return tuple(self.judgement.verdicts.values())

    @property
    def judge_state(self) -> JudgeState:
        """What the judge carried on from it."""
        return self.judgement.state


@dataclass(frozen=True)
class Outline:
    """The course of a run.

    Attributes:
        rows: its telling readings, by step.
        readings: how many there are in all.
    """

    rows: list[JournalRow]
    readings: int


@dataclass(frozen=True)
class Attempt:
    """One start of a run.

    Attributes:
        started: seconds since 1970.
        resume_step: the step it went on from; 0 for a start from the beginning.
        bank: fingerprint of the bank measured against.
        settings: the monitor's settings as JSON, secrets redacted.
    """

    run: str
    attempt: int
    started: float
    resume_step: int
    bank: str
    context: RunContext
    settings: str


@dataclass(frozen=True)
class Event:
    """Something that happened to a run beside its readings.

    Attributes:
        time: seconds since 1970.
        kind: "ack", "stop", "stop-cleared", "note", "probe", "inoculated", "rollback", "loaded",
            "gave-up" or "end".
        reference: the behaviour it is about, if it is about one.
        detail: the words given for it.
    """

    run: str
    time: float
    kind: str
    reference: str | None
    detail: str
