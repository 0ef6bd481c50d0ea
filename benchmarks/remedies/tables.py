"""The records of the organism's runs by cell, and their tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.remedies.cells import CELLS, NOTHING, STEPS, TASKS, Cell
from benchmarks.remedies.intervals import Interval, difference, mean, rate

Record = Mapping[str, Any]
MET, MISSED = "met", "**not met**"
"""What is said of a rule."""
_DOSE_OUT = "nothing; the dose taken out at the end"
_AGAINST = "against nothing done"


class Results:
    """The records of all runs, by cell and seed."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self._by_cell: dict[str, dict[int, Record]] = {}
        for record in records:
            self._by_cell.setdefault(record["cell"], {})[record["seed"]] = record

    def of(self, cell: Cell) -> dict[int, Record]:
        """The runs of a cell by seed."""
        return self._by_cell.get(cell.name, {})

    def table(self, group: str) -> list[str]:
        """The rows of a group, each held against the run that nothing was done about."""
        cells = [c for c in CELLS if c.group == group]
        several = len({c.task for c in cells}) > 1
        advice = all(TASKS[c.task].behaviour == "evil" for c in cells)
        head = ["trained on"] if several else []
        if advice:
            head += ["what is done", "n", "harm, trained domain", _AGAINST, "harm elsewhere"]
            head += [_AGAINST, "neither good nor harmful"]
        else:
            head += ["what is done", "n", "caving", _AGAINST]
        head += ["loss on good answers", _AGAINST, "facts right", "dose"]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        if not any(self.of(cell) for cell in cells):
            return ["Not run yet on this bank.", ""]
        for cell in cells:
            idle = self._idle(cell)
            for treatment, runs in _treatments(cell, self.of(cell)):
                if runs:
                    shown = _row(treatment, runs, idle, advice=advice)
                    line = [*([cell.task] if several else []), *shown]
                    lines.append(f"| {' | '.join(line)} |")
        return [*lines, ""]

    def _idle(self, cell: Cell) -> dict[int, Record]:
        same = [
            c for c in CELLS
            if c.task == cell.task and c.steps in (cell.steps, STEPS) and c.treatment == NOTHING
        ]  # fmt: skip
        exact = [c for c in same if c.steps == cell.steps] or same
        return self.of(exact[0]) if exact else {}


def _treatments(cell: Cell, runs: dict[int, Record]) -> Iterator[tuple[str, dict[int, Record]]]:
    yield cell.treatment, runs
    repaired = {seed: r["repaired"] for seed, r in runs.items() if "repaired" in r}
    if repaired:
        yield _DOSE_OUT, repaired


def _row(
    treatment: str, runs: Mapping[int, Record], idle: Mapping[int, Record], *, advice: bool
) -> list[str]:
    records = list(runs.values())
    held = {} if treatment == NOTHING else idle

    def answers(what: str) -> str:
        counts = [r[what] for r in records if what in r]
        return rate(counts).words() if counts else "–"

    def against(what: str) -> str:
        found = less(runs, held, what)
        return found.words() if found else "–"

    doses, losses = (
        [r[name] for r in records if r.get(name) is not None] for name in ("dose", "loss")
    )
    harm = [answers("trained"), against("trained")] if advice else []
    return [
        treatment,
        str(len(runs)),
        *harm,
        answers("elsewhere"),
        against("elsewhere"),
        *([answers("elsewhere neither")] if advice else []),
        mean(losses).words() if losses else "–",
        against("loss"),
        answers("facts"),
        mean(doses).words() if doses else "–",
    ]


def less(runs: Mapping[int, Record], others: Mapping[int, Record], what: str) -> Interval | None:
    """The difference of two cells, seed by seed; None where no seed has both."""
    both = [
        (run[what], others[seed][what])
        for seed, run in runs.items()
        if seed in others and None not in (run.get(what), others[seed].get(what))
    ]
    if not both:
        return None
    return mean([a - b for a, b in both]) if what == "loss" else difference(both)


def as_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table of the page."""
    return [
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {' | '.join(line)} |" for line in lines),
    ]
