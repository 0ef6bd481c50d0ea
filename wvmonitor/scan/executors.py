"""Where a scan measures: here, in worker processes, or on a Dask cluster."""

from __future__ import annotations

import importlib
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Literal, TypeVar

from wvmonitor.cores import cores
from wvmonitor.errors import SettingsError, WVMonitorError

ExecutorKind = Literal["processes", "dask"]

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


class WorkerDiedError(WVMonitorError):
    """The process that measured a checkpoint died."""


@contextmanager
def open_executor(
    kind: ExecutorKind = "processes", *, workers: int = 1, scheduler: str | None = None
) -> Iterator[Executor | None]:
    """An executor for `scan`; None, which measures in this process, for one local worker.

    Args:
        kind: worker processes on this machine, or a Dask cluster.
        workers: how many processes, each single-threaded; 0 means one for each core.
        scheduler: address of the Dask cluster's scheduler. Its workers must see the same paths.

    Raises:
        SettingsError: arguments that contradict each other, dask.distributed is not installed, or
            the cluster does not answer.
    """
    if workers < 0:
        raise SettingsError(f"workers must be 0 (one for each core) or more, got {workers}")
    if kind == "dask":
        with _dask(scheduler) as executor:
            yield executor
        return
    if scheduler is not None:
        raise SettingsError("scheduler is for Dask only: add --executor dask, or leave it out")
    count = workers or cores()
    if count == 1:
        yield None
        return
    pool = _pool(count)
    try:
        yield pool
    finally:
        # Whoever stops early has no use for what is still waiting.
        pool.shutdown(cancel_futures=True)


def alone(function: Callable[[Job], Outcome], jobs: Iterable[Job]) -> Iterator[Outcome | Exception]:
    """Each job's outcome, one at a time in a worker process of its own if need be.

    A job that kills its worker gives a `WorkerDiedError`, and the next one gets a new worker.
    """
    pool: ProcessPoolExecutor | None = None
    try:
        for job in jobs:
            pool = pool or _pool(1)
            try:
                yield pool.submit(function, job).result()
            except BrokenProcessPool:
                pool.shutdown()
                pool = None
                yield WorkerDiedError(
                    "the worker process that measured this checkpoint died, of too little memory "
                    "most likely: scan it by itself with --workers 1, or on a larger machine"
                )
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _pool(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=_context(), initializer=_become_worker)


def _context() -> multiprocessing.context.BaseContext:
    # Never a plain fork: a copy of a process whose torch threads hold locks can hang for ever. A
    # fork server imports torch once, and its children start at once.
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["wvmonitor.scan.measure"])
        return context
    return multiprocessing.get_context("spawn")


def _become_worker() -> None:
    import torch

    torch.set_num_threads(1)
    # Ctrl-C reaches every process of the terminal; the scan itself ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _dask(scheduler: str | None) -> Iterator[Executor]:
    if scheduler is None:
        raise SettingsError(
            "--executor dask needs the address of a scheduler: add --scheduler tcp://HOST:8786"
        )
    try:
        distributed = importlib.import_module("distributed")
    except ImportError as error:
        raise SettingsError(
            f"--executor dask needs dask.distributed, which is not installed ({error}): pip "
            "install distributed, or use --workers"
        ) from error
    try:
        client = distributed.Client(scheduler, timeout=20)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"no Dask scheduler answers at {scheduler!r} ({error}): check the address"
        ) from error
    try:
        # `pure=False`: a file may have changed since it was last read at the same path.
        executor: Executor = client.get_executor(pure=False)
        yield executor
    finally:
        client.close()
