"""`wvmonitor screen`: a first look at an update when there is no reference for its base."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from wvmonitor.cli.scan import AsJson, Base, Paths, one_format

Format = Literal["table", "csv", "json"]
"""How the screening is written."""


def command(
    paths: Paths,
    base: Base = None,
    top: Annotated[
        int, typer.Option(metavar="K", help="How many singular values and directions to keep.")
    ] = 4,
    directions: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the top directions as .safetensors."),
    ] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="A line a layer, or every matrix.")
    ] = "table",
    *,
    as_json: AsJson = False,
) -> None:
    """Show where a fine-tune changed the weights, and in how few directions; it judges nothing.

    A small stable rank (‖Δ‖²/σ₁²) means that one direction carries most of a matrix's change.
    Exit codes: 0; 2 where something could not be read; 4 wrong usage.

    For example:

      wvmonitor screen runs/my-adapter

      wvmonitor screen checkpoints/final --base models/my-base --format csv
    """
    from wvmonitor.scan.session import run_screen

    code = run_screen(
        paths,
        base=base,
        top=top,
        form=one_format(format_, json=as_json),
        directions=directions,
    )
    raise typer.Exit(code)
