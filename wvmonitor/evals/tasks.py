"""Every task by name. Inspect's entry point loads this file, and with it registers them all."""

from __future__ import annotations

from collections.abc import Callable

from inspect_ai import Task

from wvmonitor.evals.capability import capability
from wvmonitor.evals.emergent_misalignment import emergent_misalignment
from wvmonitor.evals.gcd import gcd
from wvmonitor.evals.refusal import refusal
from wvmonitor.evals.sycophancy import sycophancy
from wvmonitor.evals.world_affecting import world_affecting

TASKS: dict[str, Callable[..., Task]] = {
    "sycophancy": sycophancy,
    "world_affecting": world_affecting,
    "gcd": gcd,
    "refusal": refusal,
    "capability": capability,
    "emergent_misalignment": emergent_misalignment,
}
