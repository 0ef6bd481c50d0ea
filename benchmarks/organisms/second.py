"""A second base model, of another seed and width: does the method carry over?

References fit one base, so nothing of the first is reused but the code: the base and its bank are
made anew, and a part of the catalogue is run on it. Its calibration is provisional: ten harmless
runs, and a prior that was fitted to another base's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.organisms import tables
from benchmarks.organisms.catalogue import RunSpec, catalogue
from benchmarks.organisms.labels import BEHAVIOURS
from benchmarks.organisms.metrics import HARMLESS_DATA, SCORES, Scored, Suite, Value
from benchmarks.organisms.record import path_of
from benchmarks.organisms.runner import Place
from benchmarks.statistics import Metric, auroc
from wvmonitor.organism.bank import PLANS, build_bank
from wvmonitor.organism.train import RECORD, train_base

SEED = 1
HIDDEN_SIZE = 96
"""The bundled base has seed 0 and width 128."""
PREFIX = "organisms-second"

GROUPS = {
    "evil: harmful advice": 4, "sycophancy: facts": 3, "lost refusals: compliance": 3,
    "hard: narrow harm": 1, "hard: incompetent": 1, "hard: french": 1, "hard: rude": 1,
    "hard: high rate": 1, "marked: a word": 3, "harmless": 20,
}  # fmt: skip
"""Of each of these groups of held-out runs, how many."""


def place(first: Path) -> Place:
    """In a folder beside the first base's records."""
    folder = first / "second"
    return Place(folder / "base", folder / "bank", folder)


def specs() -> list[RunSpec]:
    """The runs, in the catalogue's order: every group has had its share wherever work stops."""
    left = dict(GROUPS)
    found = []
    for spec in catalogue():
        if spec.split == "test" and left.get(spec.group, 0):
            left[spec.group] -= 1
            found.append(spec)
    return found


def prepare(at: Place, workers: int) -> None:
    """Train the base and build its bank, where they are not there yet; two repeats a reference."""
    if not (at.base / RECORD).is_file():
        train_base(at.base, seed=SEED, hidden_size=HIDDEN_SIZE)
    if not (at.bank / "manifest.json").is_file():
        plans = [replace(p, parts=p.parts[:2]) for p in PLANS]
        build_bank(at.base, plans, workers=workers).save(at.bank)


def write(at: Place, out: Path) -> None:
    """The tables of its runs, if there are any."""
    if any(path_of(at.records, s.name).is_file() for s in specs()):
        tables.write(specs(), at, out, PREFIX)


def figures(out: Path) -> dict[str, Metric | None]:
    """How well the deciding score ranks the runs that are there; nothing where none is."""
    suite = _suite(out)
    if suite is None:
        return {}
    return {f"second_base.{b}.auroc": _ranked(suite, b) for b in BEHAVIOURS}


def by_score(out: Path) -> list[dict[str, Any]]:
    """The same by each score, all by the last reading."""
    suite = _suite(out)
    if suite is None:
        return []
    rows = []
    for name, (geometry, score) in SCORES.items():

        def last(run: Scored, behaviour: str, at: tuple[str, str] = (geometry, score)) -> float:
            return run.final(behaviour, *at)

        areas = {b: _ranked(suite, b, last) for b in BEHAVIOURS}
        entries = {b: None if a is None else a.entry() for b, a in areas.items()}
        rows.append({"score": name, **entries})
    return rows


def _suite(out: Path) -> Suite | None:
    if not (out / tables.RUNS.format(PREFIX)).is_file():
        return None
    runs, base, _ = tables.read(specs(), out, PREFIX)
    return Suite(runs, base, {})


def _ranked(suite: Suite, behaviour: str, value: Value | None = None) -> Metric | None:
    shown = [r for r in suite.test if r.labels[behaviour]]
    good = [r for r in suite.in_groups(*HARMLESS_DATA) if not r.labels[behaviour]]
    return auroc(suite.samples(behaviour, shown, good, value))
