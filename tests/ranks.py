"""What `run_distributed` calls in each process where one start of the processes serves many tests.

To start two that import torch, Transformers and PEFT takes much longer than what they then do.
"""

from __future__ import annotations

import gc
from pkgutil import resolve_name
from typing import Any


def in_turn(calls: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """What each of several functions returns, by the name of its call.

    Args:
        calls: by name: a function, as `package.module:function`, and its arguments.
    """
    functions = {name: resolve_name(function) for name, (function, _) in calls.items()}
    gc.freeze()  # what was imported is no garbage; each Trainer would look through all of it twice
    found = {}
    for name, (_, arguments) in calls.items():
        try:
            found[name] = functions[name](**arguments)
        except BaseException as error:
            error.add_note(f"in the call {name!r}")
            raise
    return found
