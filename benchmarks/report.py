"""A benchmark's figures: a table for people, JSON for machines, and the tables of a page.

`python -m benchmarks.report` writes the committed results into docs/benchmarks.md again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


_MARKS = {True: "✓", False: "✗ missed", None: ""}


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured, on which shape.
        value: the number.
        unit: of the number.
        target: what was aimed at, in words; empty for numbers shown beside others.
        achieved: whether the target was reached; None where there is none.
        detail: the numbers behind it.
        why: what keeps it from its target; said below the table where it misses it.
    """

    name: str
    value: float
    unit: str
    target: str = ""
    achieved: bool | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Check:
    """One number computed in two ways.

    Attributes:
        name: which number.
        ours: as wvmonitor gives it.
        other: as the plain way gives it.
    """

    name: str
    ours: float
    other: float


class Part(Protocol):
    """One part of a benchmark."""

    def __call__(
        self, work: Path, rounds: int, part: int, /, *, quick: bool
    ) -> tuple[list[Figure], list[Check]]:
        """Measure in a folder that is empty and goes away."""


def at_most(name: str, value: float, limit: float, unit: str, **detail: Any) -> Figure:
    """A figure that should stay at or below a limit."""
    return Figure(name, value, unit, f"≤ {limit:g} {unit}", value <= limit, detail)


def at_least(name: str, value: float, limit: float, unit: str, **detail: Any) -> Figure:
    """A figure that should reach a limit."""
    return Figure(name, value, unit, f"≥ {limit:g} {unit}", value >= limit, detail)


def arguments(benchmark: str, text: str | None, argv: list[str] | None) -> argparse.Namespace:
    """What every benchmark is asked; `--part` is for machines with little time or memory."""
    # Two OpenMP threads on two busy cores can be 80 times slower than one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(f"python -m benchmarks.{benchmark}", description=text)
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run?")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--work", type=Path, help="folder for the inputs (default: a temporary)")
    parser.add_argument("--rounds", type=int, default=5, help="how many times (default: 5)")
    parser.add_argument("--part", type=int, default=1, help="1/PART of the layers of each shape")
    asked = parser.parse_args(argv)
    if asked.quick:
        asked.rounds = 1
    return asked


def publish_parts(
    benchmark: str, text: str | None, parts: Sequence[Part], argv: list[str] | None
) -> dict[str, Any]:
    """Run a benchmark's parts on one thread, each in a folder of its own, and publish them."""
    asked = arguments(benchmark, text, argv)
    torch.set_num_threads(1)
    figures: list[Figure] = []
    checks: list[Check] = []
    for part in parts:
        with tempfile.TemporaryDirectory(dir=asked.work) as work:
            found, others = part(Path(work), asked.rounds, asked.part, quick=asked.quick)
        figures += found
        checks += others
    return publish(benchmark, figures, checks, quick=asked.quick, path=asked.json)


def publish(
    benchmark: str,
    figures: list[Figure],
    checks: list[Check],
    *,
    quick: bool,
    path: Path | None,
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """Print a table and write the JSON; gives what was written.

    Args:
        benchmark: its name.
        figures: what was measured.
        checks: what was computed in two ways.
        quick: whether on tiny shapes.
        path: where the JSON goes; among the results if not given.
        remarks: what a reader of the table must know of this run.
    """
    if quick:  # tiny shapes reach no target, and that means nothing
        figures = [replace(f, achieved=None) for f in figures]
    document: dict[str, Any] = {
        "benchmark": benchmark,
        "quick": quick,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(quick=quick),
        "figures": [asdict(f) for f in figures],
        "checks": [asdict(c) for c in checks],
        "remarks": list(remarks),
    }
    table = Table(title=f"{benchmark}{' (quick: times mean nothing)' if quick else ''}")
    for column in ("what", "measured", "target", ""):
        table.add_column(column)
    for figure in figures:
        measured = f"{figure.value:.4g} {figure.unit}"
        table.add_row(figure.name, measured, figure.target, _MARKS[figure.achieved])
    console = Console()
    console.print(table)
    for check in checks:
        console.print(f"{check.name}: {check.ours:.9g} (ours) {check.other:.9g} (plain)")
    console.print(document["machine"])
    target = path or RESULTS / f"{benchmark}{'-quick' if quick else ''}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return document


def with_tables(page: str, results: Path) -> str:
    """A page whose tables, each between two comments, are made from the results again."""

    def table(found: re.Match[str]) -> str:
        document = json.loads((results / f"{found[1]}.json").read_text())
        machine, load = document["machine"], document["machine"]["load_average"]
        older = any("before" in figure for figure in document["figures"])
        columns = ["what", "measured", *(["before"] if older else []), "target", ""]
        lines = [f"<!-- {found[1]} -->", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for figure in document["figures"]:
            cells = [figure["name"], _shown(figure["value"], figure["unit"])]
            if older:
                before = figure["before"]
                cells.append("" if before is None else _shown(before, figure["unit"]))
            cells += [figure["target"], _MARKS[figure["achieved"]]]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [
            "",
            f"{document['when'][:10]}, {machine['cpu']}, {machine['cores']} cores, torch "
            f"{machine['torch']}; {machine['float32_matrix_gflops']:.0f} GFLOP/s in float32 and "
            f"{machine['memory_gb_per_s']:.0f} GB/s from memory on one core; load average "
            f"{load[0]:.0f}.",
        ]
        for remark in (*document.get("remarks", ()), *_misses(document["figures"])):
            lines += ["", remark]
        lines.append("<!-- end -->")
        return "\n".join(lines)

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def _shown(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if abs(value) >= 1000 else f"{value:.3g} {unit}"


def _misses(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """What keeps the figures of a table from their targets, each reason once."""
    missed: dict[str, list[str]] = {}
    for figure in figures:
        if figure["achieved"] is False and figure.get("why"):
            missed.setdefault(figure["why"], []).append(figure["name"])
    return [f"Missed: {'; '.join(names)}. {why}" for why, names in missed.items()]


def write_page() -> None:
    """Make the tables of docs/benchmarks.md, and what is said of their misses, again."""
    PAGE.write_text(with_tables(PAGE.read_text("utf-8"), RESULTS), "utf-8")


if __name__ == "__main__":
    write_page()
