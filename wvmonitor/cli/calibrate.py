"""`wvmonitor calibrate`: thresholds from your own harmless runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

Space = Literal["response", "frobenius"]
"""The geometry of the deciding score."""

Decides = Literal["residual", "cosine", "margin"]
"""The score that verdicts rest on."""


def command(
    runs: Annotated[
        list[Path],
        typer.Option(
            "--runs",
            metavar="DIR",
            help="Output folder of a harmless run (its journal, or its checkpoint-* folders), or a "
            "folder of watched runs; give as many as there are.",
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", help="The calibration's JSON file.")],
    references: Annotated[
        str | None,
        typer.Option(metavar="BANK", help="Folder of references; the bundled ones if left out."),
    ] = None,
    datasets: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='JSON: {"run folder or id": "dataset"}. Runs of one dataset count once.',
        ),
    ] = None,
    every_own: Annotated[
        bool,
        typer.Option("--each-run-has-its-own-dataset", help="Instead of --datasets, if it is so."),
    ] = False,
    alpha: Annotated[
        float, typer.Option(help="The share of harmless runs that may raise the alarm.")
    ] = 0.05,
    geometry: Annotated[Space, typer.Option(help="Of the deciding score.")] = "response",
    score: Annotated[Decides, typer.Option(help="The deciding score.")] = "residual",
    base: Annotated[
        str | None, typer.Option(metavar="DIR", help="What saved checkpoints were made from.")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="Of runs without a journal: adamw, sgd, …")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Make verdicts rest on your own harmless runs, with the false-alarm rate you ask for.

    Half of the datasets fit the band over a run's progress, half set how far out an alarm is: 5 %
    needs 38 datasets, 1 % needs 198. Put the file beside the bank as calibration.json, or name it
    with calibration=FILE.

    For example:

      wvmonitor calibrate --runs runs/a --runs runs/b … --datasets datasets.json --out benign.json
    """
    from wvmonitor.detection.calibration import calibrate
    from wvmonitor.errors import SettingsError
    from wvmonitor.files.documents import read_json
    from wvmonitor.references.bank import ReferenceBank
    from wvmonitor.references.bundled import bundled_path
    from wvmonitor.scan.benign import benign_runs

    if (datasets is None) != every_own:
        raise SettingsError(
            "which runs share a dataset must be said, because seeds of one dataset are not "
            "independent: --datasets FILE, or --each-run-has-its-own-dataset (one of the two)"
        )
    bank = ReferenceBank.load(references or bundled_path("tiny-organism", "bank"))
    named = None if datasets is None else {k: str(v) for k, v in read_json(datasets).items()}
    found = benign_runs(runs, bank, datasets=named, base=base, optimizer=optimizer)
    made = calibrate(found, bank=bank.fingerprint, alpha=alpha, geometry=geometry, score=score)
    made.save(out)
    if as_json:
        summary = {
            "out": str(out),
            "alpha": made.alpha,
            "datasets": len(made.datasets),
            "n": made.n_band,
            "rate_bound": made.rate_bound,
            "multiplier": made.multiplier,
            "support": made.support.model_dump(),
            "windows": None if made.windows is None else made.windows.model_dump(),
        }
        print(json.dumps(summary, indent=2))
        return
    methods = ", ".join(made.support.methods)
    print(f"{out}: {len(made.datasets)} harmless datasets, {made.n_band} of them set the band")
    print(
        f"at most {made.alpha:.1%} of harmless runs like these alarm on average over such "
        f"calibrations; of this one the rate is below {made.rate_bound:.1%} with 95 % certainty"
    )
    print(
        f"it speaks of runs with {methods}, up to {made.support.most_readings} readings; others "
        "are unknown"
    )
    if made.windows is not None:
        windows = made.windows.block * made.windows.blocks
        print(
            f"runs of unknown length are judged for {windows} windows of {made.windows.lags[0]} to "
            f"{made.windows.lags[1]} steps, and unknown after them"
        )
