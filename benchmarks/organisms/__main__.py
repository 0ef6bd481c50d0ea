"""`python -m benchmarks.organisms run | report`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.organisms import runner
from benchmarks.organisms.catalogue import RunSpec, catalogue


def _show(done: int, total: int, spec: RunSpec, seconds: float) -> None:
    print(f"{done}/{total}  {spec.name}  {seconds:.1f} s", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Train what is missing, or compute every figure from what is there."""
    parser = argparse.ArgumentParser("python -m benchmarks.organisms", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and score the runs without a record")
    run.add_argument("--folder", type=Path, default=Path("build/organisms"))
    run.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    run.add_argument("--minutes", type=float, help="begin no run after this long")
    run.add_argument("--only", default="", help="runs whose name begins so")
    options = parser.parse_args(argv)
    until = time.monotonic() + 60 * options.minutes if options.minutes else None
    specs = [s for s in catalogue() if s.name.startswith(options.only)]
    left = runner.run(
        specs, runner.bundled(options.folder), workers=options.workers, until=until, show=_show
    )
    print(f"{left} runs are still missing" if left else "every run has its record")
    return 0


if __name__ == "__main__":
    sys.exit(main())
