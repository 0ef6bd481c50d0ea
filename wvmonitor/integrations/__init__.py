"""Thin layers over `Monitor` for each training framework."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wvmonitor.integrations.transformers import WVMonitorCallback

_HOMES = {
    "WVMonitorCallback": "transformers",
}

__all__ = [
    "WVMonitorCallback",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
