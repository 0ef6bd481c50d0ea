"""`wvmonitor rescore`: judge a recorded run by references that came later."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wvmonitor.cli.scan import (
    AsJson,
    CalibrationFile,
    FailOn,
    OutputFormat,
    StrictCoverage,
    one_format,
)


def command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="The run's output folder, or its wvmonitor.db; the run was watched with "
            "record=True.",
        ),
    ],
    *,
    references: Annotated[
        str | None,
        typer.Option(metavar="BANK", help="Folder of the references; the bundled ones by default."),
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="ID", help="Which run of the journal; the latest one.")
    ] = None,
    calibration: CalibrationFile = None,
    behaviour: Annotated[
        list[str] | None,
        typer.Option(
            "--behaviour", "--behavior", metavar="NAME", help="Judge by this one (repeatable)."
        ),
    ] = None,
    fail_on: FailOn = "alarm",
    format_: OutputFormat = "table",
    output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="Write the results to a file as well, as `scan` does (repeatable)."
        ),
    ] = None,
    strict_coverage: StrictCoverage = False,
    as_json: AsJson = False,
) -> None:
    """Judge an old run by references that did not exist when it ran.

    Exit codes as of `wvmonitor scan`: 0 all ok; 1 a verdict at or above --fail-on; 2 something
    could not be judged, a reading without a snapshot included; 4 wrong usage.

    For example:

      wvmonitor rescore runs/my-run --references banks/my-base-with-new-behaviours
    """
    from wvmonitor.scan.rescore import run_rescore

    code = run_rescore(
        source,
        run=run,
        references=references,
        calibration=calibration,
        behaviours=behaviour,
        strict_coverage=strict_coverage,
        fail_on=fail_on,
        form=one_format(format_, json=as_json),
        outputs=output or [],
    )
    raise typer.Exit(code)
