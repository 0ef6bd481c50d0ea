"""Evaluations for people and for machines: a table, JSON, CSV; every number with its interval."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wvmonitor.evals.measures import Measure
from wvmonitor.evals.run import Evaluation

COLUMNS = ("task", "name", "steering", "value", "low", "high", "n", "unjudged", "interval")
_WIDTH = 120


def write_table(evaluations: Sequence[Evaluation], out: TextIO) -> None:
    """A row for each measure and steering; measures in turn, so that a sweep reads as a curve."""
    steered = any(found.steering for found in evaluations)
    table = Table(header_style="bold", pad_edge=False)
    table.add_column("task")
    table.add_column("measure")
    if steered:
        table.add_column("steering")
    for column in ("value", "95 % interval", "rows", "not judged"):
        table.add_column(column, justify="right")
    table.add_column("interval by")
    shown = ("", "")
    for evaluation, m in _by_measure(evaluations):
        head = (m.task, m.name)
        cells = ["", ""] if head == shown else [escape(m.task), escape(m.name)]
        shown = head
        if steered:
            cells.append(escape(_label(evaluation.steering)))
        interval = f"{_number(m.low)} – {_number(m.high)}"
        table.add_row(*cells, _number(m.value), interval, f"{m.n:g}", f"{m.unjudged:g}", m.interval)
    console = Console(file=out)
    console.width = max(console.width, _WIDTH) if not console.is_terminal else console.width
    console.print(table)


def write_json(evaluations: Sequence[Evaluation], out: TextIO) -> None:
    """One document; a value that does not exist is null."""
    document = {
        "evaluations": [
            {
                "steering": dict(evaluation.steering),
                "measures": [_fields(measure) for measure in evaluation.measures],
            }
            for evaluation in evaluations
        ]
    }
    out.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_csv(evaluations: Sequence[Evaluation], out: TextIO) -> None:
    """A row for each measure and steering."""
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for evaluation, measure in _by_measure(evaluations):
        writer.writerow({**_fields(measure), "steering": _label(evaluation.steering)})


WRITERS: dict[str, Callable[[Sequence[Evaluation], TextIO], None]] = {
    "table": write_table,
    "json": write_json,
    "csv": write_csv,
}


def _by_measure(evaluations: Sequence[Evaluation]) -> list[tuple[Evaluation, Measure]]:
    measured = [(e, m) for e in evaluations for m in e.measures]
    order = {head: i for i, head in enumerate(dict.fromkeys((m.task, m.name) for _, m in measured))}
    return sorted(measured, key=lambda pair: order[pair[1].task, pair[1].name])


def _fields(measure: Measure) -> dict[str, Any]:
    fields = dataclasses.asdict(measure)
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in fields.items()}


def _label(steering: Mapping[str, float]) -> str:
    return " ".join(f"{name}={k:+g}" for name, k in steering.items()) or "none"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}" if abs(value) <= 1 else f"{value:.1f}"
