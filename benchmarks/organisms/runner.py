"""Train whatever has no record yet, in a few processes of one thread each."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import logging as transformers_logging

from benchmarks.organisms.catalogue import RunSpec
from benchmarks.organisms.labels import BaseCounts
from benchmarks.organisms.record import path_of, save, train_and_score
from wvmonitor.references import ReferenceBank
from wvmonitor.references.bundled import bundled_path


@dataclass(frozen=True)
class Place:
    """Where the suite works.

    Attributes:
        base: the base model.
        bank: what runs are held against.
        folder: of the records.
    """

    base: Path
    bank: Path
    folder: Path

    @property
    def records(self) -> Path:
        """One file a run."""
        return self.folder / "records"

    def load_bank(self) -> ReferenceBank:
        """The bank that runs are held against."""
        return ReferenceBank.load(self.bank)

    def base_counts(self) -> BaseCounts:
        """What the base itself does, asked once."""
        return BaseCounts.measured(self.base, self.folder / "base.json")


def bundled(folder: Path) -> Place:
    """The suite of the bundled model and its bank."""
    model = bundled_path("tiny-organism")
    return Place(model / "base", model / "bank", folder)


def pool(workers: int) -> ProcessPoolExecutor:
    """Processes that start from nothing: forked torch may hang on its own threads."""
    return ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet
    )


def _quiet() -> None:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def work(spec: RunSpec, place: Place) -> float:
    """Train, score and keep one run; gives its seconds."""
    began = time.monotonic()
    save(train_and_score(spec, place.base, place.bank), path_of(place.records, spec.name))
    return time.monotonic() - began


def run(
    specs: Sequence[RunSpec],
    place: Place,
    *,
    workers: int = 2,
    processes: Executor | None = None,
    until: float | None = None,
    show: Callable[[int, int, RunSpec, float], None] = lambda *_: None,
) -> int:
    """Train every run that has no record, in the given order; gives how many are still missing.

    Args:
        specs: the runs.
        place: where.
        workers: how many at a time.
        processes: where they run, if not in new processes.
        until: `time.monotonic()` after which no new run begins.
        show: told of each finished run: (done, of how many, which, seconds).
    """
    missing = [s for s in specs if not path_of(place.records, s.name).is_file()]
    waiting = iter(missing)
    running = {}
    done = 0
    with pool(workers) if processes is None else nullcontext(processes) as processes:

        def begin() -> None:
            if until is None or time.monotonic() < until:
                for spec in waiting:
                    running[processes.submit(work, spec, place)] = spec
                    return

        for _ in range(workers):
            begin()
        while running:
            finished = next(as_completed(running))
            spec = running.pop(finished)
            done += 1
            show(done, len(missing), spec, finished.result())
            begin()
    return len(missing) - done
