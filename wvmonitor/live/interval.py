"""When a reading is due: often enough to see a drift begin, seldom enough to cost nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

GRACE_SECONDS = 10.0
"""Measuring may always take this long in all, so that short runs are read as often as asked."""


@dataclass
class MeasurementInterval:
    """When a reading is due.

    At every multiple of `every` steps, as long as measuring stays under `max_overhead` of the time
    since training began (plus `GRACE_SECONDS` in all); beyond that, multiples are left out.
    """

    every: int
    max_overhead: float
    started: float = field(default_factory=time.monotonic)
    spent: float = 0.0
    longest: float = 0.0

    def due(self, step: int) -> bool:
        """Whether a reading at this step is wanted and affordable."""
        if step % self.every:
            return False
        allowance = GRACE_SECONDS + self.max_overhead * (time.monotonic() - self.started)
        return self.spent + self.longest <= allowance

    def note(self, seconds: float) -> None:
        """Account for a reading that took `seconds`."""
        self.spent += seconds
        self.longest = max(self.longest, seconds)
