"""What a page is made from: one `RunView` for each run or checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from wvmonitor.detection.judgement import Judgement
from wvmonitor.errors import UnknownReferenceError
from wvmonitor.journal.records import Event
from wvmonitor.reading import Component, Geometry, Reading, group_of, module_of


@dataclass(frozen=True)
class BehaviourPoint:
    """Behaviour as measured at one step: a rate in [0, 1] with its 95 % interval."""

    step: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class HeatMap:
    """Which layers and kinds of module carry ⟨τ, w⟩ at one reading.

    Attributes:
        layers, modules: the names of the rows and columns.
        shares: (layers, modules), each part's share of the whole inner product; the shares sum to
            1, and parts that point away from w are negative. NaN where there is no such part.
    """

    reference: str
    geometry: str
    layers: tuple[str, ...]
    modules: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...]
    step: int | None = None


@dataclass(frozen=True)
class RunView:
    """One run as the page shows it.

    Attributes:
        name: the run's id, path or title.
        rows: its judged readings by step; of a long run the telling ones.
        readings: how many there are in all, where `rows` are fewer.
        note: what was expected of it, in a word or two, if anything was.
        checkpoints: the steps at which a checkpoint was saved.
        behaviour: measured behaviour by label, to be drawn under the scores.
        base_rates: by the same label, the 95 % interval of the base's own rate, where known.
        heat_maps: which layers and modules carry it.
        facts: how it was measured, beyond what the rows say (label, value).
        problems: what could not be read or judged at all, one sentence each.
        wall_times: when each reading was made, seconds since 1970; empty where not known.
        measure_seconds: how long measuring took, where it was timed.
    """

    name: str
    rows: Sequence[Judgement]
    note: str = ""
    events: Sequence[Event] = ()
    checkpoints: Sequence[int] = ()
    behaviour: Mapping[str, Sequence[BehaviourPoint]] = field(default_factory=dict)
    base_rates: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    heat_maps: Sequence[HeatMap] = ()
    planned_steps: int | None = None
    facts: Sequence[tuple[str, str]] = ()
    problems: Sequence[str] = ()
    wall_times: Sequence[float] = ()
    measure_seconds: Sequence[float] = ()
    readings: int = 0

    @property
    def total(self) -> int:
        """How many readings it has."""
        return max(self.readings, len(self.rows))

    @property
    def in_part(self) -> bool:
        """Whether it has more readings than are shown."""
        return self.total > len(self.rows)

    @property
    def onset_step(self) -> int | None:
        """When the first measured behaviour appeared, if one did."""
        steps = [
            onset(curve, self.base_rates[label][1])
            for label, curve in self.behaviour.items()
            if label in self.base_rates
        ]
        return min((step for step in steps if step is not None), default=None)


IN_A_ROW = 3
"""So many readings in a row must show a behaviour before it counts as there."""


def onset(course: Sequence[BehaviourPoint], base_high: float) -> int | None:
    """The step at which a behaviour appears to stay; None where it does not.

    It is the first of three readings in a row with a rate above `base_high`, the upper end of the
    base's 95 % interval, and it counts only if the last reading is above it too: a rate that
    returns to the base's is noise.
    """
    above = [point.rate > base_high for point in course]
    if not above or not above[-1]:
        return None
    for index in range(len(above) - IN_A_ROW + 1):
        if all(above[index : index + IN_A_ROW]):
            return course[index].step
    return None


def heat_map(
    reading: Reading,
    reference: str,
    geometry: Geometry = "response",
    *,
    components: tuple[Component, ...] = ("blocks",),
) -> HeatMap | None:
    """Which layers and modules carry ⟨τ, w⟩ of `reference`; None where the product is not a number.

    The share needs no Gram matrix, so a journal alone can show it. It is of the plain inner
    product (the numerator of `cosine`).

    Raises:
        UnknownReferenceError: the reading has no such reference.
    """
    if reference not in reading.references:
        raise UnknownReferenceError(
            f"the reading holds no reference {reference!r}: it holds {list(reading.references)}"
        )
    if geometry not in reading.geometries:
        return None
    column = reading.references.index(reference)
    measured = reading.geometries[geometry]
    mask = reading.in_scope(components) & measured.covered
    products = np.where(mask, measured.products[:, column], 0.0)
    total = float(products.sum())
    if not mask.any() or not np.isfinite(products).all() or abs(total) < 1e-300:
        return None
    sums: dict[tuple[str, str], float] = {}
    for index in np.flatnonzero(mask):
        key = (group_of(reading.parameters[index]), module_of(reading.parameters[index]))
        sums[key] = sums.get(key, 0.0) + float(products[index])
    layers = tuple(sorted({layer for layer, _ in sums}, key=_natural))
    modules = tuple(dict.fromkeys(module for _, module in sums))
    shares = tuple(
        tuple(sums.get((layer, module), np.nan) / total for module in modules) for layer in layers
    )
    return HeatMap(reference, geometry, layers, modules, shares, reading.step)


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key in which layer 10 follows layer 9."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(p)) if p.isdecimal() else (1, p) for p in parts)
