"""Run what is missing and write the page; `report` writes the page alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.remedies import gate, runs
from benchmarks.remedies.page import page
from wvmonitor.references import ReferenceBank

RECORDS = Path("build/remedies/records.jsonl")
RESULTS = Path(__file__).parent.parent / "results"
RUNS, GATE = RESULTS / "remedies.json", RESULTS / "data-gate.json"
PAGE = Path(__file__).parents[2] / "docs" / "remedies.md"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write results and page."""
    parser = argparse.ArgumentParser("python -m benchmarks.remedies", description=__doc__)
    parser.add_argument("do", choices=["run", "gate", "report"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cells", default="", help="tables to run, comma-separated; all")
    parser.add_argument("--records", type=Path, default=RECORDS)
    asked = parser.parse_args(argv)
    if asked.do == "run":
        if not asked.records.exists():  # go on from what is committed
            asked.records.parent.mkdir(parents=True, exist_ok=True)
            held = json.loads(RUNS.read_text("utf-8"))
            asked.records.write_text("".join(json.dumps(r) + "\n" for r in held), "utf-8")
        runs.run(asked.records, asked.seeds, set(filter(None, asked.cells.split(","))))
    if asked.do == "gate":
        gate.run(GATE)
    if records := runs.read(asked.records, ReferenceBank.load(runs.BANK)):
        RUNS.write_text(json.dumps(records, indent=1) + "\n", "utf-8")
    PAGE.write_text(committed_page(), "utf-8")


def committed_page() -> str:
    """The page of the committed results."""
    held = [json.loads(path.read_text("utf-8")) for path in (RUNS, GATE)]
    return page(held[0], held[1]["sets"])


if __name__ == "__main__":
    main()
