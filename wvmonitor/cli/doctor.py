"""`wvmonitor doctor`: what a bug report needs to know."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wvmonitor.organism.doctor import Check

_MARKS = {"ok": "[green]ok[/]", "missing": "[dim]–[/]", "failed": "[bold red]FAILED[/]"}


def command(
    *,
    references: Annotated[
        Path | None, typer.Option("--references", help="A bank of yours to check as well.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Check this installation: versions, devices, banks, and the arithmetic against float64.

    Exit codes: 0; 2 if anything is wrong.

    For example:

      wvmonitor doctor --references banks/my-base

      wvmonitor doctor --json > bug-report.json
    """
    from wvmonitor.organism.doctor import examine

    checks = examine(references)
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        _show(checks)
    if any(check.outcome == "failed" for check in checks):
        raise typer.Exit(2)


def _show(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        table.add_row(_MARKS[check.outcome], check.topic, escape(check.detail))
    Console().print(table)
