"""Watching a live run: `Monitor.observe(model, step)`, whatever the framework."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
