"""Runs from where they are kept: a journal, or the JSON of a scan."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from wvmonitor.errors import JournalError, MalformedFileError, MissingPathError
from wvmonitor.journal.reader import JournalReader, read_journal
from wvmonitor.journal.records import Attempt, JournalRow
from wvmonitor.journal.schema import FILE_NAME
from wvmonitor.journal.search import find_journals
from wvmonitor.outputs.run_state import checkpoints_in
from wvmonitor.outputs.scan_record import CheckpointResult, judgement_of, read_records
from wvmonitor.reading import Geometry
from wvmonitor.report.findings import deciding_score, judge
from wvmonitor.report.view import HeatMap, RunView, heat_map
from wvmonitor.report.words import listed

SQLITE = b"SQLite format 3\0"
HEAT_MAPS = 3
"""Behaviours that get a heat map: the leading one, and others that warn or alarm."""


def from_journal(path: str | Path, *, runs: Sequence[str] = ()) -> list[RunView]:
    """The runs of the journal at `path` (its file, or the folder that holds it), oldest first.

    Raises:
        JournalError: there is no journal, it cannot be read, or it holds no such run.
    """
    reader = read_journal(path)
    known = reader.runs()
    missing = [run for run in runs if run not in known]
    if missing:
        raise JournalError(
            f"'{reader.path}' holds no run {missing[0]!r}: it holds {list(known) or 'none'}"
        )
    chosen = [run for run in known if not runs or run in runs]
    saved = _checkpoints(reader.path) if len(known) == 1 else ()
    return [_run(reader, run, saved) for run in chosen]


def _run(reader: JournalReader, run: str, saved: Sequence[int]) -> RunView:
    outline = reader.outline(run)
    rows = outline.rows
    attempts = reader.attempts(run)
    steps = {row.step for row in rows}
    reach = max(steps, default=0)
    unwatched = reader.unwatched(run)
    view = RunView(
        name=run,
        rows=[row.judgement for row in rows],
        readings=outline.readings,
        wall_times=[row.wall_time for row in rows],
        measure_seconds=[r.measure_seconds for r in rows if r.measure_seconds is not None],
        events=reader.events(run),
        checkpoints=[step for step in saved if step <= reach],
        planned_steps=attempts[-1].context.planned_steps if attempts else None,
        facts=_facts(attempts, reader.path),
        problems=[unwatched] if unwatched else (),
    )
    return RunView(**{**vars(view), "heat_maps": _heat_maps(reader, view, rows)})


def _heat_maps(reader: JournalReader, view: RunView, rows: Sequence[JournalRow]) -> list[HeatMap]:
    """Of the last reading, for the references worth a look; none where the arrays are gone."""
    outcome = judge(view)
    deciding = deciding_score(view.rows)
    leading = [f.reference for f in (outcome.drifting or outcome.findings[:1])][:HEAT_MAPS]
    if not rows or not leading:
        return []
    try:
        reading = reader.reading(rows[-1])
    except JournalError:  # pruned: the page goes without
        return []
    geometry: Geometry = "response" if deciding and deciding[0] == "response" else "frobenius"
    maps = [
        heat_map(reading, reference, geometry, components=rows[-1].scores.components)
        for reference in leading
        if reference in reading.references
    ]
    return [heat for heat in maps if heat is not None]


def _facts(attempts: Sequence[Attempt], path: Path) -> list[tuple[str, str]]:
    facts = [("journal", str(path))]
    if not attempts:
        return facts
    context = attempts[-1].context
    method = [w for w in (context.method, context.rank and f"rank {context.rank}") if w]
    rate = context.learning_rate
    optimiser = [w for w in (context.optimizer, rate and f"peak learning rate {rate:.3g}") if w]
    base = {"same": "the references' own", "relative": "a declared relative of the references'"}
    facts.append(("base", base.get(context.base, "not known")))
    facts += [("method", ", ".join(method))] if method else []
    facts += [("optimiser", ", ".join(optimiser))] if optimiser else []
    if expected := _expected(attempts[-1].settings):
        facts.append(("expected drift", listed(expected)))
    if len(attempts) > 1:
        resumed = [f"{a.resume_step}" for a in attempts[1:]]
        facts.append(("resumed", f"at step {listed(resumed)}"))
    return facts


def _expected(settings: str) -> list[str]:
    """The references whose drift the settings declare as wanted."""
    try:
        names = json.loads(settings).get("expected")
    except (ValueError, AttributeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _checkpoints(journal: Path) -> Sequence[int]:
    """Steps of the `checkpoint-N` folders beside the journal, or one folder up."""
    folders = (journal.parent, journal.absolute().parent.parent)
    return next(filter(None, map(checkpoints_in, folders)), ())


def from_scan(
    document: str | bytes | Mapping[str, Any], *, source: str = "the scan"
) -> list[RunView]:
    """The checkpoints of `wvmonitor scan --format json`: those of one run together, by step.

    Raises:
        MalformedFileError: it is not the JSON of a scan.
        FormatVersionError: a newer version of wvmonitor wrote it.
    """
    content: Any = document
    if isinstance(document, str | bytes):
        try:
            content = json.loads(document)
        except (ValueError, RecursionError) as error:
            raise MalformedFileError(
                f"{source} is neither a journal nor JSON ({error}): give a wvmonitor.db, or what "
                "`wvmonitor scan --format json` wrote"
            ) from None
    groups: dict[str, list[CheckpointResult]] = {}
    for checkpoint in read_records(content, source):
        groups.setdefault(checkpoint.run or checkpoint.path, []).append(checkpoint)
    return [_scanned(name, checkpoints) for name, checkpoints in groups.items()]


def _scanned(name: str, checkpoints: Sequence[CheckpointResult]) -> RunView:
    ordered = sorted(checkpoints, key=lambda c: -1 if c.step is None else c.step)
    last = ordered[-1]
    ends = last.progress and last.step and round(last.step / last.progress)
    method = [w for w in (last.method, last.rank and f"rank {last.rank}") if w]
    return RunView(
        name=name,
        rows=[judgement_of(c) for c in ordered if c.error is None],
        checkpoints=[c.step for c in ordered if c.step is not None] if len(ordered) > 1 else (),
        planned_steps=ends or None,
        facts=[("method", ", ".join(method))] if method else (),
        problems=[
            f"{PurePosixPath(c.path).name or c.path}: {c.error.message} ({c.error.type})"
            for c in ordered
            if c.error is not None
        ],
    )


def read_runs(source: str | Path, *, runs: Sequence[str] = ()) -> list[RunView]:
    """The runs at `source`: a journal, a folder of them, or a scan's JSON ("-" reads stdin).

    Args:
        source: a `wvmonitor.db`, a folder at or below which there are such, or a JSON file.
        runs: only these runs of the journals; all of them if empty.

    Raises:
        MissingPathError: there is nothing of that kind.
        JournalError: a journal or a folder cannot be read, or none holds such a run.
        MalformedFileError: the file is neither a journal nor a scan.
    """
    return read_sources([source], runs=runs)


def read_sources(sources: Sequence[str | Path], *, runs: Sequence[str] = ()) -> list[RunView]:
    """The runs at all these places, in their order; each place and error as in `read_runs`."""
    journals: list[Path] = []
    views: list[RunView | Path] = []
    for source in sources:
        found = _journals_at(source)
        journals += found or ()
        views += _scan_at(source) if found is None else found
    held = {run for path in journals for run in read_journal(path).runs()} if runs else set()
    if journals and (missing := [run for run in runs if run not in held]):
        one = len(journals) == 1
        where = f"'{journals[0]}' holds no run" if one else f"none of {len(journals)} journals has"
        raise JournalError(
            f"{where} {missing[0]!r}: {'it holds' if one else 'they hold'} {sorted(held) or 'none'}"
        )
    return [run for view in views for run in _runs_of(view, runs)]


def _runs_of(view: RunView | Path, runs: Sequence[str]) -> list[RunView]:
    """A scan's run itself; of a journal those that are asked for."""
    if isinstance(view, RunView):
        return [view]
    if not runs:
        return from_journal(view)
    mine = [run for run in read_journal(view).runs() if run in runs]
    return from_journal(view, runs=mine) if mine else []


def _journals_at(source: str | Path) -> list[Path] | None:
    """The journals that a path stands for; None where it is no folder and no journal."""
    path = Path(source)
    if str(source) == "-":
        return None
    if path.is_dir():
        unseen: list[str] = []
        try:
            found = find_journals(path, unseen)
        except JournalError:
            raise MissingPathError(
                f"'{path}' holds no journal ({FILE_NAME}), and neither does a folder below it: "
                "name a run's folder, or the JSON of a scan"
            ) from None
        if unseen:
            raise JournalError(f"{unseen[0]}: there may be runs in it; name those to report on")
        return found
    try:
        with path.open("rb") as file:
            journal = file.read(len(SQLITE)) == SQLITE or path.suffix == ".db"
    except OSError as error:
        raise MissingPathError(
            f"'{path}' cannot be read ({error.strerror}): name a journal ({FILE_NAME}), its "
            "folder, or the JSON of a scan"
        ) from None
    return [path] if journal else None


def _scan_at(source: str | Path) -> list[RunView]:
    if str(source) == "-":
        return from_scan(sys.stdin.read(), source="standard input")
    return from_scan(Path(source).read_bytes(), source=f"'{source}'")
