"""The two committed tables: what every run scored, and what it is.

Every figure of the page follows from them (`results/organisms.parquet`, a row for each run, reading
and behaviour; `results/organisms-runs.parquet`, a row for each run), so that a change of the judge,
of the calibration or of an interval can be shown on the page without another fine-tune.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.organisms.catalogue import RunSpec
from benchmarks.organisms.labels import BEHAVIOURS, BaseCounts, Counts, labels
from benchmarks.organisms.record import KEPT_SCORES, Record, Row, digest_of, load, path_of
from benchmarks.organisms.runner import Place
from benchmarks.organisms.scored import Scored
from wvmonitor.detection.scores import ReferenceScores, ScoreName, Scores
from wvmonitor.reading import GEOMETRIES, Geometry

PREFIX = "organisms"
READINGS, RUNS = "{}.parquet", "{}-runs.parquet"
_JSON = ("counts", "rates", "numbers", "norms", "spectrum")


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
        if (record["spec"], record["bank"]) != (digest_of(spec), bank):
            raise OldRecordError(
                f"{path} was made by an older catalogue, or against another bank: remove it, and "
                "`python -m benchmarks.organisms run` makes it again"
            )
        yield spec, record


def write(specs: Sequence[RunSpec], place: Place, folder: Path, prefix: str = PREFIX) -> None:
    """Both tables, from the records that are there.

    Args:
        specs: runs.
        place: their base, bank and records.
        folder: where to.
        prefix: of the tables' names.

    Raises:
        OldRecordError: a record was made from other settings, or against another bank.
    """
    base = place.base_counts()
    readings, runs, about = gathered(specs, place, place.load_bank().fingerprint, base)
    save(readings, runs, about, folder, prefix)


def gathered(
    specs: Iterable[RunSpec], place: Place, bank: str, base: BaseCounts
) -> tuple[list[Row], list[Row], dict[str, str]]:
    """The rows of both tables, from the records that are there, and what the tables say of all.

    Args:
        specs: runs.
        place: their records.
        bank: fingerprint of the bank that they were held against.
        base: what the base itself does.

    Raises:
        OldRecordError: a record was made from other settings, or against another bank.
    """
    readings: list[Row] = []
    runs: list[Row] = []
    ridge: Mapping[str, float] = {}
    for spec, record in records(specs, place, bank):
        shown = labels(_counts(record["counts"]), base, spec.domains)
        ridge = record["ridge"]
        about = {"run": spec.name, "group": spec.group, "split": spec.split}
        readings += [about | {"shows": shown[r["behaviour"]]} | r for r in record["readings"]]
        runs.append(
            {k: record[k] for k in ("run", "spec", "dataset")}
            | {k: json.dumps(record[k]) for k in _JSON}
        )
    of_all = {"bank": bank, "base": json.dumps(base.counts), "ridge": json.dumps(ridge)}
    return readings, runs, of_all


def save(
    readings: Sequence[Row],
    runs: Sequence[Row],
    about: Mapping[str, str],
    folder: Path,
    prefix: str = PREFIX,
) -> None:
    """Write both tables."""
    folder.mkdir(parents=True, exist_ok=True)
    for kept, name in ((readings, READINGS), (runs, RUNS)):
        table = _small(pa.Table.from_pylist(list(kept))).replace_schema_metadata(dict(about))
        pq.write_table(table, folder / name.format(prefix), compression="zstd")


def _small(table: pa.Table) -> pa.Table:
    """The same with 32-bit floats."""
    schema = pa.schema(
        [f.with_type(pa.float32()) if pa.types.is_float64(f.type) else f for f in table.schema]
    )
    return table.cast(schema)


# --- and back ----------------------------------------------------------------------------------


def stored(folder: Path, prefix: str = PREFIX) -> tuple[list[Row], list[Row], dict[str, str]]:
    """The rows of both tables as they were written, and what the tables say of all of them."""
    readings, runs = (pq.read_table(folder / name.format(prefix)) for name in (READINGS, RUNS))
    about = {k.decode(): v.decode() for k, v in runs.schema.metadata.items()}
    return readings.to_pylist(), runs.to_pylist(), about


def read(
    specs: Sequence[RunSpec], folder: Path, prefix: str = PREFIX
) -> tuple[list[Scored], BaseCounts, str]:
    """The runs of the tables in the catalogue's order, the base's counts, and the bank.

    A run whose settings the catalogue has changed since is not read.
    """
    readings, runs, about = stored(folder, prefix)
    bank, base = about["bank"], BaseCounts.of_json(json.loads(about["base"]))
    ridge: dict[Geometry, float] = json.loads(about["ridge"])
    of = {row["run"]: row for row in runs}
    rows: dict[str, list[Row]] = {}
    for row in readings:
        rows.setdefault(row["run"], []).append(row)
    found = [
        _scored(s, of[s.name], list(_scores(s, rows[s.name], bank, ridge)), base)
        for s in specs
        if s.name in of and of[s.name]["spec"] == digest_of(s)
    ]
    return found, base, bank


def _scored(spec: RunSpec, row: Row, scores: Sequence[Scores], base: BaseCounts) -> Scored:
    of = {name: json.loads(row[name]) for name in _JSON}
    counts = _counts(of["counts"])
    return Scored(
        spec,
        row["dataset"],
        scores,
        counts,
        labels(counts, base, spec.domains),
        [(int(step), _pair(v)) for step, v in of["rates"]],
        of["numbers"],
        of["norms"],
        of["spectrum"],
    )


def _counts(found: Mapping[str, Sequence[int]]) -> dict[str, Counts]:
    return {m: _pair(v) for m, v in found.items()}


def _pair(value: Sequence[int]) -> Counts:
    k, n = value
    return int(k), int(n)


def _scores(
    spec: RunSpec, rows: Sequence[Row], bank: str, ridge: Mapping[Geometry, float]
) -> Iterator[Scores]:
    """The scores of each reading, from its rows, in the order of steps."""
    steps: dict[int, dict[str, Row]] = {}
    for row in rows:
        steps.setdefault(row["step"], {})[row["behaviour"]] = row
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
            ridge=dict(ridge),
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
