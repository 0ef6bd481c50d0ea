"""Which score should decide, by material of the bank's own: no run of the suite is looked at.

A bank that is built for a real model chooses its deciding score on development runs
(`wvmonitor.builder.power`). Here the same choice is put to the bundled bank. The repeats of its
behaviours are trained again, as the bank was: the positive side of each is a run that shows the
behaviour, the negative one a harmless run, both about the half of the world that no run of the
suite is about. Each is held against the shipped bank with that repeat taken out of the reference,
w without i = (n·w − w_i) / (n − 1), and the candidates are compared by how far the positive sides
lie from the negative ones, in these' spread.

`python -m benchmarks.organisms.development` trains what is not there yet (34 fine-tunes, a few
minutes of one core) and writes `results/organisms-deciding.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from benchmarks.organisms.report import RESULTS
from benchmarks.statistics import area
from wvmonitor.builder.power import CANDIDATES, CLEARLY, FLOOR, deciding
from wvmonitor.detection.judge import Judge
from wvmonitor.detection.scores import Scores, score
from wvmonitor.organism.bank import EXAMPLES, LEARNING_RATE, PLANS, STEPS, Plan
from wvmonitor.organism.train import finetune
from wvmonitor.references import Reference, ReferenceBank, contrast
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.trust import Separation
from wvmonitor.sources import read_adapter
from wvmonitor.vectors.task_vector import TaskVector

FILE = "organisms-deciding.json"
BEHAVIOURS: tuple[Plan, ...] = tuple(p for p in PLANS if p.kind == "behaviour")
SIDES = ("positive", "negative")


def train(folder: Path, until: float) -> int:
    """Train the sides of every repeat that are not there; gives how many are still missing."""
    base = bundled_path("tiny-organism", "base")
    left = 0
    for plan, index, side in _all():
        target = _place(folder, plan, index, side)
        if target.is_dir():
            continue
        if time.monotonic() > until:
            left += 1
            continue
        maker = plan.parts[index].sides()[SIDES.index(side)]
        assert maker is not None
        seed = plan.seed + index
        tuned = finetune(
            base, maker(EXAMPLES, seed), seed=seed, steps=STEPS, learning_rate=LEARNING_RATE
        )
        tuned.model.save_pretrained(target)
        print(target.name, flush=True)
    return left


def _all() -> list[tuple[Plan, int, str]]:
    return [(p, i, side) for p in BEHAVIOURS for i in range(len(p.parts)) for side in SIDES]


def _place(folder: Path, plan: Plan, index: int, side: str) -> Path:
    return folder / f"{plan.name}-{index}-{side}"


def figures(folder: Path, bank: ReferenceBank) -> dict[str, Any]:
    """How far each candidate tells the positive sides from the negative ones.

    Args:
        folder: of the trained sides.
        bank: the shipped one.
    """
    ridge = dict(Judge.of(bank).ridge)
    found: dict[tuple[str, int, str], Scores] = {}
    for plan in BEHAVIOURS:
        for index in range(len(plan.parts)):
            taus = {s: read_adapter(_place(folder, plan, index, s)).held() for s in SIDES}
            own = contrast(taus["positive"], taus["negative"], positive_means="exhibits")
            without = left_out(bank, plan, own)
            for side, tau in taus.items():
                found[plan.name, index, side] = score(
                    without.measure(tau), without.gram, ridge=ridge
                )
    rows = [_candidate(found, geometry, name) for geometry, name in CANDIDATES]
    told = [Separation(**{k: row[k] for k in ("geometry", "score", "d")}) for row in rows]
    return {
        "bank": bank.fingerprint,
        "runs": {p.name: len(p.parts) for p in BEHAVIOURS},
        "clearly": CLEARLY,
        "candidates": rows,
        "default": list(CANDIDATES[0]),
        "chosen": list(deciding(told)),
    }


def left_out(bank: ReferenceBank, plan: Plan, repeat: TaskVector) -> ReferenceBank:
    """The bank with one repeat taken out of one reference."""
    n = len(plan.parts)
    others = (bank[plan.name].vector * n - repeat) / (n - 1)
    return ReferenceBank(
        [Reference(r.card, others if r.name == plan.name else r.vector) for r in bank],
        probe=bank.probe,
    )


def _candidate(
    found: Mapping[tuple[str, int, str], Scores], geometry: str, name: str
) -> dict[str, Any]:
    """d and AUROC by behaviour of one score, and their means."""

    def value(key: tuple[str, int, str], behaviour: str) -> float:
        values: Mapping[str, Mapping[str, float]] = found[key].references[behaviour].values  # type: ignore[assignment]
        return values.get(geometry, {}).get(name, math.nan)

    d, ranked = {}, {}
    for plan in BEHAVIOURS:
        good = [value(k, plan.name) for k in found if k[2] == "negative"]
        bad = [value(k, plan.name) for k in found if k[0] == plan.name and k[2] == "positive"]
        spread = max(stdev(good), FLOOR)
        d[plan.name] = fmean((v - fmean(good)) / spread for v in bad)
        ranked[plan.name] = area(np.array(bad), np.array(good))
    return {
        "geometry": geometry,
        "score": name,
        "d": fmean(d.values()),
        "d_by_behaviour": d,
        "auroc_by_behaviour": ranked,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, then compare."""
    parser = argparse.ArgumentParser("python -m benchmarks.organisms.development")
    parser.add_argument("--folder", type=Path, default=Path("build/development"))
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--out", type=Path, default=RESULTS / FILE)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    left = train(options.folder, time.monotonic() + 60 * options.minutes)
    if left:
        print(f"{left} fine-tunes are still missing")
        return 0
    bank = ReferenceBank.load(bundled_path("tiny-organism", "bank"))
    document = figures(options.folder, bank)
    options.out.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    for row in document["candidates"]:
        print(row["geometry"], row["score"], round(row["d"], 2), row["d_by_behaviour"])
    print("chosen:", *document["chosen"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
