"""What there is to compute on: cores, and the device that was asked for."""

from __future__ import annotations

import os
from typing import Any

from wvmonitor.errors import InputError


def cores() -> int:
    """Those of its affinity, where the system knows one, else all of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def on_device(model: Any, device: str) -> Any:
    """A model moved to a device that a user named.

    Raises:
        InputError: torch has no such device here.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch has no CUDA at all
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the device {device!r} cannot be used ({reason}): leave --device out, or name one "
            "that `wvmonitor doctor` finds"
        ) from None
