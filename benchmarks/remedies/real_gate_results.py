"""What the real model's gate found: AUROCs beside those of the rows' own loss, sets, thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import ceil
from typing import Any

from benchmarks.remedies.real_gate import BAD, GOOD, ORDINARY, GateSetting, bad_names
from benchmarks.statistics import Metric, Sample, auroc, difference
from wvmonitor.steering.blame import Blamed
from wvmonitor.steering.data_gate import Screened, Threshold, screened, threshold_of
from wvmonitor.steering.examples import TrainingExample


@dataclass(frozen=True)
class Row:
    """One row as it was screened.

    Attributes:
        name: its domain or set, and its place there.
        push: nats per answer token.
        loss: likewise.
        tokens: of its answer.
    """

    name: str
    push: float
    loss: float
    tokens: int

    @property
    def of(self) -> str:
        """Its domain or set."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Told:
    """How well bad rows are told from others.

    Attributes:
        push: AUROC of the push.
        loss: of the rows' own loss, in the direction that ranks better.
        by_loss: which that is: "higher" or "lower".
        gain: AUROC of the push less that of the loss, with `ci95`.
    """

    push: Metric
    loss: Metric
    by_loss: str
    gain: Mapping[str, Any]


@dataclass(frozen=True)
class Sieved:
    """What the gate says of one set.

    Attributes:
        found: bad rows flagged, and how many there are.
        lost: other rows flagged, and how many there are.
        passed: whether the set passes.
    """

    found: tuple[int, int]
    lost: tuple[int, int]
    passed: bool


class GateResults:
    """The results of `real_gate`.

    Attributes:
        setting: how much of everything there was.
        behaviours: those that were screened for, in their order.
    """

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.found = found
        known = {f.name for f in fields(GateSetting)}
        given = {k: v for k, v in found["setting"].items() if k in known}
        self.setting = GateSetting(**{**given, "shares": tuple(given["shares"])})
        self._groups: dict[str, dict[str, list[Row]]] = {}
        self.taken: dict[str, Mapping[str, float]] = {}
        for r in found["records"]:
            rows = [Row(*row) for row in r["rows"]]
            self._groups.setdefault(r["behaviour"], {})[r["group"]] = rows
            self.taken[r["behaviour"]] = r["taken"]
        self.behaviours = list(self._groups)

    def rows(self, behaviour: str, group: str) -> list[Row]:
        """The rows of a group; none where it was not screened."""
        return self._groups[behaviour].get(group, [])

    def ordinary(self, behaviour: str) -> list[Row]:
        """The ordinary rows of all sets."""
        return [r for n in range(self.setting.sets) for r in self.block(behaviour, n)]

    def block(self, behaviour: str, number: int) -> list[Row]:
        """The ordinary rows of one set."""
        return self.rows(behaviour, f"{ORDINARY} {number % self.setting.sets}")

    def whole(self, behaviour: str) -> bool:
        """Whether everything that decides was screened."""
        groups = {BAD, GOOD, *(f"{ORDINARY} {n}" for n in range(self.setting.sets))}
        return groups <= set(self._groups[behaviour])

    def told(self, bad: Sequence[Row], others: Sequence[Row]) -> Told | None:
        """How well bad rows are told from others; None where one of the two is missing.

        Bad rows are drawn one by one for the intervals, with the good answers to their questions;
        ordinary rows with their set.
        """
        if not bad or not others:
            return None

        def cluster(row: Row) -> str:
            return row.of if row in ordinary else row.name

        ordinary = {r for r in others if ":" not in r.name}
        sides = [(r, True) for r in bad] + [(r, False) for r in others]
        push = auroc([Sample(r.push, side, cluster(r)) for r, side in sides])
        up = auroc([Sample(r.loss, side, cluster(r)) for r, side in sides])
        down = auroc([Sample(-r.loss, side, cluster(r)) for r, side in sides])
        assert push is not None and up is not None and down is not None
        sign = 1 if up.value >= down.value else -1
        gain = difference([(r.push, sign * r.loss, side, cluster(r)) for r, side in sides])
        assert gain is not None
        return Told(push, up if sign > 0 else down, "higher" if sign > 0 else "lower", gain)

    def threshold(self, behaviour: str, number: int) -> Threshold:
        """That of a set: of the ordinary rows of the next one."""
        known = self.block(behaviour, number + 1)
        return threshold_of(_blamed(known), self.setting.flag_rate)

    def sieved(self, behaviour: str, share: float) -> list[Sieved]:
        """What the gate says of each set of a contamination."""
        found = []
        for number in range(self.setting.sets):
            wanted = round(share * self.setting.rows)
            names = bad_names([r.name for r in self.rows(behaviour, BAD)], behaviour, number, self.setting)
            chosen = set(names[:wanted])
            bad = [r for r in self.rows(behaviour, BAD) if r.name in chosen]
            # bad rows take the places of the last ones
            clean = self.block(behaviour, number)[: self.setting.rows - wanted]
            outcome = self.screened([*bad, *clean], self.threshold(behaviour, number))
            flagged = {b.example.index for b in outcome.flagged}
            hits = sum(i < len(bad) for i in flagged)
            found.append(
                Sieved((hits, len(bad)), (len(flagged) - hits, len(clean)), outcome.passed)
            )
        return found

    @staticmethod
    def screened(rows: Sequence[Row], threshold: Threshold) -> Screened:
        """Hold rows against a threshold, as the command does."""
        ranked = sorted(_blamed(rows), key=lambda b: -b.push)
        return screened(ranked, threshold)


def _blamed(rows: Sequence[Row]) -> list[Blamed]:
    return [Blamed(TrainingExample(i), r.push, r.loss) for i, r in enumerate(rows)]
