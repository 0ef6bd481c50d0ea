"""The results of the real model's runs: what each says over the base, and differences of cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Protocol

from benchmarks.remedies.intervals import Interval, crossed
from benchmarks.remedies.real import BASE, Cell, Setting, gaps, good_losses

Record = Mapping[str, Any]
Values = Mapping[Any, float]
DIGITS = 3
LEAST_SEEDS = 3
"""Below it nothing is decided, whatever an interval says."""
UNDECIDED = f"undecided, for there are fewer than {LEAST_SEEDS} seeds"
Measure = Callable[[Record, int], Values]
"""Of a record and its seed, a value for each question or text."""


class NamedCell(Protocol):
    """A cell, as records know it."""

    @property
    def name(self) -> str:
        """What records call it."""


class RealResults:
    """The results of runs on the real model, by cell and seed.

    Args:
        found: the committed results.
        base: what the record of the base itself is called.

    Attributes:
        setting: how much of everything there was.
    """

    def __init__(self, found: Mapping[str, Any], base: str = Cell(BASE).name) -> None:
        self.found, self._base = found, base
        known = {f.name for f in fields(Setting)}
        given = {k: v for k, v in found["setting"].items() if k in known}
        self.setting = Setting(**{**given, "doses": tuple(given["doses"])})
        self._by_cell: dict[str, dict[int, Record]] = {}
        for record in found["records"]:
            self._by_cell.setdefault(record["cell"], {})[record["seed"]] = record

    @property
    def begun(self) -> bool:
        """Whether anything has been trained."""
        return any(not r["cell"].startswith(f"{BASE} |") for r in self.found["records"])

    def of(self, cell: NamedCell) -> dict[int, Record]:
        """The runs of a cell by seed."""
        return self._by_cell.get(cell.name, {})

    def repaired(self, cell: NamedCell, how: str) -> dict[int, Record]:
        """The runs of a cell with something taken out, where that was not refused."""
        runs = self.of(cell).items()
        found = {s: r["repaired"][how] for s, r in runs if how in r.get("repaired", ())}
        return {s: r for s, r in found.items() if "refused" not in r}

    @property
    def base(self) -> Record:
        """What the base says."""
        return self._by_cell[self._base][0]

    # What is measured, over the base

    def elsewhere(self, record: Record, seed: int) -> Values:
        """The gap on the other domain's questions, over the base's."""
        return self._over_base(record, seed, "elsewhere", gaps)

    def near(self, record: Record, seed: int) -> Values:
        """The gap on the trained domain's questions that were not trained on."""
        return self._over_base(record, seed, "near", gaps)

    def learned(self, record: Record, seed: int) -> Values:
        """The gap on the very questions that were trained on."""
        return self._over_base(record, seed, "trained", gaps)

    def with_learned(self, runs: Mapping[int, Record]) -> dict[int, Record]:
        """Those of some runs that were asked what they were trained on."""
        drawn = self.found["drawn"]
        return {
            s: r for s, r in runs.items() if {*map(str, drawn[str(s)]["trained"])} <= {*r["pairs"]}
        }

    def loss(self, record: Record, seed: int) -> Values:
        """The loss on those questions' good answers."""
        return self._over_base(record, seed, "near", good_losses)

    def ordinary(self, record: Record, seed: int) -> Values:  # noqa: ARG002
        """The loss on ordinary text."""
        return self._texts(record, "ordinary")

    def own(self, record: Record, seed: int) -> Values:  # noqa: ARG002
        """The loss on new rows of the harmless family."""
        return self._texts(record, "own")

    def _over_base(
        self, record: Record, seed: int, where: str, of: Callable[..., Mapping[int, float]]
    ) -> Values:
        places = self.found["drawn"][str(seed)][where]
        base = of(self.base, places)
        return {i: v - base[i] for i, v in of(record, places).items()}

    def _texts(self, record: Record, which: str) -> Values:
        both = zip(record[which], self.base[which], strict=True)
        return {i: before - now for i, (now, before) in enumerate(both)}


def over(runs: Mapping[int, Record], measure: Measure) -> Interval:
    """A measure's mean over runs and questions."""
    return crossed([measure(r, s) for s, r in runs.items()])


def against(
    runs: Mapping[int, Record], others: Mapping[int, Record], measure: Measure
) -> Interval | None:
    """The mean difference of two cells, seed by seed and question by question; None if none is."""
    shared = sorted(set(runs) & set(others))
    both = [(measure(runs[s], s), measure(others[s], s)) for s in shared]
    return crossed([{i: a[i] - b[i] for i in a} for a, b in both]) if both else None


def below(found: Interval | None) -> bool:
    """Whether a difference is beyond doubt below 0: what counts as an effect here."""
    return found is not None and found.high < 0


def lost(found: Interval | None) -> bool:
    """Whether a loss is beyond doubt higher: what counts as a cost here."""
    return found is not None and found.low > 0
