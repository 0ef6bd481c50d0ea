"""The same runs judged again, had another of the bank's candidates been its deciding score.

The bank's own harmless runs calibrate each of them anew; nothing is trained or measured for it.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.real.baselines import Run
from benchmarks.real.held_out import BAD, GOOD
from benchmarks.real.protocol import Setting
from benchmarks.real.readings import Against, context_of
from benchmarks.real.wording import Found, number
from wvmonitor.builder import power
from wvmonitor.detection.calibration import BenignRun, Calibration
from wvmonitor.detection.growing import calibrate_as_far_as_possible
from wvmonitor.detection.judge import judgements
from wvmonitor.detection.scores import ReferenceScores, Scores
from wvmonitor.errors import CalibrationError
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.trust import Separation


def figures(
    held_out: Found,
    own: Sequence[Run],
    public: Sequence[Run],
    against: Against,
    setting: Setting,
    apart: Sequence[Separation],
) -> list[dict[str, Any]]:
    """What each candidate says of every run; empty without the work folder that the bank is from.

    Args:
        held_out: `held_out.figures`.
        own: runs on the project's own held-out domains.
        public: runs on public sets.
        against: the bank and its calibration.
        setting: how runs were made.
        apart: how far each candidate tells the bank's development runs apart.
    """
    calibration, bank = against.calibration, against.bank
    harmless = [] if calibration is None else _harmless(bank, calibration.datasets)
    if calibration is None or not harmless:
        return []
    benign = [r for r in public if r.role == "benign" and r.whole]
    rows = []
    for geometry, score in power.CANDIDATES:
        other = calibrate_as_far_as_possible(
            harmless, bank=bank.fingerprint, alpha=calibration.alpha, geometry=geometry,
            score=score, by_their_ends=False,
        )  # fmt: skip
        if (geometry, score) == (calibration.geometry, calibration.score):
            _require_same(other, calibration)
        alarms = {r.name: _alarmed(r, bank, other, setting) for r in (*own, *benign)}
        counts = {}
        for part, parts in (("power", ("power",)), ("all", ("power", "tuning"))):
            of_part = [r for r in held_out["runs"] if r["part"] in parts]
            bad = [r for r in of_part if r["side"] == BAD]
            good = [r for r in of_part if r["side"] == GOOD]
            caught = [r["behaviour"] in alarms[r["name"]] for r in bad]
            counts |= {
                f"bad, own alarm, {part}": _count(caught),
                f"good, any alarm, {part}": _count([bool(alarms[r["name"]]) for r in good]),
            }
        d = next((s.d for s in apart if (s.geometry, s.score) == (geometry, score)), None)
        rows.append(
            {
                "score": f"{geometry}/{score}",
                "decides": (geometry, score) == (calibration.geometry, calibration.score),
                "apart": d,
                **counts,
                "benign, any alarm": _count([bool(alarms[r.name]) for r in benign]),
            }
        )
    return rows


def text(rows: Sequence[Found]) -> str:
    """The table; a sentence where there is none."""
    if not rows:
        return "Not known: the work folder that the bank was made in is not beside it."
    heads = (
        "bad, own alarm, power", "good, any alarm, power", "bad, own alarm, all",
        "good, any alarm, all", "benign, any alarm",
    )  # fmt: skip
    lines = [
        "Had another of the bank's candidates decided, calibrated on the same harmless runs: how"
        " far it tells the bank's own development runs from them, in their spreads, and what it"
        " would have said here. Which one decides was settled with the bank's own power check, on"
        " these very power domains, in view (see below): this table is part of the result.",
        "",
        f"| deciding score | apart | {' | '.join(heads[:-1])} | public benign sets, any alarm |",
        "|---|---|" + "---|" * len(heads),
    ]
    for row in rows:
        name = f"**{row['score']}**" if row["decides"] else row["score"]
        cells = " | ".join(f"{row[h]['hit']} of {row[h]['of']}" for h in heads)
        lines.append(f"| {name} | {number(row['apart'], '.2f')} | {cells} |")
    return "\n".join(lines)


def _harmless(bank: ReferenceBank, datasets: Sequence[str]) -> list[BenignRun]:
    """The runs that calibrated the bank, from the work folder beside it; none where one lacks."""
    assert bank.folder is not None
    work = bank.folder.with_name(f"{bank.folder.name}.work")
    found = []
    for name in datasets:
        for folder in sorted(work.glob(f"run-{glob.escape(name)}-{'[0-9a-f]' * 16}")):
            try:
                found += [r for r in power.read_runs({name: folder}, bank) if _is_short(r, found)]
            except CalibrationError:
                continue  # watched with another bank
    return found if {r.dataset for r in found} == set(datasets) else []


def _is_short(run: BenignRun, before: Sequence[BenignRun]) -> bool:
    """Whether a run is as long as the others: the power check has longer ones."""
    return not before or run.context.planned_steps == before[0].context.planned_steps


def _require_same(again: Calibration, shipped: Calibration) -> None:
    """See that the bank's own calibration comes out as it was made.

    Raises:
        CalibrationError: it does not, so that the others are none of this bank either.
    """
    for name, multiplier in shipped.multiplier.items():
        if not math.isclose(again.multiplier[name], multiplier, rel_tol=1e-6):
            raise CalibrationError(
                f"the calibration of {name}, made again from the bank's own harmless runs, alarms "
                f"at {again.multiplier[name]:.6g} and not {multiplier:.6g}: are they others?"
            )


def _alarmed(
    run: Run, bank: ReferenceBank, calibration: Calibration, setting: Setting
) -> tuple[str, ...]:
    """The behaviours that alarm in a run whose scores are known."""
    kinds = {r.name: r.card.kind for r in bank}
    course = [_scores(row, kinds, calibration) for row in run.readings]
    context = replace(
        context_of(setting, setting.rate, len(course)),
        method="lora", rank=setting.rank, base="same",
    )  # fmt: skip
    last = list(judgements(course, context, calibration))[-1]
    return tuple(sorted(last.state.alarmed))


def _scores(row: Found, kinds: Mapping[str, Any], calibration: Calibration) -> Scores:
    """A kept reading's scores, as the judge takes them."""
    values: dict[str, dict[str, dict[str, float]]] = {n: {} for n in kinds}
    for key, value in row["scores"].items():
        name, geometry, score = key.rsplit("/", 2)
        if value is not None:
            values[name].setdefault(geometry, {})[score] = value
    return Scores(
        references={n: ReferenceScores(n, kinds[n], v) for n, v in values.items()},  # type: ignore[arg-type]
        norm=row["norm"],
        coverage={"frobenius": 1.0, "response": 1.0},
        step=row["step"],
        progress=row["progress"],
        ridge={calibration.geometry: calibration.ridge},
        bank=calibration.bank,
    )


def _count(hits: Sequence[bool]) -> dict[str, int]:
    return {"hit": sum(hits), "of": len(hits)}
