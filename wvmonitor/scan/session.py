"""What the command line asks of this room, as functions: scan, compare, screen.

A scan is waited for at every commit, so what only the other two need is imported there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from wvmonitor.errors import SettingsError, WVMonitorError
from wvmonitor.files.atomic import check_writable
from wvmonitor.outputs.scan_record import Failure, failure_of
from wvmonitor.reading import Geometry
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.cache import ScanCache
from wvmonitor.scan.executors import ExecutorKind, open_executor
from wvmonitor.scan.inputs import gather
from wvmonitor.scan.results import FailOn
from wvmonitor.scan.scan import open_bank, scan, unscanned
from wvmonitor.scan.text import visible
from wvmonitor.scan.writers import UNORDERED, WRITERS, deliver, format_of, write_file
from wvmonitor.vectors.devices import cores


@dataclass(frozen=True)
class Request:
    """The options of `wvmonitor scan`, each as the functions of this room describe it.

    Attributes:
        paths, patterns, lists, since_step: of `gather`.
        references: of `open_bank`, as is `calibration`.
        base, behaviours, optimizer: of `scan`.
        fail_on: the least verdict that fails.
        format: one of `WRITERS`, for standard output.
        outputs: files to write as well.
        workers, executor, scheduler: of `open_executor`.
        cache: the cache's file, if one is kept.
        strict, strict_coverage: of `scan`.
    """

    paths: Sequence[str]
    patterns: Sequence[str] = ()
    lists: Sequence[str] = ()
    since_step: int | None = None
    references: str | None = None
    base: str | None = None
    calibration: str | None = None
    behaviours: Sequence[str] | None = None
    optimizer: str | None = None
    fail_on: FailOn = "alarm"
    format: str = "table"
    outputs: Sequence[str] = ()
    workers: int = 1
    executor: ExecutorKind = "processes"
    scheduler: str | None = None
    cache: str | None = None
    strict: bool = False
    strict_coverage: bool = False


def run(request: Request) -> int:
    """Scan, write everything that was asked for, and give the exit code.

    Raises:
        SettingsError: options that contradict each other; nothing was scanned.
        InputError: an output file cannot be written; nothing was scanned if that is known before.
    """
    for path in request.outputs:
        format_of(path)
        check_writable(path)
    targets = gather(
        request.paths,
        patterns=request.patterns,
        lists=request.lists,
        stdin=sys.stdin,
        since_step=request.since_step,
    )
    with ExitStack() as stack:
        try:
            bank, band = open_bank(request.references, request.calibration)
            results = scan(
                targets,
                bank,
                base=request.base,
                calibration=band,
                executor=stack.enter_context(
                    open_executor(
                        request.executor, workers=request.workers, scheduler=request.scheduler
                    )
                ),
                workers=request.workers or cores(),
                behaviours=request.behaviours,
                optimizer=request.optimizer,
                cache=stack.enter_context(ScanCache(request.cache)) if request.cache else None,
                ordered=request.format not in UNORDERED,
                strict=request.strict,
                strict_coverage=request.strict_coverage,
            )
        except SettingsError:
            raise
        except WVMonitorError as error:
            results = unscanned(targets, error)
        writer = WRITERS[request.format]
        collected, code = deliver(results, writer, sys.stdout, sys.stderr, request.fail_on)
    for path in request.outputs:
        write_file(collected, path, request.fail_on)
    return code


def run_compare(
    paths: Sequence[str],
    *,
    base: str | None,
    references: str | None,
    everything: bool,
    geometry: Geometry,
    form: str,
) -> int:
    """Compare everything at these paths with each other, and with a bank's references.

    Returns:
        0, or 2 where something could not be read or nothing was left to compare.

    Raises:
        SettingsError: the response geometry without a bank that has a probe.
        InputError: the vectors cannot be compared with each other.
    """
    from wvmonitor.scan.compare import compare, read_all
    from wvmonitor.scan.matrix import MATRIX_WRITERS

    bank = None if references is None else ReferenceBank.load(references)
    if geometry == "response" and (bank is None or not bank.probe):
        raise SettingsError(
            "the response geometry needs a bank with a probe: name one with --references"
        )
    vectors, failures = read_all(gather(paths, stdin=sys.stdin), base=base, bank=bank)
    _say(failures)
    if not vectors:
        return 2
    comparison = compare(
        vectors,
        components=() if everything else ("blocks",),
        probe=bank.probe if bank is not None and geometry == "response" else None,
    )
    MATRIX_WRITERS[form](comparison, failures, sys.stdout)
    return 2 if failures else 0


def run_screen(
    paths: Sequence[str],
    *,
    base: str | None,
    top: int,
    form: str,
    directions: str | None,
) -> int:
    """Take a first look at everything at these paths.

    Returns:
        0, or 2 where something could not be read.

    Raises:
        SettingsError: `top` is below 1.
    """
    from wvmonitor.scan.compare import read_all
    from wvmonitor.scan.first_look import SCREEN_WRITERS
    from wvmonitor.scan.screen import Spectrum, save_directions, screen

    if top < 1:
        raise SettingsError(f"--top must be 1 or more, got {top}")
    vectors, failures = read_all(gather(paths, stdin=sys.stdin), base=base)
    screened: dict[str, list[Spectrum]] = {}
    for path, vector in vectors.items():
        try:
            screened[path] = list(screen(vector, top))
        except WVMonitorError as error:
            failures[path] = failure_of(error)
    _say(failures)
    SCREEN_WRITERS[form](screened, failures, sys.stdout)
    if directions is not None:
        save_directions(directions, screened)
    return 2 if failures else 0


def _say(failures: Mapping[str, Failure]) -> None:
    for path, failure in failures.items():
        line = f"wvmonitor: {visible(f'{path}: {failure.type}: {failure.message}')}"
        print(line, file=sys.stderr)
