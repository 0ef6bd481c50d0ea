"""`wvmonitor runs`: many runs side by side."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from wvmonitor.journal.overview import ReferenceSummary, RunSummary

_STYLES = {"alarm": "bold red", "warn": "yellow", "unknown": "magenta", "warming": "cyan"}


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of runs, searched for journals.")
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Show the worst verdict of every run below a folder, and where each behaviour stands.

    That is its score / threshold and dose at the last reading.

    Exit codes: 0; 2 no journal is there, or one was not readable.

    For example:

      wvmonitor runs sweeps/august
    """
    from rich.console import Console

    from wvmonitor.journal.overview import summaries

    found = list(summaries(folder))
    console = Console()
    if as_json:
        typer.echo(json.dumps({"runs": [_plain(s) for s in found]}, allow_nan=False))
    elif console.is_terminal:
        console.print(_table(found))
    else:
        for summary in found:
            typer.echo(_line(summary))
    broken = [s for s in found if s.error]
    if broken:
        print(f"wvmonitor: {len(broken)} journals could not be read", file=sys.stderr)
        raise typer.Exit(2)


def _plain(summary: RunSummary) -> dict[str, Any]:
    from dataclasses import asdict

    return {k: _finite(v) for k, v in asdict(summary).items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(summaries: list[RunSummary]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from wvmonitor.scan.text import visible

    names = list(dict.fromkeys(name for s in summaries for name in s.references))
    table = Table(header_style="bold", pad_edge=False)
    for column in ("run", "verdict", "step", "done", "last reading"):
        table.add_column(column, overflow="fold")
    for name in names:
        table.add_column(f"{escape(visible(name))}\nscore / threshold, dose", justify="right")
    table.add_column("notes", overflow="fold")
    for s in summaries:
        cells = [_reference(s.references.get(name)) for name in names]
        style = _STYLES.get(s.verdict, "green")
        table.add_row(
            escape(visible(s.run or s.journal)),
            f"[{style}]{s.verdict}[/]",
            "–" if s.step is None else str(s.step),
            "–" if s.progress is None else f"{s.progress:.0%}",
            _when(s.wall_time),
            *cells,
            escape(_notes(s)),
        )
    return table


def _line(s: RunSummary) -> str:
    from wvmonitor.scan.text import visible

    parts = [f"{s.verdict:<8}{visible(s.run or s.journal)}"]
    if s.step is not None:
        done = "" if s.progress is None else f" ({s.progress:.0%})"
        parts.append(f"step {s.step}{done}")
    parts += [
        f"{visible(name)} {r.state} {_reference(r, styled=False)}"
        for name, r in s.references.items()
    ]
    if s.step is not None:
        parts.append(_when(s.wall_time))
    notes = _notes(s)
    return "  ".join([*parts, notes] if notes else parts)


def _reference(summary: ReferenceSummary | None, *, styled: bool = True) -> str:
    from wvmonitor.scan.text import number

    if summary is None:
        return "–"
    text = f"{number(summary.score)} / {number(summary.threshold)}, {number(summary.dose)}"
    style = _STYLES.get(summary.state, "green")
    return f"[{style}]{text}[/]" if styled else text


def _when(wall_time: float | None) -> str:
    if wall_time is None:
        return "–"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(wall_time))


def _notes(s: RunSummary) -> str:
    from wvmonitor.scan.text import number, visible

    notes = [f"cannot be read: {s.error}"] if s.error else []
    if s.stopped is not None:
        notes.append(f"stopped: {s.stopped}")
    if s.unwatched is not None:
        notes.append(s.unwatched)
    notes += [
        f"{name} acknowledged: {r.acknowledged}"
        for name, r in s.references.items()
        if r.acknowledged is not None
    ]
    notes += [
        f"{name} was at {r.worst} from step {r.worst_step} on ({number(r.worst_score)})"
        for name, r in s.references.items()
        if r.worst > r.state
    ]
    if s.pending:
        notes.append(f"{s.pending} alerts wait")
    return visible("; ".join(notes))
