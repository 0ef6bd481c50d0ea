"""A copy of this process that may be killed: it has imported what takes a new one many seconds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkProcess


def started(work: Callable[..., object], *arguments: object) -> ForkProcess:
    """A fork that does `work`; it ends with this process at the latest."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def ended(work: Callable[..., object], *arguments: object) -> int | None:
    """How a fork that did `work` ended: 0, 1 after an exception, −N after signal N."""
    process = started(work, *arguments)
    process.join()
    return process.exitcode
