"""wvmonitor on a real pretrained model, on other people's public sets.

python -m benchmarks.real bank --bank FOLDER                   a least bank, where there is none
python -m benchmarks.real run --data SETS                      the watched runs, one by one
python -m benchmarks.real run --data SETS --held-out           and our own held-out domains
python -m benchmarks.real report --data SETS --bank FOLDER     readings, figures, docs/real-model.md
python -m benchmarks.real page                                 the page from the committed figures

Runs are kept with their adapters and do not depend on a bank: one that is there is not made again,
and is read against every bank that is given.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.real import held_out, page, report, runs
from benchmarks.real.bank import least_bank
from benchmarks.real.protocol import (
    SETTINGS,
    VARIANTS,
    Setting,
    TestRun,
    label_pairs,
    planned,
)
from benchmarks.real.readings import Against
from benchmarks.real.report import Bench
from benchmarks.real.runs import Asked, Made
from benchmarks.real.sets import read_folder
from wvmonitor.builder.base import Base
from wvmonitor.builder.contrasts import Contrast, default_folder, read_contrasts
from wvmonitor.builder.probe import bundled_prompts
from wvmonitor.builder.stages import Work
from wvmonitor.errors import BuildError, WVMonitorError

MODEL, BUILD = Path("build/smollm2"), Path("build/real")


def asked_of(contrasts: Sequence[Contrast], setting: Setting) -> Asked:
    """What every run is asked at its end."""
    return Asked(label_pairs(contrasts, setting), tuple(bundled_prompts()[: setting.prompts]))


def run_all(
    base: Base,
    work: Work,
    setting: Setting,
    planned: Sequence[TestRun],
    asked: Asked | None,
    *,
    only: str = "",
    stop: float = 0.0,
    part: tuple[int, int] = (1, 1),
) -> list[Made]:
    """Runs in the given order, and asked; those that are there already are found.

    Args:
        base: the model.
        work: where runs are kept.
        setting: how much of everything.
        planned: the runs.
        asked: what each is asked at its end; None asks nothing.
        only: a part of the names of the runs that are wanted.
        stop: no run begins later than this time (as `time.time`); 0 is no limit.
        part: (i, n): every n-th of them, from the i-th; for n processes side by side.

    Raises:
        BuildError: not one could be made. Where others can, one that cannot is told and left out.
    """
    wanted = [r for r in planned if only in r.name]
    wanted = wanted[part[0] - 1 :: part[1]]
    if only and not wanted:
        print(f"no planned run has {only!r} in its name", flush=True)
    made: list[Made] = []
    failed: BuildError | None = None
    for n, run in enumerate(wanted, 1):
        if stop and time.time() > stop:
            print(f"stopped before {run.name}: {len(wanted) - n + 1} runs are left", flush=True)
            break
        began = time.monotonic()
        try:
            one = runs.make(base, work, run, setting)
            if asked is not None:
                runs.after(base, work, one, asked)
        except BuildError as error:  # of this run or its set: the others go on
            print(f"{n}/{len(wanted)} {run.name} was not made: {error}", flush=True)
            failed = failed or error
            continue
        made.append(one)
        print(f"{n}/{len(wanted)} {run.name} ({time.monotonic() - began:.0f} s)", flush=True)
    if failed and not made:
        raise failed
    return made


def there(base: Base, work: Work, setting: Setting, planned: Sequence[TestRun]) -> list[Made]:
    """Those of the runs that are finished."""
    found = (runs.find(base, work, r, setting) for r in planned)
    return [made for made in found if made is not None]


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and do it."""
    args = _arguments(argv)
    if args.command == "page":
        held = json.loads((report.RESULTS / f"{report.NAME}.json").read_text("utf-8"))
        report.PAGE.write_text(page.text(held), "utf-8")
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        _carry_out(args)
    except (WVMonitorError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def _carry_out(args: argparse.Namespace) -> None:
    base, setting, work = Base(args.model), SETTINGS[args.setting], Work(args.work)
    contrasts = read_contrasts(default_folder(args.model))
    asked = asked_of(contrasts, setting)
    if args.command == "bank":
        least_bank(args.model, args.bank, jobs=None, tick=_told)
        return
    folder = read_folder(args.data)
    for name, why in folder.left_out.items():
        print(f"left out: {name}: {why}", flush=True)
    for name in folder.alone:
        print(f"beside no harmful set: control/{name}: call it SET__{name}", flush=True)
    if args.command == "run":
        stop = time.time() + 60 * args.minutes if args.minutes else 0.0
        how = {"only": args.only, "stop": stop, "part": args.part}
        run_all(base, work, setting, planned(folder, setting, variants=args.variants), asked, **how)
        if args.held_out:
            own = held_out.planned(contrasts, setting, variants=args.variants)
            run_all(base, work, setting, own, None, **how)
    if args.command == "report":
        against = Against.load(args.bank)
        against.bank.relation_to(base.digest)  # before any work
        bench = Bench(base, work, setting, asked, contrasts, folder, against)
        made = there(base, work, setting, planned(folder, setting, variants=VARIANTS))
        own = there(base, work, setting, held_out.planned(contrasts, setting, variants=VARIANTS))
        if not made:
            raise BuildError(f"{args.work} holds no finished run of these sets: `run` makes them")
        print(f"{len(made) + len(own)} runs are read against {args.bank}", flush=True)
        report.publish(
            bench, report.finished(bench, made), report.read_alone(bench, own), args.results,
            args.page,
        )  # fmt: skip
        print(f"wrote {args.results / report.NAME}.json and {args.page}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default=str(MODEL), help="the base: a folder or a Hub id")
    parser.add_argument("--setting", choices=SETTINGS, default="full")
    parser.add_argument("--work", type=Path, default=BUILD, help="where runs are kept")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("page", help="write the page again from the committed figures")
    for name, told in (
        ("bank", "make the least bank there can be"),
        ("run", "train what is not trained yet"),
        ("report", "read every finished run against a bank, and write figures and page"),
    ):
        command = commands.add_parser(name, help=told)
        if name != "bank":
            command.add_argument("--data", type=Path, required=True, help="folder of public sets")
        if name != "run":
            command.add_argument("--bank", type=Path, default=BUILD / "least-bank")
        if name == "run":
            command.add_argument("--only", default="", help="a part of the names of the runs")
            command.add_argument("--minutes", type=float, default=0.0, help="begin none later")
            command.add_argument("--part", type=_part, default=(1, 1), metavar="I/N",
                                 help="every N-th run from the I-th, for N processes")  # fmt: skip
            command.add_argument("--variants", nargs="*", choices=VARIANTS, default=())
            command.add_argument("--held-out", action="store_true",
                                 help="then this project's own held-out domains")  # fmt: skip
        if name == "report":
            command.add_argument("--results", type=Path, default=report.RESULTS)
            command.add_argument("--page", type=Path, default=report.PAGE)
    return parser.parse_args(argv)


def _part(text: str) -> tuple[int, int]:
    first, _, of = text.partition("/")
    if not (first.isdigit() and of.isdigit() and 1 <= int(first) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r}: give I/N, as in 1/2 and 2/2")
    return int(first), int(of)


def _told(stage: str, done: int, total: int) -> None:
    print(f"{stage}: {done} of {total}", flush=True)


if __name__ == "__main__":
    main()
