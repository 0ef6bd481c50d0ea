"""What every exporter is given, and what it must be able to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from wvmonitor.detection.scores import ScoreName, Scores
from wvmonitor.detection.verdict import State, Verdict
from wvmonitor.reading import Component, Geometry, Reading

STATES: tuple[State, ...] = ("ok", "warming", "unknown", "warn", "alarm")
"""From the least to the most that someone must look at."""

VERDICT_CODES: Mapping[State, int] = {"ok": 0, "warn": 1, "alarm": 2, "warming": -1, "unknown": -2}
"""A verdict as a number for charts: from 1 up someone must look; below 0 nothing was judged."""

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Observation:
    """One step of the monitor, complete: what was measured and what is thought of it.

    Attributes:
        run: the run's id.
        reading: the inner products.
        scores: their statistics.
        verdicts: what is thought of each behaviour.
        measure_seconds: how long measuring and judging took.
        wall_time: when it was made, seconds since 1970.
        deciding: the geometry and score that verdicts rest on, where they rest on one.
        acknowledged: behaviours that someone silenced in this run (`wvmonitor ack`).
    """

    run: str
    reading: Reading
    scores: Scores
    verdicts: tuple[Verdict, ...]
    measure_seconds: float
    wall_time: float
    deciding: tuple[Geometry, ScoreName] | None = None
    acknowledged: frozenset[str] = frozenset()


class Exporter(Protocol):
    """Makes readings visible somewhere; called on the training thread, so it returns at once."""

    def export(self, observation: Observation) -> None:
        """Show one observation."""

    def error(self, where: str) -> None:
        """Show that a part of the monitor has failed once ("reading", "journal", …)."""

    def close(self) -> None:
        """Let go of ports, files and threads; calling it twice is fine."""


def overall(verdicts: Iterable[Verdict]) -> State:
    """The verdict that most needs someone to look; unknown if there is none at all."""
    return max((v.state for v in verdicts), key=STATES.index, default="unknown")


def unwatched(last: Observation, why: str) -> Observation:
    """The last observation of a run that nobody watches any more, with the reason in words.

    What was fine at the time is unknown now; a warning or an alarm stays what it was.
    """
    verdicts = tuple(
        v
        if STATES.index(v.state) > STATES.index("unknown")
        else replace(v, state="unknown", reason=why, account=())
        for v in last.verdicts
    )
    return replace(last, verdicts=verdicts)


def layer_projections(
    reading: Reading, components: tuple[Component, ...] = ("blocks",)
) -> dict[str, dict[str, float]]:
    """⟨τ_l, w_l⟩ / ‖τ‖ by reference and layer l, Frobenius: how far the run went along w in each.

    A layer is the first number in a parameter's name; parameters without one count as "other".
    The values of a reference sum to cosine × ‖w‖. Empty at τ = 0.
    """
    norm = reading.norm()
    if norm == 0:
        return {}
    products = reading.geometries["frobenius"].products
    layers: dict[str, list[int]] = {}
    for index, (name, used) in enumerate(
        zip(reading.parameters, reading.in_scope(components), strict=True)
    ):
        if used:
            found = _LAYER.search(name)
            layers.setdefault(found.group(1) if found else "other", []).append(index)
    return {
        reference: {
            layer: float(products[indices, column].sum() / norm)
            for layer, indices in layers.items()
        }
        for column, reference in enumerate(reading.references)
    }
