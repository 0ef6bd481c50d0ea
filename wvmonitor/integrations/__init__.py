"""Thin layers over `Monitor` for each training framework."""

from typing import TYPE_CHECKING

from wvmonitor import lazily

if TYPE_CHECKING:
    from wvmonitor.integrations.transformers import WVMonitorCallback

_HOMES = {
    "WVMonitorCallback": "transformers",
}

__all__ = [
    "WVMonitorCallback",
]

__getattr__ = lazily(__name__, _HOMES)
