"""Offline: checkpoints on disk to verdicts, cosines between checkpoints, and a first look.

The room itself can be called: `wvmonitor.scan(paths, bank)` is the function `scan` of `scan.py`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wvmonitor import lazily

if TYPE_CHECKING:
    from wvmonitor.scan.cache import ScanCache
    from wvmonitor.scan.results import exit_code
    from wvmonitor.scan.scan import open_bank
    from wvmonitor.scan.targets import Target, find_targets
    from wvmonitor.scan.watch import Watcher, WatchOptions

_HOMES = {
    "ScanCache": "cache",
    "Target": "targets",
    "WatchOptions": "watch",
    "Watcher": "watch",
    "exit_code": "results",
    "find_targets": "targets",
    "open_bank": "scan",
}

__all__ = [
    "ScanCache",
    "Target",
    "WatchOptions",
    "Watcher",
    "exit_code",
    "find_targets",
    "open_bank",
]

__getattr__ = lazily(__name__, _HOMES)


class _Room(ModuleType):
    """`wvmonitor.scan` is this package's name, and the public function's."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return import_module(f"{__name__}.scan").scan(*arguments, **options)


sys.modules[__name__].__class__ = _Room
