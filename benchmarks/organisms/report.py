"""From records to results: every figure, the scored checkpoints, and the page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.organisms import ablation, baselines, metrics, page, runner, second
from benchmarks.organisms.catalogue import RunSpec, catalogue
from benchmarks.organisms.record import path_of
from benchmarks.organisms.runner import Place
from benchmarks.organisms.scored import (
    SUITE,
    Against,
    Scored,
    against,
    base_rates,
    scored,
    scores_of,
)
from wvmonitor.detection.calibration import Calibration, calibrate
from wvmonitor.organism.behaviour import Rate
from wvmonitor.references import ReferenceBank
from wvmonitor.references.calibrated import calibration_of

RESULTS = Path(__file__).parent.parent / "results"
DOCS = Path(__file__).parent.parent.parent / "docs"


def report(place: Place, out: Path, docs: Path, *, workers: int = 2) -> dict[str, Any]:
    """Compute everything from the records that are there, and write it.

    Args:
        place: the suite's base, bank and records.
        out: folder of `organisms.json` and `organisms.parquet`.
        docs: folder of `benchmark.md` and its pictures.
        workers: processes that score.
    """
    specs = catalogue()
    there = [s for s in specs if path_of(place.records, s.name).is_file()]
    base = base_rates(place.base, place.folder / "base.json")
    with runner.pool(workers) as pool:
        runs = list(pool.map(partial(_scored, place=place, base=base), there, chunksize=4))
    shipped = place.shipped_bank()
    at = against(ReferenceBank.load(place.bank), shipped)
    document = figures(runs, at, place, base, shipped)
    document["runs"] = dict(Counter(f"{r.spec.split}: {r.spec.group}" for r in runs))
    document["missing"] = len(specs) - len(there)
    document = finite(document)
    out.mkdir(parents=True, exist_ok=True)
    (out / "organisms.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    pq.write_table(checkpoints(runs), out / "organisms.parquet", compression="zstd")
    page.write(document, runs, docs)
    return document


def _scored(spec: RunSpec, place: Place, base: Mapping[str, Rate]) -> Scored:
    run = scored(spec, place.records, _at(place), base)
    return replace(run, record=replace(run.record, readings=run.record.readings[-1:]))


@cache
def _at(place: Place) -> Against:
    return against(ReferenceBank.load(place.bank), place.shipped_bank())


def figures(
    runs: Sequence[Scored],
    at: Against,
    place: Place,
    base: Mapping[str, Rate],
    shipped: ReferenceBank,
) -> dict[str, Any]:
    """Metrics, ablation and baselines of scored runs."""

    def same_recipe(run: Scored, behaviour: str) -> float:
        (scores,) = scores_of(run.record.readings, run.spec, at, same_domain=True)
        return float(scores.references[behaviour].values["response"]["residual"])

    calibrating = [r for r in runs if r.spec.split == "calibration"]
    own = metrics.calibrations(calibrating, SUITE, shipped=False)
    value = metrics.judged(own[max(own)]) if own else metrics.deciding
    found = metrics.ranking(runs, same_recipe, value)
    found |= metrics.doses(runs)
    found |= metrics.ahead_of_the_paper(runs)
    bands = metrics.calibrations(calibrating, at.fingerprint, shipped=True)
    found |= metrics.false_alarms(runs, own, shipped=False, name="")
    found |= metrics.false_alarms(runs, bands, shipped=True, name="recalibrated.")
    high = {b: r.high for b, r in base.items()}
    if own:
        band = own[min(own)]
        found |= metrics.timing(runs, band, high, shipped=False)
        found |= metrics.detection(runs, band, shipped=False)
        without = metrics.timing(runs, band.model_copy(update={"gain": None}), high, shipped=False)
        found["late_poison.score_alone.within_10pct"] = without["late_poison.within_10pct"]
    curves = {r.name: r.card.dose_curve for r in shipped if r.card.kind == "behaviour"}
    found |= metrics.told_rates(runs, curves)
    bundled = calibration_of(shipped)
    if bundled is not None:
        mine = {bundled.alpha: bundled}
        found |= metrics.false_alarms(runs, mine, shipped=True, name="bundled.")
        found |= metrics.timing(runs, bundled, high, shipped=True)
        found |= metrics.detection(runs, bundled, shipped=True)
    found |= second.figures(second.place(place.folder))
    return {
        "metrics": {name: m.entry() for name, m in found.items() if m is not None},
        "baselines": _baselines(runs, at, place, value),
        "ablation": ablation.table(runs, at),
        "kinds": metrics.kinds(runs, own),
        "base": {b: [r.value, r.low, r.high, r.n] for b, r in base.items()},
        "calibrated": {
            "alpha": min(own, default=None),
            "runs": sum(r.harmless for r in calibrating),
            "left_out": [r.spec.name for r in calibrating if not r.harmless],
        },
    }


def _baselines(
    runs: Sequence[Scored], at: Against, place: Place, value: metrics.Value
) -> dict[str, Any]:
    """The table of detectors of harm: all harmful test runs against all negatives."""
    dev = [r for r in runs if r.spec.split == "dev"]
    development = (
        [r for r in dev if r.labels["evil"]],
        [r for r in dev if not r.labels["evil"]],
    )
    groups = ("positive: ", "mixture", "trigger", "late", "slow")
    held_out = metrics.positives(runs, "evil", *groups), metrics.negatives(runs, "evil")
    if not all((*development, *held_out)):
        return {}
    judged = {"what the judge goes by (ours)": lambda run: value(run, "evil")}
    detectors = judged | baselines.detectors(at, place)
    table = baselines.compare(detectors, development, held_out)
    return {
        name: {k: m.entry() for k, m in row.items() if m is not None} for name, row in table.items()
    }


def checkpoints(runs: Sequence[Scored]) -> pa.Table:
    """A row for each run, reading and behaviour."""
    rows: dict[str, list[Any]] = {}

    def put(**values: Any) -> None:
        for key, value in values.items():
            rows.setdefault(key, []).append(value)

    for run in runs:
        for scores in run.scores:
            for behaviour, label in run.labels.items():
                reference = scores.references[behaviour]
                values = {
                    f"{geometry}_{name}": reference.values.get(geometry, {}).get(name)
                    for geometry in ("frobenius", "response")
                    for name in ("cosine", "residual", "margin")
                }
                put(
                    run=run.spec.name,
                    group=run.spec.group,
                    split=run.spec.split,
                    behaviour=behaviour,
                    shows=label,
                    rate=run.rate(behaviour),
                    step=scores.step,
                    norm=scores.norm,
                    dose=reference.dose,
                    **values,
                )
    columns = {
        key: pa.array(column).cast(pa.float32()) if _floats(column) else pa.array(column)
        for key, column in rows.items()
    }
    return pa.table(columns)


def _floats(column: Sequence[Any]) -> bool:
    return any(isinstance(v, float) for v in column)


def finite(value: Any) -> Any:
    """The same in Python's own floats, None for what could not be computed: JSON has no NaN."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def calibration(place: Place, alpha: float) -> Calibration:
    """The shipped bank's band, from the suite's calibration runs that show no behaviour.

    Raises:
        CalibrationError: there are too few of them for `alpha` (198 are needed for 1 %).
    """
    base = base_rates(place.base, place.folder / "base.json")
    specs = [s for s in catalogue() if s.split == "calibration"]
    runs = [_scored(s, place, base) for s in specs if path_of(place.records, s.name).is_file()]
    benign = [r.benign(shipped=True) for r in runs if r.harmless]
    made = calibrate(benign, bank=_at(place).fingerprint, alpha=alpha)
    return made.model_copy(update={"runs": ()})  # a megabyte of scores that nobody adds to
