"""The window over which the `window` score looks back: windows of a run do not overlap."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from wvmonitor.reading import Component, Reading, component_of
from wvmonitor.vectors.task_vector import TaskVector


@dataclass(frozen=True)
class Start:
    """The task vector at which a window began, and its reading."""

    vector: TaskVector
    reading: Reading


class Window:
    """Where the current window of a run began.

    One copy of the scored LoRA factors is kept, no more: a copy of dense weights is not a price to
    pay unasked, and of a sharded model no process holds the whole.
    """

    def __init__(self, length: int, components: Collection[Component]) -> None:
        """No window has begun.

        Args:
            length: in readings.
            components: the parts of the model that are scored.
        """
        self._length, self._components = length, frozenset(components)
        self._start: Start | None = None
        self._readings = 0

    @property
    def ended(self) -> Start | None:
        """Where the window began that ends with the next reading; None where none does."""
        return self._start if self._readings >= self._length else None

    def add(self, tau: TaskVector, reading: Reading) -> None:
        """Count a reading, and begin the next window with it if one has just ended."""
        if tau.origin.method == "lora" and (self._start is None or self.ended):
            scored = tau.select(lambda n: component_of(n, tau.shape(n)) in self._components)
            self._start, self._readings = Start(scored.held(), reading), 0
        self._readings += 1
