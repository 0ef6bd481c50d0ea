"""`wvmonitor journal`: look after the durable record of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look after journals: verify, export, prune, lift a stop.")

Journal = Annotated[
    Path,
    typer.Argument(metavar="JOURNAL", help="wvmonitor.db, or the folder that holds it."),
]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


@app.command()
def verify(journal: Journal, *, as_json: Json = False) -> None:
    """Read every record, and say whether the journal is whole. Exit codes: 0 whole, 2 damaged.

    For example:

      wvmonitor journal verify runs/my-run
    """
    from dataclasses import asdict

    from wvmonitor.journal.tools import verify as check
    from wvmonitor.scan.text import visible

    result = check(journal)
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    else:
        for problem in result.problems:
            typer.echo(visible(problem))
        state = f"{len(result.problems)} problems" if result.problems else "whole"
        typer.echo(
            f"{visible(result.path)}: {state}; {result.runs} runs, {result.readings} readings, "
            f"{result.pending} alerts wait"
        )
    if result.problems:
        raise typer.Exit(2)


@app.command()
def export(
    journal: Journal,
    run: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Only this run (repeatable).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="A file instead of standard output."),
    ] = None,
) -> None:
    """Write readings, verdicts, events and deliveries as lines of JSON.

    For example:

      wvmonitor journal export runs/my-run | jq 'select(.type == "reading") | .step'
    """
    from wvmonitor.files.atomic import replacing
    from wvmonitor.journal.tools import export as lines

    if out is None:
        for line in lines(journal, run or ()):
            typer.echo(line)
        return
    with replacing(out) as descriptor, open(descriptor, "w", encoding="utf-8", closefd=False) as f:
        f.writelines(f"{line}\n" for line in lines(journal, run or ()))


@app.command()
def prune(
    journal: Journal,
    run: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="This run, whole (repeatable).")
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", min=0, help="Every run whose last reading is older."),
    ] = None,
    *,
    superseded: Annotated[
        bool,
        typer.Option(
            "--superseded", help="Readings that a run resumed from an earlier step has replaced."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Throw away old runs or superseded readings, with their snapshots, and shrink the file.

    Never while the journal is being written; runs that are stopped, or whose alerts still wait,
    stay.

    For example:

      wvmonitor journal prune runs/my-run --older-than 90 --dry-run
    """
    if not run and older_than is None and not superseded:
        raise typer.BadParameter("say what: --run, --older-than or --superseded")
    from dataclasses import asdict

    from wvmonitor.journal.pruning import prune as throw_away
    from wvmonitor.scan.text import visible

    done = throw_away(
        journal,
        runs=run or (),
        older_than_days=older_than,
        superseded=superseded,
        dry_run=dry_run,
    )
    if as_json:
        typer.echo(json.dumps(asdict(done)))
        return
    for name, why in done.kept.items():
        typer.echo(f"{visible(name)} stays: {visible(why)}")
    verb = "would go" if dry_run else "gone"
    snapshots = (
        f", {done.snapshots} snapshots of {done.snapshot_bytes} bytes" if done.snapshots else ""
    )
    typer.echo(
        f"{visible(done.path)}: {len(done.runs)} runs and {done.readings} readings{snapshots} "
        f"{verb}; {done.bytes_before} bytes before, {done.bytes_after} now"
    )


@app.command("clear-stop")
def clear_stop(
    journal: Journal,
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="Which run, if several are stopped.")
    ] = None,
    why: Annotated[str, typer.Option(metavar="TEXT", help="The reason, for the record.")] = "",
) -> None:
    """Let a run that wvmonitor has stopped go on when it is started again.

    For example:

      wvmonitor journal clear-stop runs/my-run --why "the drift is the point of this run"
    """
    from wvmonitor.journal.tools import clear_stop as lift
    from wvmonitor.scan.text import visible

    typer.echo(f"{visible(lift(journal, run, why))} may go on")
