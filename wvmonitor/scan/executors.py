"""Where a scan measures: here, in worker processes, or on a Dask cluster."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Literal, TypeVar

from wvmonitor.errors import SettingsError, WVMonitorError
from wvmonitor.vectors.devices import cores

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
    with _pool(count) as pool:
        yield pool


def alone(function: Callable[[Job], Outcome], jobs: Iterable[Job]) -> Iterator[Outcome | Exception]:
    """Each job's outcome, one at a time in a worker process of its own if need be.

    A job that kills its worker gives a `WorkerDiedError`, and the next one gets a new worker.
    """
    with ExitStack() as worker:
        pool: ProcessPoolExecutor | None = None
        for job in jobs:
            pool = pool or worker.enter_context(_pool(1))
            try:
                yield pool.submit(function, job).result()
            except BrokenProcessPool:
                worker.close()
                pool = None
                yield WorkerDiedError(
                    "the worker process that measured this checkpoint died, of too little memory "
                    "most likely: scan it by itself with --workers 1, or on a larger machine"
                )


@contextmanager
def _pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with the block, and with this process however it ends.

    Left to itself the standard library's pool can wait for ever for workers of which one was
    killed: for one that started while the pool broke, or one that waits for a lock of the dead.
    """
    context = _context()
    start = context.Barrier(count)
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        count, mp_context=context, initializer=_become_worker, initargs=(start, theirs)
    )
    try:
        for _ in range(count):  # each starts a worker, and none is idle before all are there
            pool.submit(os.getpid)
        theirs.close()
        yield pool
    finally:
        # Whoever stops early has no use for what is still waiting.
        ours.close()
        pool.shutdown(cancel_futures=True)


def _context() -> multiprocessing.context.BaseContext:
    # Never a plain fork: a copy of a process whose torch threads hold locks can hang for ever. A
    # fork server imports torch once, and its children start at once.
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["wvmonitor.scan.measure"])
        return context
    return multiprocessing.get_context("spawn")


def _become_worker(start: Barrier, parent: Connection) -> None:
    # Ctrl-C reaches every process of the terminal; the scan itself ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    start.wait()


def _end_with(parent: Connection) -> None:
    parent.poll(None)  # nothing is ever sent: it returns when the other end is closed
    os._exit(0)


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
    with closing(client):
        # `pure=False`: a file may have changed since it was last read at the same path.
        executor: Executor = client.get_executor(pure=False)
        yield executor
