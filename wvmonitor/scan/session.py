"""One scan as it is asked for at the command line: inputs, bank, executor, cache, outputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TextIO

from wvmonitor.errors import SettingsError, WVMonitorError
from wvmonitor.scan.cache import ScanCache
from wvmonitor.scan.executors import ExecutorKind, open_executor
from wvmonitor.scan.inputs import gather
from wvmonitor.scan.results import FailOn
from wvmonitor.scan.scan import open_bank, scan, unscanned
from wvmonitor.scan.writers import UNORDERED, WRITERS, deliver, format_of, write_file


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


def run(request: Request, stdin: TextIO, out: TextIO, problems: TextIO) -> int:
    """Scan, write everything that was asked for, and give the exit code.

    Raises:
        SettingsError: options that contradict each other; nothing was scanned.
        InputError: an output file cannot be written.
    """
    for path in request.outputs:
        format_of(path)
    targets = gather(
        request.paths,
        patterns=request.patterns,
        lists=request.lists,
        stdin=stdin,
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
                behaviours=request.behaviours,
                optimizer=request.optimizer,
                cache=stack.enter_context(ScanCache(request.cache)) if request.cache else None,
                ordered=request.format not in UNORDERED,
            )
        except SettingsError:
            raise
        except WVMonitorError as error:
            results = unscanned(targets, error)
        writer = WRITERS[request.format]
        collected, code = deliver(results, writer, out, problems, request.fail_on)
    for path in request.outputs:
        write_file(collected, path, request.fail_on)
    return code
