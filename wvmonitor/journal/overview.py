"""Many runs side by side: the last word of each, from every journal below a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wvmonitor.detection.judgement import State, Verdict, Worst
from wvmonitor.errors import JournalError
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.schema import journal_file
from wvmonitor.journal.search import find_journals


@dataclass(frozen=True)
class ReferenceSummary:
    """Where a run stands with one behaviour.

    Attributes:
        worst: the worst verdict that the run has earned: ok only where it never rose.
        worst_step: of the first reading that earned it, if known.
        worst_score: the deciding score at that reading, if there was one.
    """

    state: State
    score: float | None
    threshold: float | None
    dose: float | None
    acknowledged: str | None
    worst: State
    worst_step: int | None = None
    worst_score: float | None = None


@dataclass(frozen=True)
class RunSummary:
    """One run as its journal last knew it.

    Attributes:
        run: the run's id; empty where the journal cannot be read.
        wall_time: when the last reading was made, seconds since 1970.
        verdict: the worst that the run has earned and nobody has acknowledged, or its latest
            verdict where that is worse; unknown without a reading, and where nobody watches.
        stopped: why it was told to stop, if that still holds.
        unwatched: why nobody watches it any more, if the monitor gave up.
    """

    journal: str
    run: str
    step: int | None = None
    progress: float | None = None
    wall_time: float | None = None
    attempts: int = 0
    norm: float | None = None
    verdict: State = State.UNKNOWN
    references: dict[str, ReferenceSummary] = field(default_factory=dict)
    stopped: str | None = None
    unwatched: str | None = None
    pending: int = 0
    error: str | None = None


def journal_of(place: str | Path, run: str) -> Path:
    """The journal that holds a run: the one at a place, or one below it.

    Raises:
        JournalError: there is no journal, none holds the run, or several do.
    """
    found = find_journals(place)
    if len(found) == 1:
        return found[0]  # whether it holds the run is said by whoever opens it
    own = journal_file(place)
    holding = [path for path in found if _holds(path, run)]
    if own in holding or len(holding) == 1:
        return own if own in holding else holding[0]
    if holding:
        raise JournalError(
            f"{len(holding)} journals below '{place}' hold a run {run!r} ('{holding[0]}', "
            f"'{holding[1]}', …): name the one that is meant"
        )
    raise JournalError(
        f"none of the {len(found)} journals at or below '{place}' holds a run {run!r}: "
        "`wvmonitor runs` lists those that they hold"
    )


def _holds(path: Path, run: str) -> bool:
    try:
        return run in JournalReader(path).runs()
    except JournalError:  # damaged, or a newer version's: not the one that is looked for
        return False


def summaries(folder: str | Path) -> Iterator[RunSummary]:
    """Every run of every journal at or below `folder`; one that cannot be read says so.

    So does a folder that cannot be looked into: there may be runs in it.

    Raises:
        JournalError: there is no journal at all.
    """
    unseen: list[str] = []
    for path in find_journals(folder, unseen):
        try:
            with JournalReader(path).at_once() as reader:
                found = [_summary(reader, run) for run in reader.runs()]
        except JournalError as error:
            yield RunSummary(str(path), "", error=str(error))
        else:
            yield from found
    for closed in unseen:
        yield RunSummary(str(folder), "", error=closed)


def _summary(reader: JournalReader, run: str) -> RunSummary:
    attempts = len(reader.attempts(run))
    stopped, pending = reader.stop_latched(run), reader.pending(run)
    unwatched = reader.unwatched(run)
    row = reader.latest(run)
    if row is None:
        return RunSummary(
            str(reader.path),
            run,
            attempts=attempts,
            stopped=stopped,
            unwatched=unwatched,
            pending=pending,
        )
    silenced = reader.acknowledged(run)

    def reference(verdict: Verdict) -> ReferenceSummary:
        scores = row.scores.references.get(verdict.reference)
        state = max(verdict.state, State.UNKNOWN) if unwatched else verdict.state
        worst = row.judge_state.of(verdict.reference).worst or Worst(
            state, verdict.step, verdict.score
        )
        return ReferenceSummary(
            state=state,
            score=verdict.score,
            threshold=verdict.threshold,
            dose=None if scores is None else scores.dose,
            acknowledged=silenced.get(verdict.reference),
            worst=worst.state,
            worst_step=worst.step,
            worst_score=worst.score,
        )

    references = {v.reference: reference(v) for v in row.verdicts}
    open_states = {max(r.state, r.worst) for n, r in references.items() if n not in silenced}
    if unwatched:
        open_states.add(State.UNKNOWN)
    quiet = State.OK if row.verdicts else State.UNKNOWN
    return RunSummary(
        journal=str(reader.path),
        run=run,
        step=row.step,
        progress=row.scores.progress,
        wall_time=row.wall_time,
        attempts=attempts,
        norm=row.scores.norm,
        verdict=max(open_states, default=quiet),
        references=references,
        stopped=stopped,
        unwatched=unwatched,
        pending=pending,
    )
