"""`wvmonitor report`: one page about a run, several runs, or a scan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="JOURNAL_OR_SCAN...",
            help="Journals (wvmonitor.db, or folders that hold them, at any depth) and "
            "scans (the JSON of `wvmonitor scan --format json`; - reads one from standard input).",
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="The page; - for standard output.")
    ] = Path("report.html"),
    run: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="Only this run of the journals (repeatable)."),
    ] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="The page's heading.")] = None,
) -> None:
    """Write one self-contained HTML page: verdicts and why, score curves, layers, how measured.

    For example:

      wvmonitor report runs/my-run -o report.html

      wvmonitor scan adapters/* --format json | wvmonitor report - -o report.html
    """
    from wvmonitor.report.document import write_page
    from wvmonitor.report.inputs import read_sources
    from wvmonitor.report.page import render

    views = read_sources(sources, runs=run or ())
    names = ", ".join(str(source) for source in sources)
    page = render(
        views,
        title=title or (views[0].name if len(views) == 1 else f"{len(views)} runs"),
        provenance={"read from": names},
    )
    if str(out) == "-":
        sys.stdout.write(page)
    else:
        write_page(page, out)
        typer.echo(f"{out}: {len(views)} {'run' if len(views) == 1 else 'runs'}")
