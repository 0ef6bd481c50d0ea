"""Run what is missing, or write the page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.remedies.runs import run

RECORDS = Path("build/remedies/records.jsonl")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.remedies", description=__doc__)
    parser.add_argument("do", choices=["run", "gate", "report"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cells", default="", help="tables to run, comma-separated; all")
    parser.add_argument("--records", type=Path, default=RECORDS)
    asked = parser.parse_args(argv)
    if asked.do == "run":
        run(asked.records, asked.seeds, set(filter(None, asked.cells.split(","))))


if __name__ == "__main__":
    main()
