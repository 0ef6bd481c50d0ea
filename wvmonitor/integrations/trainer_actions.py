"""What an action of the monitor asks of a Trainer: a checkpoint, an end, k·w, or a way back."""

from __future__ import annotations

from wvmonitor.integrations.checkpoints import KeptCheckpoints
from wvmonitor.integrations.going_back import WayBack, told, way_back
from wvmonitor.integrations.trainer_facts import Event
from wvmonitor.live.actions import Action
from wvmonitor.live.monitor import Monitor

SAVING: tuple[Action, ...] = ("save", "stop", "rollback")
"""The actions that ask for a checkpoint."""


def carry_out(
    action: Action, monitor: Monitor, kept: KeptCheckpoints | None, now: Event
) -> WayBack | None:
    """Carry out an action, in every process.

    Returns:
        Where the run goes back to, if it does.
    """
    way, step = None, now.state.global_step
    if action == "inoculate":
        monitor.guarded("brake", lambda: monitor.inoculate(now.model), None)
    elif action == "rollback" and (way := way_back(monitor, kept, step)) is not None:
        monitor.remark(told(monitor, way), kind="rollback")
        if monitor.settings.after_rollback == "stop":
            monitor.stop(told(monitor, way))
    if action in SAVING:
        now.control.should_save = True
        if kept is not None:
            monitor.guarded("checkpoint", kept.hold, None)
    if action in ("stop", "rollback"):
        now.control.should_training_stop = True
    return way
