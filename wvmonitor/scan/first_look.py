"""Screening written out: a table for people, CSV and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from wvmonitor.outputs.scan_record import Failure
from wvmonitor.scan.screen import Spectrum, by_layer
from wvmonitor.scan.text import number, visible

Screened = Mapping[str, Sequence[Spectrum]]
ScreenWriter = Callable[[Screened, Mapping[str, Failure], TextIO], None]


def write_layers(screened: Screened, _failures: Mapping[str, Failure], out: TextIO) -> None:
    """A line for each block: its share of the change, and how concentrated that is."""
    for path, spectra in screened.items():
        norm = sum(s.squared_norm for s in spectra) ** 0.5
        print(f"{visible(path)}: ‖τ‖ {norm:.3g} in {len(spectra)} matrices", file=out)
        print("  part           share  stable rank  top direction  largest change in", file=out)
        for item in by_layer(list(spectra)):
            part = item.component if item.layer is None else f"layer {item.layer}"
            top = "–" if item.top_share is None else f"{item.top_share:.0%}"
            print(
                f"  {part:<12} {item.share:>7.1%}  {number(item.stable_rank):>11}  {top:>13}  "
                f"{visible(item.largest)}",
                file=out,
            )


def write_csv(screened: Screened, _failures: Mapping[str, Failure], out: TextIO) -> None:
    """A row for each matrix."""
    columns = ["path", "parameter", "component", "layer", "norm", "stable_rank", "top_share"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*columns, "singular_values"])
    for path, spectra in screened.items():
        for item in spectra:
            row = [getattr(item, c) for c in columns[1:]]
            values = " ".join(f"{v:.6g}" for v in item.values)
            writer.writerow([visible(path), visible(row[0]), *row[1:], values])


def write_json(screened: Screened, failures: Mapping[str, Failure], out: TextIO) -> None:
    """Every checkpoint with its layers and its matrices."""
    document = {
        "schema_version": 1,
        "checkpoints": [
            {
                "path": path,
                "layers": [asdict(item) for item in by_layer(list(spectra))],
                "matrices": [_matrix(item) for item in spectra],
                "error": None,
            }
            for path, spectra in screened.items()
        ]
        + [
            {"path": path, "layers": [], "matrices": [], "error": asdict(failure)}
            for path, failure in failures.items()
        ],
    }
    out.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


SCREEN_WRITERS: Mapping[str, ScreenWriter] = {
    "table": write_layers,
    "csv": write_csv,
    "json": write_json,
}


def _matrix(item: Spectrum) -> dict[str, Any]:
    return {
        "parameter": item.parameter,
        "component": item.component,
        "layer": item.layer,
        "norm": item.norm,
        "stable_rank": item.stable_rank,
        "top_share": item.top_share,
        "singular_values": list(item.values),
    }
