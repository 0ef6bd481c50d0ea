"""One decision for all processes: what rank 0 makes of a reading, every rank carries out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, get_args

from wvmonitor.errors import MonitorFailedError
from wvmonitor.live.actions import Action
from wvmonitor.live.monitor import Monitor
from wvmonitor.sources.distributed import agreed

logger = logging.getLogger(__name__)

_DECISIONS: tuple[Action | Literal["fail"], ...] = (
    *get_args(Action),
    "fail",
)


def together(monitor: Monitor, where: str, decide: Callable[[], Action]) -> Action:
    """Rank 0's decision, in every process. All of them must call it, or the others wait for ever.

    `decide` is this process's share of the work, "none" where it has no part in the reading;
    `where` names what failed if it does, for the log and the metrics.

    Raises:
        MonitorFailedError: the monitor failed on rank 0, and on_monitor_failure="stop": a failure
            that stops training is a decision too, so that it stops every rank.
    """
    decision: Action | Literal["fail"]
    failure: MonitorFailedError | None = None
    try:
        decision = monitor.guarded(where, decide, "none")
    except MonitorFailedError as error:
        decision, failure = "fail", error
    shared = _DECISIONS[agreed(_DECISIONS.index(decision))]
    if shared == "fail":
        raise failure or MonitorFailedError(
            "the monitor failed on rank 0, and on_monitor_failure='stop'"
        )
    return shared


def latched(monitor: Monitor) -> Action:
    """Whether to stop at once: this run was stopped before, and nobody has lifted that."""
    reason = monitor.stop_latched()
    if reason is None:
        return "none"
    logger.error(
        "this run was stopped by wvmonitor (%s) and stays stopped: lift it with "
        "`wvmonitor journal clear-stop`",
        reason,
    )
    return "stop"
