"""A copy of this process that may be killed: it has imported what takes a new one many seconds."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable


def ended(work: Callable[[], object]) -> int:
    """How a fork that did `work` ended: 0, 1 after an exception, −N after signal N."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as in a new process
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001  nothing may run on in the copy
            traceback.print_exc()
        finally:
            os._exit(code)
    try:
        _, status = os.waitpid(pid, 0)
    except BaseException:  # the test has run out of its time
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return os.waitstatus_to_exitcode(status)
