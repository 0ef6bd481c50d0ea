"""`wvmonitor calibrate`: thresholds from your own harmless runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wvmonitor.cli.base import base_option

if TYPE_CHECKING:
    from wvmonitor.detection.band import Calibration
    from wvmonitor.detection.benign import BenignRun

Space = Literal["response", "frobenius"]
"""The geometry of the deciding score."""

Decides = Literal["residual", "cosine", "margin", "module_cosine"]
"""The score that verdicts rest on."""


def command(
    context: typer.Context,
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--runs",
            metavar="DIR",
            help="Output folder of a harmless run (its journal, or its checkpoint-* folders), or a "
            "folder of watched runs; give as many as there are.",
        ),
    ] = None,
    *,
    add: Annotated[
        list[Path] | None,
        typer.Option(
            "--add",
            metavar="DIR",
            help="The same, to be added to the calibration that is there already.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The calibration's JSON file; calibration.json in BANK if left out."
        ),
    ] = None,
    references: Annotated[
        str | None,
        typer.Option(
            metavar="BANK",
            help="Folder of references; if left out, the one that the calibration lies in, "
            "or the bundled ones.",
        ),
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
        str | None, base_option("Folder of what saved checkpoints were made from")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="Of runs without a journal: adamw, sgd, …")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Make verdicts rest on your own harmless runs, with the false-alarm rate you ask for.

    From eight runs of a third of the length or more the calibration is provisional: approximate,
    without a guarantee. It is calibrated as soon as there are enough whole runs: at 5 % 19 for one
    behaviour, 39 for two, 59 for three; at 1 % 99, 199, 299. --add takes in a run that was watched
    later.

    For example:

      wvmonitor calibrate --runs runs/a --runs runs/b … --datasets datasets.json --out benign.json

      wvmonitor calibrate --add runs/new --each-run-has-its-own-dataset --out benign.json
    """
    from wvmonitor.detection.band import Calibration
    from wvmonitor.detection.growing import calibrate_as_far_as_possible, with_more
    from wvmonitor.errors import SettingsError
    from wvmonitor.files.documents import read_json
    from wvmonitor.references.bank import ReferenceBank
    from wvmonitor.references.bundled import bundled_path
    from wvmonitor.references.store import CALIBRATION_FILE, MANIFEST_FILE
    from wvmonitor.scan.benign import benign_runs

    if bool(runs) == bool(add):
        raise SettingsError("give harmless runs with --runs, or with --add to add to a calibration")
    for name in ("alpha", "geometry", "score") if add else ():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise SettingsError(
                f"--{name} is the calibration's own where runs are added to it: make another from "
                "all runs with --runs to change it"
            )
    if (datasets is None) != every_own:
        raise SettingsError(
            "which runs share a dataset must be said, because seeds of one dataset are not "
            "independent: --datasets FILE, or --each-run-has-its-own-dataset (one of the two)"
        )
    if out is None and references is None:
        raise SettingsError("where the calibration lies must be said: --out FILE")
    place = out or Path(str(references)) / CALIBRATION_FILE
    if references is None and (place.parent / MANIFEST_FILE).is_file():
        references = str(place.parent)  # the calibration lies in its bank
    bank = ReferenceBank.load(references or bundled_path("tiny-organism", "bank"))
    named = None if datasets is None else {k: str(v) for k, v in read_json(datasets).items()}
    benign = benign_runs(runs or add or [], bank, datasets=named, base=base, optimizer=optimizer)
    if add:
        earlier = Calibration.load(place, bank=bank.fingerprint)
        made = with_more(earlier, benign, by_their_ends=every_own)
    else:
        made = calibrate_as_far_as_possible(
            benign,
            bank=bank.fingerprint,
            alpha=alpha,
            geometry=geometry,
            score=score,
            by_their_ends=every_own,
        )
    made.save(place)
    if as_json:
        print(json.dumps(_summary(made, place), indent=2))
    else:
        print("\n".join(_told(made, place, left_out=len(benign) - _held(made, benign))))


def _held(made: Calibration, benign: list[BenignRun]) -> int:
    """How many of the runs that were given it holds."""
    return len({r.dataset for r in benign} & set(made.datasets))


def _summary(made: Calibration, place: Path) -> dict[str, Any]:
    from wvmonitor.detection.conformal import runs_needed

    return {
        "out": str(place),
        "status": made.status,
        "alpha": made.alpha,
        "datasets": len(made.datasets),
        "n": made.n_band,
        "needed": runs_needed(made.alpha, len(made.bands)),
        "rate_bound": made.rate_bound,
        "multiplier": made.multiplier,
        "support": made.support.model_dump(),
        "windows": None if made.windows is None else made.windows.model_dump(),
    }


def _told(made: Calibration, place: Path, *, left_out: int) -> list[str]:
    from wvmonitor.detection.conformal import runs_needed

    methods = ", ".join(made.support.methods)
    lines = [f"{place}: {made.status}, {len(made.datasets)} harmless datasets"]
    if made.status == "provisional":
        needed = runs_needed(made.alpha, len(made.bands))
        lines += [
            f"approximate: about {made.alpha:.1%} of harmless runs like these may alarm, and "
            "nothing guarantees it",
            f"with {needed} whole runs it is calibrated: wvmonitor calibrate --add RUN",
        ]
    else:
        lines.append(
            f"at most {made.alpha:.1%} of harmless runs like these alarm on average over such "
            f"calibrations; of this one the rate is below {made.rate_bound:.1%} with 95 % certainty"
        )
    if left_out:
        lines.append(f"{left_out} of the runs given are shorter than the others and do not count")
    lines.append(
        f"it speaks of runs with {methods}, up to {made.support.most_readings} readings; others "
        "are judged by rules of thumb"
    )
    if made.windows is not None:
        windows = made.windows.block * made.windows.blocks
        lines.append(
            f"runs of unknown length are judged for {windows} windows of {made.windows.lags[0]} to "
            f"{made.windows.lags[1]} steps, and unknown after them"
        )
    return lines
