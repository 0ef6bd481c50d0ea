"""`wvmonitor scan`: judge checkpoints by their weights."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from wvmonitor.cli.base import base_option

Level = Literal["warn", "alarm"]
"""The least verdict that fails."""

Format = Literal["table", "json", "jsonl", "csv", "junit", "github", "sarif", "card", "openmetrics"]
"""How results are written."""

Where = Literal["processes", "dask"]
"""Where checkpoints are measured."""

CalibrationFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Calibration of the bank; calibration.json beside it by default."
    ),
]
FailOn = Annotated[Level, typer.Option(help="The least verdict that makes the exit code 1.")]
StrictCoverage = Annotated[
    bool,
    typer.Option(
        "--strict-coverage",
        help="Judge the whole change or nothing: without it, verdicts speak of the blocks where "
        "embeddings or head (added tokens) hold most of the change, and say so.",
    ),
]
OutputFormat = Annotated[
    Format, typer.Option("--format", help="How to write the results to standard output.")
]
AsJson = Annotated[bool, typer.Option("--json", help="The same as --format json.")]
Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH",
        help="Adapters, checkpoints, or runs' output folders; - reads a list of them from "
        "standard input.",
    ),
]
Base = Annotated[str | None, base_option("Folder of the model that training started from")]


def one_format(chosen: str, **flags: bool) -> str:
    """The format that was asked for, by --format or by a flag of its own.

    Raises:
        typer.BadParameter: two were asked for, of which only one can be written.
    """
    asked = [name for name, given in flags.items() if given]
    if chosen != "table":
        asked.append(chosen)
    if len(set(asked)) > 1:
        raise typer.BadParameter(
            f"{asked[0]} and {asked[1]} cannot both be printed: --output FILE writes the other"
        )
    return asked[0] if asked else chosen


def command(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            help="Adapters (folders with adapter_config.json), checkpoints (safetensors folders "
            "or files), or a Trainer's output folder (its checkpoint-* as one trajectory); local, "
            "or fsspec URLs (s3://…, hf://ORG/REPO). hf://ORG is every adapter of an organisation. "
            "- reads a list of them from standard input.",
        ),
    ] = None,
    references: Annotated[
        str | None,
        typer.Option(
            metavar="BANK",
            help="Folder of the reference vectors. The bundled ones, which fit the bundled tiny "
            "model only, if left out.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        base_option(
            "Folder of the model that training started from, where the checkpoints do not name a "
            "local one"
        ),
    ] = None,
    calibration: CalibrationFile = None,
    behaviour: Annotated[
        list[str] | None,
        typer.Option(
            "--behaviour",
            "--behavior",
            metavar="NAME",
            help="Judge by this reference only (repeatable); by every behaviour of the bank if "
            "left out.",
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The runs' optimiser, which files do not say: adamw, …"),
    ] = None,
    glob: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Scan what matches, ** included (repeatable)."),
    ] = None,
    from_file: Annotated[
        list[str] | None,
        typer.Option(metavar="LIST", help="Scan the paths in a file, one a line (repeatable)."),
    ] = None,
    since_step: Annotated[
        int | None, typer.Option(metavar="N", help="Leave out checkpoints of earlier steps.")
    ] = None,
    fail_on: FailOn = "alarm",
    format_: OutputFormat = "table",
    output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Write the results to a file as well, in the format of its ending: .json, .jsonl, "
            ".csv, .xml (JUnit), .sarif, .om (OpenMetrics), .parquet; .md puts the block of --card "
            "into a model card and leaves the rest of it as it is (repeatable).",
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(metavar="N", help="Measure in N single-threaded processes; 0: each core one."),
    ] = 1,
    executor: Annotated[
        Where, typer.Option(help="Where to measure: processes here, or a Dask cluster.")
    ] = "processes",
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="The Dask cluster's scheduler: tcp://HOST:8786."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Keep measurements here, and go on where an earlier scan stopped: content that "
            "was measured against the same references is not measured again.",
        ),
    ] = None,
    *,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Let nothing pass beside what was judged: other weights, or code that loading the "
            "folder would import, make the exit code 2. Implies --strict-coverage.",
        ),
    ] = False,
    strict_coverage: StrictCoverage = False,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Print a block for the model card: verdicts, bank, base and date (--format card).",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge checkpoints by their weights: does a fine-tune drift towards a known bad behaviour?

    Exit codes: 0 all judged, and nothing at --fail-on; 1 a verdict at or above --fail-on (outranks
    2); 2 something could not be judged: a path that is missing or unreadable, an unknown verdict,
    or a warming one (too little has changed to judge; excused for early checkpoints of a run that
    were judged later); 4 wrong usage.

    For example:

      wvmonitor scan runs/my-adapter --references banks/my-base

      wvmonitor scan runs/output-dir --references banks/my-base --base models/my-base

      wvmonitor scan adapters/* --references banks/my-base --format json --fail-on warn

      wvmonitor scan --glob 'archive/**/adapter_model.safetensors' --references banks/my-base
      --workers 8 --cache scan.cache --output scan.xml --output scan.parquet

      wvmonitor scan hf://my-org --references banks/my-base --base models/my-base
      --cache scan.cache --strict --output scan.sarif

      wvmonitor scan my-adapter --references banks/my-base --output my-adapter/README.md
    """
    if not paths and not glob and not from_file:
        raise typer.BadParameter("give at least one PATH, --glob or --from-file")
    from wvmonitor.scan.session import Request, run

    request = Request(
        paths=paths or [],
        patterns=glob or [],
        lists=from_file or [],
        since_step=since_step,
        references=references,
        base=base,
        calibration=calibration,
        behaviours=behaviour,
        optimizer=optimizer,
        fail_on=fail_on,
        format=one_format(format_, card=card, json=as_json),
        outputs=output or [],
        workers=workers,
        executor=executor,
        scheduler=scheduler,
        cache=cache,
        strict=strict,
        strict_coverage=strict_coverage,
    )
    raise typer.Exit(run(request))
