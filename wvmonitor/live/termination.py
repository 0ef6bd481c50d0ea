"""SIGTERM, which schedulers send before they kill: a moment to say that a run was stopped."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

logger = logging.getLogger(__name__)

LAST_SECONDS = 20.0
"""Slurm and Kubernetes wait for 30 s before they kill."""


def before_sigterm(work: Callable[[], None]) -> Callable[[], None]:
    """Do `work` before SIGTERM ends the process, if nobody else has seen to that signal.

    Only where its action is still the default, which would end the process with nothing said: a
    program's own handler stays, and its orderly exit says what is to be said. The process ends by
    the signal all the same, at the latest after `LAST_SECONDS`.

    Returns:
        What takes it back.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return lambda: None
    owner = os.getpid()

    def end(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() == owner:  # and no forked data loader
            # In a thread: the main one may hold a lock that the work needs.
            worker = threading.Thread(target=work, name="wvmonitor-sigterm", daemon=True)
            worker.start()
            worker.join(LAST_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    def undo() -> None:
        here = threading.current_thread() is threading.main_thread()
        if here and signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, end)
    return undo
