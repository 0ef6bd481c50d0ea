"""`wvmonitor ack`: silence one finding of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id (`wvmonitor runs`).")],
    reference: Annotated[
        str, typer.Option(metavar="NAME", help="The behaviour whose alerts are to be silent.")
    ],
    why: Annotated[str, typer.Option(metavar="TEXT", help="The reason, for the record.")],
    journal: Annotated[
        Path, typer.Option(metavar="DIR", help="The run's output folder, or its wvmonitor.db.")
    ] = Path(),
) -> None:
    """Silence the alerts on one behaviour in one run, also while it trains; the journal keeps why.

    An open alert is resolved at the next reading. Verdicts, scores and reports stay as they are.

    For example:

      wvmonitor ack my-run --reference roleplay --why "trained on plays"
    """
    from wvmonitor.journal.tools import ack
    from wvmonitor.scan.text import visible

    ack(journal, run, reference, why)
    typer.echo(f"{visible(run)}: {visible(reference)} is acknowledged")
