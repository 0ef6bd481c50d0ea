"""From records to tables, and from the tables to every figure and the page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.organisms import growth, leakage, metrics, page, second, separation, tables
from benchmarks.organisms.catalogue import RunSpec, catalogue
from benchmarks.organisms.labels import BEHAVIOURS, FLOOR, LEVEL
from benchmarks.organisms.metrics import Suite
from benchmarks.organisms.record import path_of
from benchmarks.organisms.runner import Place
from benchmarks.organisms.scored import Scored
from wvmonitor.detection.calibration import Calibration
from wvmonitor.detection.conformal import runs_needed
from wvmonitor.references import Card, DosePoint, ReferenceBank
from wvmonitor.references.bundled import bundled_path

RESULTS = Path(__file__).parent.parent / "results"
DOCS = Path(__file__).parent.parent.parent / "docs"
FIGURES = "organisms.json"
SHIPPED = bundled_path("tiny-organism", "bank", growth.CALIBRATION)


def report(place: Place, out: Path, docs: Path) -> dict[str, Any]:
    """Write the tables of the records that are there, then all that follows from them.

    Args:
        place: the suite's base, bank and records.
        out: folder of the tables and of `organisms.json`.
        docs: folder of `benchmark.md` and its pictures.

    Raises:
        LostRunsError: the tables hold runs of this bank that have no record here.
    """
    _nothing_lost(place, out)
    tables.write(catalogue(), place, out)
    second.write(second.place(place.folder), out)
    return refresh(out, docs)


class LostRunsError(ValueError):
    """Tables would be written that hold fewer runs than those that are there."""


def _nothing_lost(place: Place, out: Path) -> None:
    """Records are not kept with the tables: a part of them must not take the whole's place."""
    if not (out / tables.RUNS.format(tables.PREFIX)).is_file():
        return
    _, runs, about = tables.stored(out)
    if about["bank"] != place.load_bank().fingerprint:
        return
    lost = sum(not path_of(place.records, row["run"]).is_file() for row in runs)
    if lost:
        raise LostRunsError(
            f"{out} holds {lost} runs of this bank that have no record in {place.records}: "
            "`python -m benchmarks.organisms grow` adds new runs to the tables; to write them "
            "anew without those, remove them first"
        )


def refresh(out: Path, docs: Path) -> dict[str, Any]:
    """Figures, page and pictures from the committed tables alone.

    Args:
        out: folder of the tables; `organisms.json` is written there.
        docs: folder of `benchmark.md` and its pictures.
    """
    specs = catalogue()
    runs, base, bank = tables.read(specs, out)
    suite = Suite(runs, base, bands(runs, bank))
    harmless = metrics.calibrating(runs)
    found = metrics.figures(suite, curves(bank)) | second.figures(out)
    document = tables.finite(
        {
            "metrics": {name: m.entry() for name, m in found.items() if m is not None},
            "beside": metrics.beside(suite),
            "by_score": metrics.by_score(suite),
            "second_by_score": second.by_score(out),
            "deciding": _choice(harmless, bank),
            "kinds": metrics.kinds(suite),
            "one_by_one": metrics.one_by_one(suite),
            "grown": [vars(one) for one in growth.grown(tables.stored(out)[2])],
            "words_in_common": words_in_common(suite.test),
            "bands": _bands(suite),
            "calibration": _calibration(specs, suite, bank),
            "base": {m: list(c) for m, c in base.counts.items()},
            "rule": {"level": LEVEL, "floor": FLOOR},
            "runs": dict(Counter(r.spec.split for r in runs)),
            "missing": dict(Counter(_missing(specs, runs))),
            "provisional": _kept(out / "provisional.json"),
        }
    )
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (out / FIGURES).write_text(text, "utf-8")
    page.write(document, runs, docs)
    return document


def words_in_common(runs: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """By kind of run and behaviour, the largest share of a run's words that the reference knows."""
    known = leakage.known_words()
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        for behaviour, share in leakage.words_in_common(known, run.spec).items():
            group = found.setdefault(run.spec.group, {})
            group[behaviour] = max(group.get(behaviour, 0.0), share)
    return found


def bands(runs: Sequence[Scored], bank: str) -> dict[float, Calibration]:
    """By α: the shipped calibration where it is of this bank, else what the suite's runs give."""
    found = metrics.calibrations(runs, bank, separation.SHIPPED)
    shipped = Calibration.load(SHIPPED) if SHIPPED.is_file() else None
    if shipped is not None and shipped.bank == bank:
        found[shipped.alpha] = shipped
    return dict(sorted(found.items(), reverse=True))


def curves(bank: str) -> Mapping[str, Sequence[DosePoint]]:
    """The shipped references' dose curves, if the tables are of the shipped bank."""
    return {n: card.dose_curve for n, card in _cards(bank).items()}


def _cards(bank: str) -> Mapping[str, Card]:
    """The cards of the shipped behaviours, if the tables are of the shipped bank."""
    shipped = ReferenceBank.load(bundled_path("tiny-organism", "bank"))
    if shipped.fingerprint != bank:
        return {}
    return {r.name: r.card for r in shipped if r.card.kind == "behaviour"}


def _choice(harmless: Sequence[Scored], bank: str) -> dict[str, Any] | None:
    """What bank and calibration say of each score, where the bank is the shipped one."""
    cards = _cards(bank)
    return separation.choice(cards, harmless) if cards and len(harmless) > 1 else None


def _bands(suite: Suite) -> list[dict[str, Any]]:
    """Each behaviour's threshold, and what it lets through."""
    return [
        {
            "alpha": alpha,
            "behaviour": b,
            "share": alpha / len(BEHAVIOURS),
            "multiplier": band.multiplier[b],
            "calibrated_on": band.n_band,
        }
        for alpha, band in suite.bands.items()
        for b in BEHAVIOURS
    ]


def _calibration(specs: Sequence[RunSpec], suite: Suite, bank: str) -> dict[str, Any]:
    """What decides, which harmless runs there are, how many the bands need, which are left out."""
    mine = [r for r in suite.runs if r.spec.split == "calibration"]
    harmless = {f"{alpha:g}": metrics.calibrating(mine, alpha) for alpha in metrics.ALPHAS}
    shipped = harmless[f"{max(metrics.ALPHAS):g}"]
    return {
        "decides": list(suite.decides),
        "digest": growth.digest(SHIPPED) if SHIPPED.is_file() else None,
        "planned": sum(s.split == "calibration" for s in specs),
        "runs": {alpha: len(runs) for alpha, runs in harmless.items()},
        "shipped": len(shipped),
        "clusters": len({r.cluster for r in shipped}),
        "left_out": {
            r.spec.name: [b for b in BEHAVIOURS if r.labels[b]] for r in mine if not r.harmless
        },
        "needed": {f"{a:g}": runs_needed(a, len(BEHAVIOURS)) for a in metrics.ALPHAS},
        "bank": bank,
    }


def _missing(specs: Sequence[RunSpec], runs: Sequence[Scored]) -> list[str]:
    """The groups of the catalogue's runs that are not there, one entry for each run."""
    there = {r.spec.name for r in runs}
    return [s.group if s.split == "test" else "calibration" for s in specs if s.name not in there]


def _kept(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def calibration(folder: Path, alpha: float) -> Calibration:
    """The bundled bank's band, from the tables.

    Args:
        folder: of the tables.
        alpha: the share of harmless runs that may alarm.

    Raises:
        CalibrationError: there are too few harmless runs for `alpha`.
    """
    runs, _, bank = tables.read([s for s in catalogue() if s.split == "calibration"], folder)
    harmless = metrics.calibrating(runs, alpha)
    made = metrics.calibration(harmless, bank, separation.SHIPPED, alpha)
    return made.model_copy(update={"runs": ()})  # a megabyte of scores that nobody adds to
