"""What the real model's gate found: AUROCs beside those of the rows' own loss, sets, thresholds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.remedies.real_gate import BAD, GOOD, ORDINARY, GateSetting, bad_names
from benchmarks.statistics import Metric, Sample, auroc, difference
from wvmonitor.steering.blame import Blamed
from wvmonitor.steering.data_gate import Threshold, screened, threshold_of
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
class Way:
    """How a row is counted: by an answer's token, or in all.

    Attributes:
        name: for people.
        in_all: whether push and loss are summed over the answer's tokens.
    """

    name: str
    in_all: bool

    def push(self, row: Row) -> float:
        """A row's push."""
        return row.push * (row.tokens if self.in_all else 1)

    def loss(self, row: Row) -> float:
        """A row's loss."""
        return row.loss * (row.tokens if self.in_all else 1)


TOKEN, IN_ALL = Way("a token", in_all=False), Way("in all", in_all=True)
WAYS = (TOKEN, IN_ALL)


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
        top: bad rows among as many that push most as there are bad ones.
        top_by_loss: likewise of the highest loss.
        passed: whether the set passes.
    """

    found: tuple[int, int]
    lost: tuple[int, int]
    top: tuple[int, int]
    top_by_loss: tuple[int, int]
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
        self._told: dict[tuple[tuple[Row, ...], tuple[Row, ...], Way], Told] = {}

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

    def told(self, bad: Sequence[Row], others: Sequence[Row], way: Way) -> Told:
        """How well bad rows are told from others, of which there are some; worked out once."""
        asked = tuple(bad), tuple(others), way
        if asked not in self._told:
            self._told[asked] = self._judged(bad, others, way)
        return self._told[asked]

    def _judged(self, bad: Sequence[Row], others: Sequence[Row], way: Way) -> Told:
        push = auroc(self._samples(bad, others, way.push))
        up = auroc(self._samples(bad, others, way.loss))
        down = auroc(self._samples(bad, others, lambda r: -way.loss(r)))
        assert push is not None
        assert up is not None
        assert down is not None
        sign = 1 if up.value >= down.value else -1
        pushes = self._samples(bad, others, way.push)
        losses = self._samples(bad, others, lambda r: sign * way.loss(r))
        gain = difference(
            [(a.value, b.value, a.positive, a.cluster) for a, b in zip(pushes, losses, strict=True)]
        )
        assert gain is not None
        return Told(push, up if sign > 0 else down, "higher" if sign > 0 else "lower", gain)

    def pairs(self, behaviour: str, group: str, other: str, way: Way) -> dict[str, tuple[int, int]]:
        """Row by row: by domain, how many push more than the other group's, and how many there are.

        Raises:
            ValueError: the groups are not of the same questions in the same order.
        """
        found: dict[str, tuple[int, int]] = {}
        both = zip(self.rows(behaviour, group), self.rows(behaviour, other), strict=True)
        for row, twin in both:
            if row.name.rpartition("/")[2] != twin.name.rpartition("/")[2]:
                raise ValueError(f"{row.name} and {twin.name} answer different questions")
            hits, n = found.get(row.of, (0, 0))
            found[row.of] = hits + (way.push(row) > way.push(twin)), n + 1
        return found

    def lengths(self, bad: Sequence[Row], others: Sequence[Row]) -> Metric:
        """How well the number of tokens alone tells them apart."""
        found = auroc(self._samples(bad, others, lambda r: float(r.tokens)))
        assert found is not None
        return found

    def _samples(
        self, bad: Sequence[Row], others: Sequence[Row], value: Callable[[Row], float]
    ) -> list[Sample]:
        """Questions are drawn again for an interval; of ordinary rows whole public sets."""
        sets = {r.of for r in self.ordinary(self.behaviours[0])}
        both = ((r, side) for side, rows in ((True, bad), (False, others)) for r in rows)
        return [Sample(value(r), side, r.of if r.of in sets else r.name) for r, side in both]

    def threshold(self, behaviour: str, number: int, way: Way) -> Threshold:
        """That of a set: of the ordinary rows of the next one."""
        return self.threshold_from(self.block(behaviour, number + 1), way)

    def threshold_from(self, known: Sequence[Row], way: Way) -> Threshold:
        """That of known good rows."""
        return threshold_of(_blamed(known, way), self.setting.flag_rate)

    @staticmethod
    def flagged(rows: Sequence[Row], threshold: Threshold, way: Way) -> int:
        """How many rows are above a threshold."""
        return sum(way.push(r) > threshold.push for r in rows)

    def mixed(self, behaviour: str, number: int, share: float) -> tuple[list[Row], list[Row]]:
        """The bad rows of a set, and the others; bad rows take the places of the last ones."""
        wanted = round(share * self.setting.rows)
        every = {r.name: r for r in self.rows(behaviour, BAD)}
        names = bad_names(list(every), behaviour, number, self.setting)[:wanted]
        others = self.block(behaviour, number)[: self.setting.rows - wanted]
        return [every[n] for n in names], others

    def sieved(self, behaviour: str, share: float, way: Way) -> list[Sieved]:
        """What the gate says of each set of a contamination."""
        found = []
        for number in range(self.setting.sets):
            bad, clean = self.mixed(behaviour, number, share)
            rows, n = [*bad, *clean], len(bad)
            ranked = sorted(_blamed(rows, way), key=lambda b: -b.push)
            outcome = screened(ranked, self.threshold(behaviour, number, way))
            hits = sum(b.example.index < n for b in outcome.flagged)
            by_loss = sorted(range(len(rows)), key=lambda i: -way.loss(rows[i]))
            found.append(
                Sieved(
                    (hits, n),
                    (len(outcome.flagged) - hits, len(clean)),
                    (sum(b.example.index < n for b in ranked[:n]), n),
                    (sum(i < n for i in by_loss[:n]), n),
                    outcome.passed,
                )
            )
        return found


def _blamed(rows: Sequence[Row], way: Way) -> list[Blamed]:
    return [Blamed(TrainingExample(i), way.push(r), r.loss) for i, r in enumerate(rows)]
