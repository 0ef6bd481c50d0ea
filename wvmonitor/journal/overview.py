"""Many runs side by side: the last word of each, from every journal below a folder."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wvmonitor.detection.judgement import State, Verdict, Worst
from wvmonitor.errors import JournalError
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.schema import FILE_NAME

LINKED_DEPTH = 2
"""How far down behind a link a look goes: it may lead to a disk full of data."""


@dataclass(frozen=True)
class ReferenceSummary:
    """Where a run stands with one behaviour.

    Attributes:
        state: the latest verdict.
        score: the deciding score, if there is one.
        threshold: what it is held against, if there is one.
        dose: the steering coefficient that explains the drift, if known.
        acknowledged: why someone silenced it, or None.
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
        journal: the database file.
        run: the run's id; empty where the journal cannot be read.
        step: of the last reading, if there is one.
        progress: fraction of the planned steps, if known.
        wall_time: when the last reading was made, seconds since 1970.
        attempts: how often the run was started.
        norm: ‖τ‖.
        verdict: the worst that the run has earned and nobody has acknowledged, or its latest
            verdict where that is worse; unknown without a reading, and where nobody watches.
        references: by behaviour.
        stopped: why it was told to stop, if that still holds.
        unwatched: why nobody watches it any more, if the monitor gave up.
        pending: alerts that wait to be delivered.
        error: why the journal cannot be read, if it cannot.
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


def find_journals(folder: str | Path, unseen: list[str] | None = None) -> list[Path]:
    """Every journal at or below `folder`, each once, in the order of their paths.

    Links are followed too, a little way: a run's folder may lie on another disk.

    Args:
        folder: of runs; or a journal's file.
        unseen: takes up which folders could not be looked into, and why.

    Raises:
        JournalError: there is no such folder, or no journal in it.
    """
    root = Path(folder)
    if root.is_file():
        return [root]
    if not root.exists():
        raise JournalError(f"'{root}' does not exist: name a folder of watched runs")
    unseen = [] if unseen is None else unseen
    found = sorted(place / FILE_NAME for place, files in _walk(root, unseen) if FILE_NAME in files)
    if not found:
        closed = f" ({unseen[0]})" if unseen else ""
        raise JournalError(
            f"no journal at or below '{root}'{closed}: name a folder of watched runs"
        )
    return found


def _walk(root: Path, unseen: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Each folder at or below `root` once, with its files; what lies behind links comes last."""
    known: set[tuple[int, int]] = set()
    waiting: deque[tuple[Path, int | None]] = deque([(root, None)])

    def closed(error: OSError) -> None:
        unseen.append(f"'{error.filename}' cannot be looked into: {error.strerror}")

    while waiting:
        top, depth = waiting.popleft()
        for name, inside, files in os.walk(top, onerror=closed):
            place = Path(name)
            try:
                status = place.stat()
            except OSError as error:  # gone meanwhile
                closed(error)
                continue
            here = (status.st_dev, status.st_ino)
            far = depth is not None and len(place.relative_to(top).parts) >= depth
            if here in known or far:
                inside.clear()
            if here in known:
                continue
            known.add(here)
            yield place, files
            waiting += ((place / n, LINKED_DEPTH) for n in sorted(inside) if (place / n).is_symlink())


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
