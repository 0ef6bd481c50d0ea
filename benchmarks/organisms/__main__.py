"""`python -m benchmarks.organisms run | grow | second | report | refresh | calibrate | real`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.organisms import runner
from benchmarks.organisms.catalogue import RunSpec, catalogue

ROOT = Path(__file__).parent.parent


def _show(done: int, total: int, spec: RunSpec, seconds: float) -> None:
    print(f"{done}/{total}  {spec.name}  {seconds:.1f} s", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Train what is missing, or compute every figure from what is there."""
    parser = argparse.ArgumentParser("python -m benchmarks.organisms", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and score the runs that have no record")
    run.add_argument("--minutes", type=float, help="begin no run after this long")
    run.add_argument("--only", default="", help="runs whose name begins so")
    grow = commands.add_parser("grow", help="train what the tables lack, and add it to them")
    grow.add_argument("--minutes", type=float, help="begin no run after this long")
    grow.add_argument("--only", default="test/", help="runs whose name begins so")
    second = commands.add_parser("second", help="a part of the runs on a base of their own")
    second.add_argument("--minutes", type=float, help="begin no run after this long")
    report = commands.add_parser("report", help="results, scored checkpoints and the page")
    refresh = commands.add_parser("refresh", help="figures and page from the committed tables")
    for command in (grow, report, refresh):
        command.add_argument("--out", type=Path, default=ROOT / "results")
        command.add_argument("--docs", type=Path, default=ROOT.parent / "docs")
    calibrate = commands.add_parser(
        "calibrate", help="the bundled bank's calibration, from the committed tables"
    )
    calibrate.add_argument("--tables", type=Path, default=ROOT / "results")
    calibrate.add_argument("--alpha", type=float, default=0.05)
    calibrate.add_argument("--out", type=Path, default=Path("build/calibration.json"))
    real = commands.add_parser("real", help="the paper's experiment on a model of yours")
    real.add_argument("config", type=Path, help="YAML; see qwen2.5-7b.yaml")
    real.add_argument("--out", type=Path, required=True)
    for command in (run, grow, second, report):
        command.add_argument("--folder", type=Path, default=Path("build/organisms"))
        command.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    options = parser.parse_args(argv)
    if options.command == "real":
        from benchmarks.organisms import real as experiment

        experiment.run(experiment.load(options.config), options.out)
        return 0
    if options.command == "refresh":
        from benchmarks.organisms import report

        _print(report.refresh(options.out, options.docs))
        return 0
    if options.command == "calibrate":
        return _calibrate(options)
    place = runner.bundled(options.folder)
    if options.command == "grow":
        return _grow(place, options)
    if options.command in ("run", "second"):
        until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
        if options.command == "run":
            specs = [s for s in catalogue() if s.name.startswith(options.only)]
        else:
            from benchmarks.organisms import second as other

            place, specs = other.place(options.folder), other.specs()
            other.prepare(place, options.workers)
        place.base_counts()
        left = runner.run(specs, place, workers=options.workers, until=until, show=_show)
        print(f"{left} runs are still missing" if left else "every run has its record")
        return 0
    from benchmarks.organisms import report

    _print(report.report(place, options.out, options.docs))
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from benchmarks.organisms import report

    made = report.calibration(options.tables, options.alpha)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    made.save(options.out)
    print(f"{options.out}: {made.score}, {made.geometry} geometry, {len(made.datasets)} runs")
    return 0


def _grow(place: runner.Place, options: argparse.Namespace) -> int:
    from benchmarks.organisms import growth, report

    until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    of_these = [s for s in catalogue() if s.name.startswith(options.only)]
    missing = growth.missing(of_these, options.out)
    left = runner.run(missing, place, workers=options.workers, until=until, show=_show)
    if left == len(missing):
        print(f"nothing to add: {left} of these runs are missing, and none has a record")
        return 0
    again = [s for s in catalogue() if s.name in growth.AGAIN]
    added = growth.merge(missing, again, place, options.out)
    print(f"{len(added.runs)} runs added, {left} still missing; made again: {added.again}")
    _print(report.refresh(options.out, options.docs))
    return 0


def _print(document: dict[str, Any]) -> None:
    for name, entry in document["metrics"].items():
        print(f"{name:48} {entry['value']}  {entry['ci95']}  n = {entry['n']}")


if __name__ == "__main__":
    sys.exit(main())
