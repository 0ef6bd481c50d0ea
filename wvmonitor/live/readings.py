"""The readings of one attempt at a run: when one is due, how it is taken, what it is held against.

Often enough to see a drift begin, seldom enough to cost nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judge import Judge
from wvmonitor.detection.judgement import Judgement, JudgeState
from wvmonitor.reading import Component, Reading, component_of
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.sources.distributed import agreed, rank
from wvmonitor.vectors.task_vector import TaskVector

if TYPE_CHECKING:
    from wvmonitor.live.outputs import Outputs
    from wvmonitor.live.settings import MonitorSettings
    from wvmonitor.sources.live_model import LiveModel

logger = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
"""Measuring may always take this long in all, so that short runs are read as often as asked."""


class Readings:
    """Takes the readings of one attempt, and remembers where judging them has come to.

    Attributes:
        takes_part: whether this process takes part in readings: the first one does, and of a
            sharded model all do.
        context: what verdicts depend on beside the scores.
        state: where judging has come to.
        interval: when a reading is due.
    """

    def __init__(
        self,
        live: LiveModel,
        bank: ReferenceBank,
        judge: Judge,
        settings: MonitorSettings,
        planned_steps: int | None,
    ) -> None:
        """Nothing has been read."""
        self.live = live
        self.context = RunContext()
        self.state = JudgeState()
        self.interval = MeasurementInterval(settings.every_n_steps, settings.max_overhead)
        self._bank, self._judge, self._planned_steps = bank, judge, planned_steps
        self._window = Window(settings.window, judge.components)
        self._is_first = rank() == 0
        self.takes_part = live.sharded or self._is_first

    def should_read(self, step: int, *, force: bool, able: bool) -> bool:
        """Whether to read now: the first process decides, and of a sharded model all take part.

        `able`: whether there is anything to read, and a monitor at work.
        """
        sharded = self.live.sharded
        if not self.takes_part or (sharded and not force and step % self.interval.every):
            return False
        due = able and (force or self.interval.due(step))
        if able and not due and self._is_first:
            self.interval.say_what_is_left_out(step)
        return bool(agreed(int(due))) if sharded else due

    def take(self, step: int, outputs: Outputs, *, last: bool = False) -> Judgement | None:
        """Read the model and judge what it is; None in processes that only help to read.

        Args:
            step: optimiser steps so far.
            outputs: of the attempt: what was acknowledged in it, and its snapshots.
            last: whether no other reading will follow; at the run's planned end none does.
        """
        planned, began = self._planned_steps, self._window.ended
        last = last or (planned is not None and step >= planned)
        if self.live.incomplete:
            self.context = replace(self.context, base="unknown")
        progress = min(step / planned, 1.0) if planned else None
        if self.live.sharded:
            reading = self.live.measure(self._bank, step, progress=progress)
            if not self._is_first:
                return None
        else:
            tau, snapshots = self.live.task_vector(step), outputs.snapshots
            reading = self._bank.measure(
                snapshots.watching(tau) if snapshots else tau,
                progress=progress,
                earlier=began.vector if began else None,
            )
            if snapshots:
                snapshots.record(tau, step)
            self._window.add(tau, reading)
        judgement = self._judge(
            reading,
            self.context,
            self.state,
            earlier=began.reading if began else None,
            acknowledged=outputs.acknowledged(),
            last=last,
        )
        self.state = judgement.state
        return judgement

    def take_single(self, step: int, outputs: Outputs) -> Judgement | None:
        """Read and judge the model as a single checkpoint, outside of the run's trajectory."""
        reading = self.live.measure(self._bank, step)
        if not self._is_first:
            return None
        context, silenced = replace(self.context, lone=True), outputs.acknowledged()
        return self._judge(reading, context, JudgeState(), acknowledged=silenced, last=True)


@dataclass
class MeasurementInterval:
    """When a reading is due.

    At every multiple of `every` steps, as long as measuring stays under `max_overhead` of the time
    since training began (plus `GRACE_SECONDS` in all); beyond that, multiples are left out, which
    is said once.
    """

    every: int
    max_overhead: float
    started: float = field(default_factory=time.monotonic)
    spent: float = 0.0
    longest: float = 0.0
    said: bool = False

    def due(self, step: int) -> bool:
        """Whether a reading at this step is wanted and affordable."""
        if step % self.every:
            return False
        allowance = GRACE_SECONDS + self.max_overhead * (time.monotonic() - self.started)
        return self.spent + self.longest <= allowance

    def say_what_is_left_out(self, step: int) -> None:
        """Log that a reading which was asked for is too dear, the first time that one is."""
        if self.said or step % self.every or self.due(step):
            return
        self.said = True
        logger.warning(
            "the reading of step %d is left out, and others will be: one takes %.3g s, which for a "
            "reading every %d steps is more than max_overhead=%g of training; a drift is seen "
            "later than you may expect. Set a larger max_overhead to read as often as that",
            *(step, self.longest, self.every, self.max_overhead),
        )

    def note(self, seconds: float) -> None:
        """Count a reading that took `seconds`."""
        self.spent += seconds
        self.longest = max(self.longest, seconds)


@dataclass(frozen=True)
class WindowStart:
    """The task vector at which a window began, and its reading."""

    vector: TaskVector
    reading: Reading


class Window:
    """Where the current window of a run began, for the `window` score; windows do not overlap.

    One copy of the scored LoRA factors is kept, no more: a copy of dense weights is not a price to
    pay unasked, and of a sharded model no process holds the whole.
    """

    def __init__(self, length: int, components: Collection[Component]) -> None:
        """No window has begun."""
        self._length, self._components = length, frozenset(components)
        self._start: WindowStart | None = None
        self._readings = 0

    @property
    def ended(self) -> WindowStart | None:
        """Where the window began that ends with the next reading; None where none does."""
        return self._start if self._readings >= self._length else None

    def add(self, tau: TaskVector, reading: Reading) -> None:
        """Count a reading, and begin the next window with it if one has just ended."""
        if tau.origin.method == "lora" and (self._start is None or self.ended):
            scored = tau.select(lambda n: component_of(n, tau.shape(n)) in self._components)
            self._start, self._readings = WindowStart(scored.held(), reading), 0
        self._readings += 1
