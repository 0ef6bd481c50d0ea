"""`python -m benchmarks.soak [NAME ...] [--scale S] [--json FILE]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import Figure, publish
from benchmarks.soak import archive, readings, training

SOAKS: dict[str, Callable[[Path, float], list[Figure]]] = {
    "readings": readings.run,
    "archive": archive.run,
    "scrapes": training.scrapes,
    "black-hole": training.black_hole,
}


def main() -> int:
    """Run what was named, or everything; 1 where a target was missed."""
    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *SOAKS], metavar="NAME")
    parser.add_argument("--scale", type=float, default=1.0, help="of the full length")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    asked = parser.parse_args()
    figures: list[Figure] = []
    for name in asked.names or SOAKS:
        with tempfile.TemporaryDirectory() as folder:
            figures += SOAKS[name](Path(folder), asked.scale)
    name = "-".join(["soak", *asked.names])
    publish(name, figures, [], quick=False, path=asked.json)
    return int(any(figure.achieved is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
