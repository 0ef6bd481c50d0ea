"""wvmonitor: a smoke detector for fine-tuning, reading the weights.

The public names are imported when they are first used, so that `import wvmonitor` stays light.
"""

import sys
from collections.abc import Callable, Mapping
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


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`, which imports a name from its home when it is first used.

    Args:
        package: the package's own name.
        homes: by public name, the module inside the package that has it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get


_HOMES = {
    "Calibration": "detection",
    "Judge": "detection",
    "Monitor": "live.monitor",
    "MonitorSettings": "live.settings",
    "Reading": "reading",
    "Reference": "references",
    "ReferenceBank": "references",
    "Run": "live.monitor",
    "TaskVector": "vectors",
    "Verdict": "detection",
    "WVMonitorCallback": "integrations.transformers",
    "calibrate": "detection",
    "prepare": "builder.prepare",
    "read_adapter": "sources",
    "read_checkpoints": "sources",
    "read_model": "sources",
    "score": "detection",
    "steered": "steering.weights",
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


_of_a_room = lazily(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name == "scan":  # the package of that name can be called
        return import_module("wvmonitor.scan")
    return _of_a_room(name)


def __dir__() -> list[str]:
    return sorted(__all__)
