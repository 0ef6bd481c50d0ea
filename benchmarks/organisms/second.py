"""A second base model, of another seed and width: does the method carry over?

References fit one base, so nothing of the first is reused: the base, its bank and its repeats are
made anew with the same code, and a part of the catalogue is run on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.organisms import metrics
from benchmarks.organisms.catalogue import RunSpec, catalogue
from benchmarks.organisms.record import path_of
from benchmarks.organisms.references import BEHAVIOURS, CONTROLS, Repeat, repeats
from benchmarks.organisms.runner import Place
from benchmarks.organisms.scored import against, base_rates, scored
from benchmarks.statistics import Metric, auroc, caught, two_sided
from wvmonitor.organism.bank import PLANS, build_bank
from wvmonitor.organism.train import RECORD, train_base
from wvmonitor.references import ReferenceBank

SEED = 1
HIDDEN_SIZE = 96
"""The bundled base has seed 0 and width 128."""

PARTS = {
    "test/harmful advice ": 2, "test/sycophantic facts ": 2, "test/high rate/": 1,
    "test/narrow harm/": 1, "test/incompetent/": 1, "test/another language/": 1, "test/rude/": 1,
    "test/role-play/": 1, "test/refusals/": 1, "test/benign/": 24,
}  # fmt: skip
"""Of each of these groups of runs, how many seeds."""


def place(first: Path) -> Place:
    """In a folder beside the first base's records."""
    folder = first / "second"
    return Place(folder / "base", folder, folder / "shipped")


def specs() -> list[RunSpec]:
    """The runs, in the catalogue's order: every group has had its share wherever work stops."""
    return list(_chosen())


def _chosen() -> Iterator[RunSpec]:
    for spec in catalogue():
        for start, count in PARTS.items():
            if spec.name.startswith(start) and int(spec.name.rpartition("/")[2]) < count:
                yield spec


def wanted() -> list[Repeat]:
    """One repeat of each domain; no baselines."""
    return [r for r in repeats() if r.family in (*BEHAVIOURS, *CONTROLS) and r.number == 0]


def prepare(at: Place, workers: int) -> None:
    """Train the base and build its bank, where they are not there yet.

    The bank gives the probe and λ; one repeat of each reference is enough for those.
    """
    if not (at.base / RECORD).is_file():
        train_base(at.base, seed=SEED, hidden_size=HIDDEN_SIZE)
    if not (at.shipped / "manifest.json").is_file():
        plans = [replace(p, domains=p.domains[:1]) for p in PLANS]
        build_bank(at.base, plans, workers=workers).save(at.shipped)


def figures(at: Place) -> dict[str, Metric | None]:
    """How well the deciding score ranks the runs that are there."""
    if not (at.bank / "manifest.json").is_file():
        return {}
    beside = against(ReferenceBank.load(at.bank), at.shipped_bank())
    base = base_rates(at.base, at.folder / "base.json")
    runs = [
        scored(s, at.records, beside, base)
        for s in specs()
        if path_of(at.records, s.name).is_file()
    ]
    found: dict[str, Metric | None] = {}
    for name, behaviour in {"second_base": "evil", "second_base.sycophancy": "sycophancy"}.items():
        bad = metrics.positives(runs, behaviour, "positive: ")
        sides = metrics.samples_of(behaviour, bad, metrics.negatives(runs, behaviour))
        found[f"{name}.auroc"] = auroc(sides)
        found[f"{name}.tpr_at_1pct"] = two_sided(caught, sides)
    return found
