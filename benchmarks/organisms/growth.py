"""Let the committed tables grow: runs that are planned and not in them are made and added alone.

The rows that are there stay as they are, and so does what the base was found to do. That new rows
may stand beside them is not taken on trust: base, bank and λ must be those that the tables were
made with, and some of the old runs are made again by today's code, and must come out as they did.
What was compared is kept in the tables, beside the digest of the calibration that was there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.organisms import runner, tables
from benchmarks.organisms.catalogue import RunSpec
from benchmarks.organisms.labels import BaseCounts
from benchmarks.organisms.record import Row, digest_of, load, path_of
from benchmarks.organisms.runner import Place
from wvmonitor.detection.judge import Judge
from wvmonitor.sources import base_digest

AGAIN = ("test/evil: harmful advice/cooking 0", "test/hard: rude/0")
"""Runs that are made again before any is added: one that harms, one that does not."""
SCORE_WITHIN, ANSWERS_WITHIN = 1e-3, 0.02
"""How far a run that is made again may be off: another processor sums in another order."""
CALIBRATION = "calibration.json"
GROWN = "grown"


class OtherConditionsError(ValueError):
    """The tables were made with another base, bank or code than would be added to them now."""


@dataclass(frozen=True)
class Added:
    """What was added to the tables at one time.

    Attributes:
        runs: by name.
        calibration: SHA-256 of the bank's calibration, which was there before them.
        again: by run that was made again, how far its scores and its rates of answers were off.
    """

    runs: tuple[str, ...]
    calibration: str
    again: Mapping[str, Mapping[str, float]]


def missing(specs: Sequence[RunSpec], folder: Path) -> list[RunSpec]:
    """The runs that the tables do not hold, or hold with settings that have changed since."""
    _, runs, _ = tables.stored(folder)
    there = {row["run"]: row["spec"] for row in runs}
    return [s for s in specs if there.get(s.name) != digest_of(s)]


def merge(
    specs: Sequence[RunSpec],
    again: Sequence[RunSpec],
    place: Place,
    folder: Path,
    processes: Executor | None = None,
) -> Added:
    """Add the rows of runs that have a record to the tables.

    Args:
        specs: the runs to add; a row of theirs that is there is replaced.
        again: runs of the tables that are made once more, to be compared.
        place: base, bank and records.
        folder: of the tables.
        processes: where runs are made again, if not in new processes.

    Raises:
        OtherConditionsError: new rows cannot stand beside those that are there.
        OldRecordError: a record was made from other settings, or against another bank.
    """
    readings, runs, about = tables.stored(folder)
    same_conditions(place, about)
    compared = made_again(again, place, readings, runs, processes)
    base = BaseCounts.of_json(json.loads(about["base"]))
    more_readings, more_runs, _ = tables.gathered(specs, place, about["bank"], base)
    names = {row["run"] for row in more_runs}
    added = Added(tuple(sorted(names)), digest(place.bank / CALIBRATION), compared)
    before = [one for one in grown(about) if not names >= set(one.runs)]
    about[GROWN] = json.dumps([vars(one) for one in (*before, added)])
    tables.save(
        [*(r for r in readings if r["run"] not in names), *more_readings],
        [*(r for r in runs if r["run"] not in names), *more_runs],
        about,
        folder,
    )
    return added


def grown(about: Mapping[str, str]) -> list[Added]:
    """What was added to the tables since they were made, by what they say of themselves."""
    kept = json.loads(about.get(GROWN, "[]"))
    return [Added(tuple(one["runs"]), one["calibration"], one["again"]) for one in kept]


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def same_conditions(place: Place, about: Mapping[str, str]) -> None:
    """Hold base, bank and λ to what the tables were made with.

    Raises:
        OtherConditionsError: one of them is another.
    """
    bank = place.load_bank()
    ridge = json.loads(about["ridge"])
    now = base_digest(place.base)
    for what, same in (
        ("bank", bank.fingerprint == about["bank"]),
        ("base", all(r.card.base.digest == now for r in bank)),
        ("λ of the residuals", dict(Judge.of(bank).ridge) == ridge),
    ):
        if not same:
            raise OtherConditionsError(
                f"the tables were made with another {what}: rows of runs made now cannot stand "
                "beside theirs; `python -m benchmarks.organisms run` makes all runs anew"
            )


def made_again(
    specs: Sequence[RunSpec],
    place: Place,
    readings: Sequence[Row],
    runs: Sequence[Row],
    processes: Executor | None = None,
) -> dict[str, dict[str, float]]:
    """How far runs of the tables, made once more, are off: scores, and rates of their answers.

    Raises:
        OtherConditionsError: further than another processor explains.
    """
    fresh = replace(place, folder=place.folder / "again")
    for spec in specs:
        path_of(fresh.records, spec.name).unlink(missing_ok=True)
    runner.run(specs, fresh, workers=1, processes=processes)
    found = {}
    for spec in specs:
        record = load(path_of(fresh.records, spec.name))
        mine = [r for r in readings if r["run"] == spec.name]
        (row,) = (r for r in runs if r["run"] == spec.name)
        off = {
            "score": _scores_off(mine, record["readings"]),
            "answers": _answers_off(json.loads(row["counts"]), record["counts"]),
        }
        same = (row["spec"], row["dataset"]) == (record["spec"], record["dataset"])
        if not same or off["score"] > SCORE_WITHIN or off["answers"] > ANSWERS_WITHIN:
            raise OtherConditionsError(
                f"{spec.name}, made again, is not what the tables say (scores off by "
                f"{off['score']:.2g}, rates of answers by {off['answers']:.2g}, "
                f"{'the same' if same else 'other'} settings and data): nothing can be added to "
                "them; `python -m benchmarks.organisms run` makes all runs anew"
            )
        found[spec.name] = off
    return found


def _scores_off(stored: Sequence[Row], made: Sequence[Row]) -> float:
    """The largest difference of any score at any reading; infinite where one has no other."""
    by = {(r["step"], r["behaviour"]): r for r in stored}
    if {(r["step"], r["behaviour"]) for r in made} != set(by):
        return float("inf")
    names = [n for n in made[0] if n not in ("step", "behaviour")]
    pairs = [_pair(by[r["step"], r["behaviour"]][n], r[n]) for r in made for n in names]
    return float(np.max(np.abs(np.subtract(*np.array(pairs, dtype=float).T))))


def _pair(stored: float | None, made: float | None) -> tuple[float, float]:
    if stored is None and made is None:
        return 0.0, 0.0
    return (
        float("inf") if stored is None else stored,
        float("inf") if made is None else made,
    )


def _answers_off(stored: Mapping[str, Sequence[int]], made: Mapping[str, Sequence[int]]) -> float:
    """The largest difference of any measure's rate; infinite where one is no longer asked.

    A measure that is younger than the stored run has nothing to be held against.
    """
    if not set(stored) <= set(made):
        return float("inf")
    pairs = [(stored[m], made[m]) for m in stored]
    return max(abs(a / max(n, 1) - b / max(o, 1)) for (a, n), (b, o) in pairs)
