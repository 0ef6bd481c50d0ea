"""The two committed tables: what every run scored, and what it is.

Every figure of the page follows from them (`results/organisms.parquet`, a row for each run, reading
and behaviour; `results/organisms-runs.parquet`, a row for each run), so that a change of the judge,
of the calibration or of an interval can be shown on the page without another fine-tune.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.detectors import SPECTRAL
from benchmarks.organisms import baselines
from benchmarks.organisms.catalogue import RunSpec
from benchmarks.organisms.labels import BEHAVIOURS, BaseCounts, Counts, labels
from benchmarks.organisms.leakage import check
from benchmarks.organisms.record import Record, load, path_of
from benchmarks.organisms.runner import Place
from benchmarks.organisms.scored import Scored, context
from wvmonitor.detection.calibration import BenignRun
from wvmonitor.detection.judge import Judge
from wvmonitor.detection.scores import ReferenceScores, ScoreName, Scores, score
from wvmonitor.reading import GEOMETRIES, Geometry

PREFIX = "organisms"
READINGS, RUNS = "{}.parquet", "{}-runs.parquet"
KEPT_SCORES: tuple[ScoreName, ...] = ("cosine", "residual", "margin")
Row = dict[str, Any]


class OldRecordError(ValueError):
    """A record of other settings, or against another bank."""


def records(specs: Iterable[RunSpec], place: Place, bank: str) -> Iterator[tuple[RunSpec, Record]]:
    """The runs that have a record.

    Raises:
        OldRecordError: one was made from other settings, or against another bank.
    """
    for spec in specs:
        path = path_of(place.records, spec.name)
        if not path.is_file():
            continue
        record = load(path)
        if not record.belongs_to(spec, bank):
            raise OldRecordError(
                f"{path} was made by an older catalogue, or against another bank: remove it, and "
                "`python -m benchmarks.organisms run` makes it again"
            )
        yield spec, record


def benign(specs: Iterable[RunSpec], place: Place) -> tuple[list[BenignRun], str]:
    """The harmless ones among the runs that have a record, to calibrate on, and their bank."""
    bank, base = place.load_bank(), place.base_counts()
    ridge = Judge.of(bank).ridge
    found = []
    for spec, record in records(specs, place, bank.fingerprint):
        if not any(labels(record.counts, base, spec.domains).values()):
            scores = [score(r, bank.gram, ridge=ridge) for r in record.readings]
            found.append(
                BenignRun(spec.name, scores, context(spec, len(scores), record.meta["dataset"]))
            )
    return found, bank.fingerprint


def write(specs: Sequence[RunSpec], place: Place, folder: Path, prefix: str = PREFIX) -> None:
    """Both tables, from the records that are there.

    Args:
        specs: runs.
        place: their base, bank and records.
        folder: where to.
        prefix: of the tables' names.

    Raises:
        OldRecordError: a record was made from other settings, or against another bank.
        LeakageError: a reference shares something with a run.
    """
    bank, base = place.load_bank(), place.base_counts()
    judge, cards = Judge.of(bank), [r.card for r in bank]
    persona = baselines.persona_direction(place)
    readings: list[Row] = []
    runs: list[Row] = []
    for spec, record in records(specs, place, bank.fingerprint):
        check(cards, spec)
        shown = labels(record.counts, base, spec.domains)
        found = [score(r, bank.gram, ridge=judge.ridge) for r in record.readings]
        readings += [_reading(spec, s, b, shown=shown[b]) for s in found for b in BEHAVIOURS]
        runs.append(_run(spec, record, baselines.numbers(spec, record, persona)))
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        b"bank": bank.fingerprint.encode(),
        b"base": json.dumps(base.counts).encode(),
        b"ridge": json.dumps(judge.ridge).encode(),
    }
    for rows, name in ((readings, READINGS), (runs, RUNS)):
        table = _small(pa.Table.from_pylist(rows)).replace_schema_metadata(metadata)
        pq.write_table(table, folder / name.format(prefix), compression="zstd")


def _reading(spec: RunSpec, scores: Scores, behaviour: str, *, shown: bool) -> Row:
    reference = scores.references[behaviour]
    return {
        "run": spec.name,
        "group": spec.group,
        "split": spec.split,
        "behaviour": behaviour,
        "shows": shown,
        "step": scores.step,
        "norm": scores.norm,
        "dose": reference.dose,
        **{f"{g}_coverage": scores.coverage[g] for g in GEOMETRIES},
        **{
            f"{g}_{name}": reference.values.get(g, {}).get(name)
            for g in GEOMETRIES
            for name in KEPT_SCORES
        },
    }


def _run(spec: RunSpec, record: Record, numbers: Mapping[str, float]) -> Row:
    spectral = {
        f"{module}/{what}": value
        for module, values in record.meta["spectrum"].items()
        for what, value in zip(SPECTRAL, values, strict=True)
    }
    return {
        "run": spec.name,
        "spec": digest_of(spec),
        "dataset": record.meta["dataset"],
        "counts": json.dumps(record.counts),
        "rates": json.dumps(record.meta["rates"]),
        "numbers": json.dumps({k: round(v, 7) for k, v in numbers.items()}),
        "norms": json.dumps({k: round(v, 5) for k, v in baselines.module_norms(record).items()}),
        "spectrum": json.dumps({k: round(v, 5) for k, v in spectral.items()}),
    }


def digest_of(spec: RunSpec) -> str:
    """Of a run's settings: a row of another catalogue is not read as this one's."""
    return hashlib.sha256(json.dumps(asdict(spec)).encode()).hexdigest()[:16]


def _small(table: pa.Table) -> pa.Table:
    """The same with 32-bit floats."""
    schema = pa.schema(
        [f.with_type(pa.float32()) if pa.types.is_float64(f.type) else f for f in table.schema]
    )
    return table.cast(schema)


# --- and back ----------------------------------------------------------------------------------


def read(
    specs: Sequence[RunSpec], folder: Path, prefix: str = PREFIX
) -> tuple[list[Scored], BaseCounts, str]:
    """The runs of the tables in the catalogue's order, the base's counts, and the bank.

    A run whose settings the catalogue has changed since is not read.
    """
    runs = pq.read_table(folder / RUNS.format(prefix))
    metadata = runs.schema.metadata
    bank = metadata[b"bank"].decode()
    base = BaseCounts.of_json(json.loads(metadata[b"base"]))
    ridge: dict[Geometry, float] = json.loads(metadata[b"ridge"])
    of = {row["run"]: row for row in runs.to_pylist()}
    rows: dict[str, dict[int, dict[str, Row]]] = {}
    for row in pq.read_table(folder / READINGS.format(prefix)).to_pylist():
        rows.setdefault(row["run"], {}).setdefault(row["step"], {})[row["behaviour"]] = row
    found = [
        _scored(s, of[s.name], rows[s.name], base, bank, ridge)
        for s in specs
        if s.name in of and of[s.name]["spec"] == digest_of(s)
    ]
    return found, base, bank


def _scored(
    spec: RunSpec,
    row: Row,
    steps: Mapping[int, Mapping[str, Row]],
    base: BaseCounts,
    bank: str,
    ridge: dict[Geometry, float],
) -> Scored:
    counts = {m: _pair(v) for m, v in json.loads(row["counts"]).items()}
    return Scored(
        spec,
        row["dataset"],
        list(_scores(spec, steps, bank, ridge)),
        counts,
        labels(counts, base, spec.domains),
        [(int(step), _pair(v)) for step, v in json.loads(row["rates"])],
        json.loads(row["numbers"]),
        json.loads(row["norms"]),
        json.loads(row["spectrum"]),
    )


def _pair(value: Sequence[int]) -> Counts:
    k, n = value
    return int(k), int(n)


def _scores(
    spec: RunSpec,
    steps: Mapping[int, Mapping[str, Row]],
    bank: str,
    ridge: dict[Geometry, float],
) -> Iterator[Scores]:
    for step in sorted(steps):
        references = {}
        for behaviour, row in steps[step].items():
            values: dict[Geometry, dict[ScoreName, float]] = {
                g: {n: row[f"{g}_{n}"] for n in KEPT_SCORES if row[f"{g}_{n}"] is not None}
                for g in GEOMETRIES
            }
            references[behaviour] = ReferenceScores(
                behaviour, "behaviour", values, dose=row["dose"]
            )
        one = steps[step][BEHAVIOURS[0]]
        yield Scores(
            references=references,
            norm=one["norm"],
            coverage={g: one[f"{g}_coverage"] for g in GEOMETRIES},
            step=step,
            progress=step / spec.steps,
            ridge=ridge,
            bank=bank,
        )


def finite(value: Any) -> Any:
    """The same in Python's own floats, None for what could not be computed: JSON has no NaN."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else None
    return value
