"""What every exporter is given, and what it must be able to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from wvmonitor.detection.judgement import Judgement, State, Verdict
from wvmonitor.detection.scores import Scores
from wvmonitor.reading import Component, Reading

VERDICT_CODES: Mapping[State, int] = {
    State.OK: 0,
    State.WARN: 1,
    State.ALARM: 2,
    State.WARMING: -1,
    State.UNKNOWN: -2,
}
"""A verdict as a number for charts: from 1 up someone must look; below 0 nothing was judged."""

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Observation:
    """One judged reading of a run, and when it was made.

    Attributes:
        measure_seconds: how long measuring and judging took.
        wall_time: when it was made, seconds since 1970.
    """

    run: str
    judgement: Judgement
    measure_seconds: float
    wall_time: float

    @property
    def reading(self) -> Reading | None:
        """The inner products, where they are at hand."""
        return self.judgement.reading

    @property
    def scores(self) -> Scores:
        """Their statistics."""
        return self.judgement.scores

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What is thought of each behaviour."""
        return tuple(self.judgement.verdicts.values())

    @property
    def acknowledged(self) -> frozenset[str]:
        """Behaviours that someone silenced in this run (`wvmonitor ack`)."""
        return self.judgement.acknowledged


class Exporter(Protocol):
    """Makes readings visible somewhere; called on the training thread, so it returns at once."""

    def export(self, observation: Observation) -> None:
        """Show one observation."""

    def error(self, where: str) -> None:
        """Show that a part of the monitor has failed once ("reading", "journal", …)."""

    def close(self) -> None:
        """Let go of ports, files and threads; calling it twice is fine."""


def layer_projections(
    reading: Reading | None, components: tuple[Component, ...] = ("blocks",)
) -> dict[str, dict[str, float]]:
    """⟨τ_l, w_l⟩ / ‖τ‖ by reference and layer l, Frobenius: how far the run went along w in each.

    A layer is the first number in a parameter's name; parameters without one count as "other".
    The values of a reference sum to cosine × ‖w‖. Empty at τ = 0, and without a reading.
    """
    norm = 0.0 if reading is None else reading.norm()
    if reading is None or norm == 0:
        return {}
    products = reading.geometries["frobenius"].products
    layers: dict[str, list[int]] = {}
    for index, (name, used) in enumerate(
        zip(reading.parameters, reading.in_scope(components), strict=True)
    ):
        if used:
            match = _LAYER.search(name)
            layers.setdefault(match.group(1) if match else "other", []).append(index)
    return {
        reference: {
            layer: float(products[indices, column].sum() / norm)
            for layer, indices in layers.items()
        }
        for column, reference in enumerate(reading.references)
    }
