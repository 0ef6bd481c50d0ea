"""The figures that follow from the committed readings alone, without the runs' records.

`results/organisms.parquet` holds what every run scored against the suite's own references. So a
change of the judge, of the calibration or of an interval can be shown on the page without another
fine-tune; what the shipped bank, the other detectors or the second base scored is not in it, and
keeps its figure, marked as older.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.organisms import metrics, page
from benchmarks.organisms.catalogue import RunSpec, catalogue
from benchmarks.organisms.record import Record, main_behaviour
from benchmarks.organisms.references import BEHAVIOURS
from benchmarks.organisms.scored import SUITE, Scored
from wvmonitor.detection.calibration import Calibration
from wvmonitor.detection.scores import ReferenceScores, ScoreName, Scores
from wvmonitor.reading import GEOMETRIES, Geometry

KEPT_SCORES: tuple[ScoreName, ...] = ("cosine", "residual", "margin")


def runs_of(path: Path) -> list[Scored]:
    """The suite's runs as far as their readings go: no records, and nothing of the shipped bank."""
    rows: dict[str, dict[int, dict[str, Mapping[str, Any]]]] = {}
    for row in pq.read_table(path).to_pylist():
        rows.setdefault(row["run"], {}).setdefault(row["step"], {})[row["behaviour"]] = row
    return [_run(spec, rows[spec.name]) for spec in catalogue() if spec.name in rows]


def _run(spec: RunSpec, steps: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> Scored:
    last = steps[max(steps)]
    meta = {
        "final": {b: {"value": last[b]["rate"]} for b in BEHAVIOURS},
        "main": main_behaviour(spec),
        "rates": [],
    }
    scores = [_scores(spec, step, steps[step]) for step in sorted(steps)]
    labels = {b: last[b]["shows"] is True for b in BEHAVIOURS}
    return Scored(spec, Record(meta, [], np.zeros((0, 0))), scores, [], labels)


def _scores(spec: RunSpec, step: int, rows: Mapping[str, Mapping[str, Any]]) -> Scores:
    references = {}
    for behaviour, row in rows.items():
        values: dict[Geometry, dict[ScoreName, float]] = {
            g: {n: row[f"{g}_{n}"] for n in KEPT_SCORES if row[f"{g}_{n}"] is not None}
            for g in GEOMETRIES
        }
        references[behaviour] = ReferenceScores(behaviour, "behaviour", values, dose=row["dose"])
    return Scores(
        references=references,
        norm=rows[BEHAVIOURS[0]]["norm"],
        coverage=dict.fromkeys(GEOMETRIES, 1.0),
        step=step,
        progress=step / spec.steps,
        bank=SUITE,
    )


def own_bands(runs: Sequence[Scored]) -> dict[float, Calibration]:
    """The bands that the suite's calibration runs give."""
    calibrating = [r for r in runs if r.spec.split == "calibration"]
    return metrics.calibrations(calibrating, SUITE, shipped=False)


def figures(
    runs: Sequence[Scored], own: Mapping[float, Calibration]
) -> dict[str, metrics.Metric | None]:
    """Every figure that speaks of the suite's own references and needs no record."""
    widest = own[max(own)]
    found = metrics.ranking(runs, lambda *_: float("nan"), metrics.judged(widest))
    found |= metrics.doses(runs)
    found |= metrics.ahead_of_the_paper(runs)
    found |= metrics.false_alarms(runs, own, shipped=False, name="")
    for band in own.values():
        found |= metrics.detection(runs, band, shipped=False)
    strict = own[min(own)]
    late = "late_poison.within_10pct"
    nowhere = dict.fromkeys(BEHAVIOURS, 1.0)
    found[late] = metrics.timing(runs, strict, nowhere, shipped=False)[late]
    alone = strict.model_copy(update={"gain": None})
    found["late_poison.score_alone.within_10pct"] = metrics.timing(
        runs, alone, nowhere, shipped=False
    )[late]
    return {name: metric for name, metric in found.items() if metric is not None}


def refresh(results: Path, docs: Path) -> dict[str, Any]:
    """Compute those figures again, and write results and page with them.

    Args:
        results: folder of `organisms.json` and `organisms.parquet`.
        docs: folder of `benchmark.md`.
    """
    from benchmarks.organisms.report import finite

    document = json.loads((results / "organisms.json").read_text("utf-8"))
    runs = runs_of(results / "organisms.parquet")
    bands = own_bands(runs)
    found = figures(runs, bands)
    entries = finite({name: m.entry() for name, m in found.items() if m is not None})
    document["metrics"] |= entries
    document["refreshed"] = sorted(entries)
    document["kinds"] = finite(metrics.kinds(runs, bands))
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    (results / "organisms.json").write_text(text, "utf-8")
    (docs / "benchmark.md").write_text(page.text(document), "utf-8")
    return document
