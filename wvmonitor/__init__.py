"""wvmonitor: a smoke detector for fine-tuning, reading the weights.

The public names are imported when they are first used, so that `import wvmonitor` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wvmonitor._version import __version__

if TYPE_CHECKING:
    from wvmonitor.builder.prepare import prepare
    from wvmonitor.detection import Calibration, Judge, Verdict, calibrate, score
    from wvmonitor.integrations.transformers import WVMonitorCallback
    from wvmonitor.live.monitor import Monitor, Run
    from wvmonitor.live.settings import MonitorSettings
    from wvmonitor.reading import Reading
    from wvmonitor.references import Reference, ReferenceBank
    from wvmonitor.scan.scan import scan
    from wvmonitor.sources import read_adapter, read_checkpoints, read_model
    from wvmonitor.steering.weights import steered
    from wvmonitor.vectors import TaskVector

_HOMES = {
    "Calibration": "wvmonitor.detection",
    "Judge": "wvmonitor.detection",
    "Monitor": "wvmonitor.live.monitor",
    "MonitorSettings": "wvmonitor.live.settings",
    "Reading": "wvmonitor.reading",
    "Reference": "wvmonitor.references",
    "ReferenceBank": "wvmonitor.references",
    "Run": "wvmonitor.live.monitor",
    "TaskVector": "wvmonitor.vectors",
    "Verdict": "wvmonitor.detection",
    "WVMonitorCallback": "wvmonitor.integrations.transformers",
    "calibrate": "wvmonitor.detection",
    "prepare": "wvmonitor.builder.prepare",
    "read_adapter": "wvmonitor.sources",
    "read_checkpoints": "wvmonitor.sources",
    "read_model": "wvmonitor.sources",
    "score": "wvmonitor.detection",
    "steered": "wvmonitor.steering.weights",
}

__all__ = [
    "Calibration",
    "Judge",
    "Monitor",
    "MonitorSettings",
    "Reading",
    "Reference",
    "ReferenceBank",
    "Run",
    "TaskVector",
    "Verdict",
    "WVMonitorCallback",
    "__version__",
    "calibrate",
    "prepare",
    "read_adapter",
    "read_checkpoints",
    "read_model",
    "scan",
    "score",
    "steered",
]


def __getattr__(name: str) -> Any:
    if name == "scan":  # the package of that name can be called
        return import_module("wvmonitor.scan")
    if name not in _HOMES:
        raise AttributeError(f"module 'wvmonitor' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
