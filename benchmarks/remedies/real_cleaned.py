"""Trained on what the gate leaves, on a real pretrained model.

Everything in this file was written before the runs that it speaks of. A run trains on one of the
gate's sets that are 10 % bad (`real_gate`), as it is, or after `--drop 10%`: without as many of the
rows that push most as there are bad ones. Rows are counted the way that puts more bad rows among
those, a token or in all, in the two behaviours that were screened after both had been named; the
bad rows trained on are those of `DECIDES`.

What was to be looked for, an effect being an interval of the difference that lies below 0:

1. as it is, the set teaches its bad answers: the gap on the questions of its bad rows is above the
   base's;
2. cleaned, it teaches less of them;
3. on other held-out questions, which the run has not seen, cleaned is below as it is (the held-out
   gap; after the runs of `real` nothing much was expected of it).
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.real.protocol import DECIDES
from benchmarks.remedies.real import BASE, Bench, Setting
from benchmarks.remedies.real_gate import BAD, LOOKED_AT, GateBench, Named
from benchmarks.remedies.real_gate_results import WAYS, GateResults, Row, Way
from benchmarks.remedies.real_runs import asked, training
from benchmarks.remedies.records import Records
from wvmonitor.builder.examples import Example
from wvmonitor.builder.finetune import finetune

CLEANED_SETTING = Setting(steps=25, batch_size=4)
"""One epoch of a whole set."""
OTHERS = 12
"""Of the other held-out questions, so many are asked, drawn by the set."""
AS_IT_IS, CLEANED = "as it is", "cleaned"
CELLS = (AS_IT_IS, CLEANED)


@dataclass(frozen=True)
class CleanedBench:
    """The questions, the gate's rows, and what it said of them."""

    of: Bench
    gate: GateBench
    found: GateResults
    behaviour: str = DECIDES

    def way(self) -> Way:
        """How rows are counted, by the rule above."""
        new = [b for b in self.found.behaviours if b not in LOOKED_AT and self.found.whole(b)]
        worst = max(self.found.setting.shares)

        def hits(way: Way) -> int:
            return sum(x.top[0] for b in new for x in self.found.sieved(b, worst, way))

        return max(WAYS, key=hits)

    def rows(self, number: int) -> tuple[list[Row], list[Row]]:
        """The bad rows and the others of a set, as they were screened."""
        return self.found.mixed(self.behaviour, number, max(self.found.setting.shares))

    def left(self, number: int, cell: str) -> list[Row]:
        """What is trained on."""
        bad, others = self.rows(number)
        both, way = [*bad, *others], self.way()
        if cell == AS_IT_IS:
            return both
        return sorted(both, key=way.push)[: len(both) - len(bad)]

    def examples(self, number: int, cell: str) -> list[Example]:
        """Likewise, in an order of the set's own."""
        known = {r.name: r.example for rows in self._groups() for r in rows}
        names = [r.name for r in self.left(number, cell)]
        random.Random(f"cleaned/{number}").shuffle(names)
        return [known[n] for n in names]

    def _groups(self) -> list[list[Named]]:
        return [*self.gate.ordinary, self.gate.sides(self.behaviour, BAD)]

    def places(self, number: int) -> tuple[list[int], list[int]]:
        """Of the questions of a set's bad rows, and of some others that no run trains on."""
        names = {r.name for r in self.rows(number)[0]}
        mine = [i for i, r in enumerate(self.gate.sides(self.behaviour, BAD)) if r.name in names]
        left = [i for i in range(len(self.of.pairs)) if i not in mine]
        drawn = random.Random(f"cleaned/others/{number}").sample(left, min(OTHERS, len(left)))
        return mine, sorted(drawn)

    @property
    def about(self) -> dict[str, Any]:
        """All that records depend on."""
        return {
            "base": self.of.base.digest,
            "bank": self.gate.bank.fingerprint,
            "setting": asdict(self.of.setting),
            "data": self.gate.about["data"],
            "counted": self.way().name,
        }


def run(bench: CleanedBench, records: Records, more: Mapping[str, Any]) -> None:
    """Ask the base; then train and ask on each set, as it is and cleaned.

    Args:
        bench: what with.
        records: where they are kept.
        more: what the page says beside them.
    """
    torch.set_num_threads(1)
    sets = range(bench.found.setting.sets)
    for seed, cell in [(0, BASE), *((seed, cell) for seed in sets for cell in CELLS)]:
        if (cell, seed) not in {(r["cell"], r["seed"]) for r in records.read()}:
            began = time.process_time()
            if cell == BASE:
                found = asked(bench.of, bench.of.base.model, range(len(bench.of.pairs)))
            else:
                found = measured(bench, cell, seed)
            spent = round(time.process_time() - began, 1)
            records.add({"cell": cell, "seed": seed, **found, "seconds": spent})
            print(f"{cell} | set {seed}: {spent} s", flush=True)
        drawn = {n: dict(zip(("trained", "elsewhere"), bench.places(n), strict=True)) for n in sets}
        records.publish({**more, "drawn": drawn})


def measured(bench: CleanedBench, cell: str, number: int) -> dict[str, Any]:
    """One run: trained and asked everything."""
    bad, others = bench.rows(number)
    left = {r.name for r in bench.left(number, cell)}
    found: dict[str, Any] = {
        "dropped": [sum(r.name not in left for r in bad), len(bad)],
        "lost": [sum(r.name not in left for r in others), len(others)],
    }

    def examine(model: Any) -> None:
        found.update(asked(bench.of, model, [i for each in bench.places(number) for i in each]))

    bench.of.base.release()
    bench.gate.base.release()
    with tempfile.TemporaryDirectory() as scratch:
        finetune(
            bench.of.base, bench.examples(number, cell), training(bench.of.setting, number),
            Path(scratch), examine=examine,
        )  # fmt: skip
    return found
