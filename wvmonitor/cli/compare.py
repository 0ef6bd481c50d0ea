"""`wvmonitor compare`: cosines between any weight vectors."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from wvmonitor.cli.scan import AsJson, Base, Paths, one_format

Format = Literal["table", "csv", "json", "svg"]
"""How the matrix is written."""

Product = Literal["frobenius", "response"]
"""Which inner product."""


def command(
    paths: Paths,
    *,
    references: Annotated[
        str | None,
        typer.Option(metavar="BANK", help="Compare with every reference of this bank, too."),
    ] = None,
    base: Base = None,
    geometry: Annotated[
        Product,
        typer.Option(help="Weights as they are, or what they do on the bank's probe."),
    ] = "frobenius",
    everything: Annotated[
        bool,
        typer.Option(
            "--all-parameters", help="Embeddings, head, norms and biases as well as the blocks."
        ),
    ] = False,
    format_: Annotated[Format, typer.Option("--format", help="svg is a heat map.")] = "table",
    as_json: AsJson = False,
) -> None:
    """Show the cosine between every two of any number of fine-tunes and references.

    Each file is read once, however many are compared. Exit codes: 0; 2 where something could not
    be read; 4 wrong usage.

    For example:

      wvmonitor compare adapters/* --references banks/my-base

      wvmonitor compare runs/output-dir --format svg > drift.svg
    """
    from wvmonitor.scan.session import run_compare

    code = run_compare(
        paths,
        base=base,
        references=references,
        everything=everything,
        geometry=geometry,
        form=one_format(format_, json=as_json),
    )
    raise typer.Exit(code)
