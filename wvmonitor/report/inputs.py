"""Runs from where they are kept: a journal, or the JSON of a scan."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from wvmonitor.errors import JournalError, MalformedFileError, MissingPathError
from wvmonitor.journal.reader import JournalReader, read_journal
from wvmonitor.journal.records import Attempt, JournalRow
from wvmonitor.journal.schema import FILE_NAME, journal_file
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

    Args:
        path: where the journal is.
        runs: only these; all of them if empty.

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


def _checkpoints(journal: Path) -> tuple[int, ...]:
    """Steps of the `checkpoint-N` folders beside the journal, or one folder up."""
    for folder in (journal.parent, journal.absolute().parent.parent):
        try:
            names = [p.name for p in folder.glob("checkpoint-*") if p.is_dir()]
        except OSError:
            continue
        steps = [int(m[1]) for n in names if (m := re.fullmatch(r"checkpoint-(\d{1,12})", n))]
        if steps:
            return tuple(sorted(steps))
    return ()


def from_scan(
    document: str | bytes | Mapping[str, Any], *, source: str = "the scan"
) -> list[RunView]:
    """The checkpoints of `wvmonitor scan --format json`: those of one run together, by step.

    Args:
        document: the JSON text, or what it holds.
        source: the file's name, for errors.

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
        source: a `wvmonitor.db`, a folder that holds one or whose sub-folders do, or a JSON file.
        runs: only these runs of a journal; all of them if empty.

    Raises:
        MissingPathError: there is nothing of that kind.
        JournalError: a journal cannot be read, or holds no such run.
        MalformedFileError: the file is neither a journal nor a scan.
    """
    path = Path(source)
    if str(source) == "-":
        return from_scan(sys.stdin.read(), source="standard input")
    if path.is_dir():
        folders = [path] if journal_file(path).is_file() else sorted(path.glob(f"*/{FILE_NAME}"))
        if not folders:
            raise MissingPathError(
                f"'{path}' holds no journal ({FILE_NAME}), and neither do its sub-folders: name a "
                "run's folder, or the JSON of a scan"
            )
        return [view for folder in folders for view in from_journal(folder, runs=runs)]
    try:
        with path.open("rb") as file:
            if file.read(len(SQLITE)) == SQLITE or path.suffix == ".db":
                return from_journal(path, runs=runs)
            file.seek(0)
            return from_scan(file.read(), source=f"'{path}'")
    except OSError as error:
        raise MissingPathError(
            f"'{path}' cannot be read ({error.strerror}): name a journal ({FILE_NAME}), its "
            "folder, or the JSON of a scan"
        ) from None
