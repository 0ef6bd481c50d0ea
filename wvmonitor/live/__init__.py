"""Watching a live run: `Monitor.observe(model, step)`, whatever the framework."""

from typing import TYPE_CHECKING

from wvmonitor import lazily

if TYPE_CHECKING:
    from wvmonitor.live.actions import Action
    from wvmonitor.live.behaviour_check import Probe, QuestionProbe
    from wvmonitor.live.monitor import Monitor
    from wvmonitor.live.run import Run
    from wvmonitor.live.settings import MonitorSettings

_HOMES = {
    "Action": "actions",
    "Monitor": "monitor",
    "MonitorSettings": "settings",
    "Probe": "behaviour_check",
    "QuestionProbe": "behaviour_check",
    "Run": "run",
}

__all__ = [
    "Action",
    "Monitor",
    "MonitorSettings",
    "Probe",
    "QuestionProbe",
    "Run",
]

__getattr__ = lazily(__name__, _HOMES)
