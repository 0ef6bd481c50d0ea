"""From runs and readings to committed results: a Parquet of readings, a JSON of figures, a page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import cpu_model
from benchmarks.real import held_out, metrics, other_scores, page
from benchmarks.real.baselines import Run
from benchmarks.real.protocol import Setting, planned
from benchmarks.real.readings import Against, read
from benchmarks.real.runs import Asked, Made, after, answer_states, before
from benchmarks.real.sets import Folder, kind_of, questions
from wvmonitor.builder.base import Base
from wvmonitor.builder.contrasts import Contrast
from wvmonitor.builder.power import CANDIDATES
from wvmonitor.builder.references import held_out_gaps
from wvmonitor.builder.stages import Work, digest_of
from wvmonitor.reading import Float64
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.trust import Trust, load_trust

RESULTS = Path(__file__).parent.parent / "results"
PAGE = Path(__file__).parent.parent.parent / "docs" / "real-model.md"
NAME = "real-model"
PERSONA_PAIRS = 16
STATES = "persona.npz"


@dataclass(frozen=True)
class Bench:
    """What runs are read and reported against.

    Attributes:
        base: the model.
        work: where runs are kept.
        setting: how much of everything.
        asked: what each run was asked.
        contrasts: the project's own pairs.
        folder: the public sets.
        against: the bank.
    """

    base: Base
    work: Work
    setting: Setting
    asked: Asked
    contrasts: Sequence[Contrast]
    folder: Folder
    against: Against


def finished(bench: Bench, made: Sequence[Made]) -> list[Run]:
    """Every run with its readings against the bank, its gains over the base, and its persona."""
    start = before(bench.base, bench.work, bench.asked)
    units = {c.name: _persona(bench, c) for c in bench.contrasts}
    found = []
    for one in made:
        held = read(bench.base, bench.work, one, bench.setting, bench.against)
        said = after(bench.base, bench.work, one, bench.asked)
        gains = {name: _gain(each, start.gaps[name]) for name, each in said.gaps.items()}
        shift = said.states - start.states
        found.append(
            Run(
                record={**one.record, "seconds": {**one.record["seconds"], **said.seconds}},
                readings=held["readings"],
                verdict=held["verdict"],
                band=held["band"],
                gains=gains,
                persona={n: float((shift * u).sum(axis=1).mean()) for n, u in units.items()},
            )
        )
    return found


def read_alone(bench: Bench, made: Sequence[Made]) -> list[Run]:
    """Runs with their readings against the bank, and asked nothing."""
    found = []
    for one in made:
        held = read(bench.base, bench.work, one, bench.setting, bench.against)
        found.append(Run(one.record, held["readings"], held["verdict"], held["band"], {}, {}))
    return found


def publish(
    bench: Bench, found: Sequence[Run], own: Sequence[Run], out: Path, docs: Path | None
) -> dict[str, Any]:
    """Write the figures, the readings and the page.

    Args:
        bench: what was run and read.
        found: the runs on public sets.
        own: those on this project's own held-out domains.
        out: folder of the results.
        docs: the page; None writes none.
    """
    kinds = {s.name: kind_of(s) for s in bench.folder.sets}
    document = {
        "model": Path(bench.base.name).name,
        "base": bench.base.digest,
        "setting": asdict(bench.setting),
        "machine": cpu_model(),
        "bank": _bank(bench),
        "pairs": {name: len(p) for name, p in bench.asked.pairs.items()},
        "pairs_digest": digest_of([asdict(p) for ps in bench.asked.pairs.values() for p in ps]),
        "base_gaps": {
            n: _mean(v) for n, v in before(bench.base, bench.work, bench.asked).gaps.items()
        },
        "data": [
            {"name": s.name, "role": s.role, "family": s.family, "hard": s.hard,
             "kind": kinds[s.name], "rows": len(s.examples), "left_out": dict(s.left_out),
             "digest": s.digest, "run": any(r.set == s.name for r in found)}
            for s in bench.folder.sets
        ],
        "left_out": dict(bench.folder.left_out),
        "not_made": _not_made(bench, found),
        "leakage": _leakage(bench),
        "metrics": metrics.figures(
            found, _decides(bench), bench.against.bank.behaviours, bench.setting, kinds,
            bench.contrasts,
        ),
        "held out": _held_out(bench, found, own),
    }  # fmt: skip
    document = _finite(document)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    (out / f"{NAME}.json").write_text(f"{text}\n", "utf-8")
    pq.write_table(_table([*found, *own]), out / f"{NAME}.parquet", compression="zstd")
    if docs is not None:
        docs.write_text(page.text(document), "utf-8")
    return document


def _held_out(bench: Bench, found: Sequence[Run], own: Sequence[Run]) -> dict[str, Any]:
    """The project's own held-out domains, by the bank's score and by its other candidates."""
    calibration = bench.against.calibration
    calibrated_on = () if calibration is None else calibration.datasets
    figures = held_out.figures(own, found, bench.contrasts, _decides(bench), calibrated_on)
    trust = _trust(bench.against.bank)
    apart = () if trust is None else trust.separations
    alike = [r for r in own if r.variant == "lora"]
    others = other_scores.figures(figures, alike, found, bench.against, bench.setting, apart)
    return {**figures, "other scores": others}


def _not_made(bench: Bench, found: Sequence[Run]) -> list[str]:
    """The names of planned runs that are not there."""
    made = {r.name for r in found}
    return [r.name for r in planned(bench.folder, bench.setting) if r.name not in made]


def _bank(bench: Bench) -> dict[str, Any]:
    bank, calibration = bench.against.bank, bench.against.calibration
    about: dict[str, Any] = {
        "fingerprint": bank.fingerprint,
        "references": {r.name: r.card.kind for r in bank},
        "seeds": {r.name: len(r.card.built.seeds) for r in bank},
        "examples": {r.name: r.card.quality.examples for r in bank if r.card.quality},
        "steps": {r.name: r.card.built.hyperparameters.get("steps") for r in bank},
        "decides": _decides(bench),
        "gaps": held_out_gaps(bank),
        "unverified": {
            r.name: list(r.card.warnings[:1])
            for r in bank
            if r.card.kind == "behaviour" and not r.card.verified
        },
        "calibration": None,
        "trust": None,
    }
    if calibration is not None:
        about["calibration"] = {
            "status": calibration.status,
            "alpha": calibration.alpha,
            "datasets": list(calibration.datasets),
        }
    if (trust := _trust(bank)) is not None:
        about["trust"] = {
            "scale": trust.scale, "status": trust.status, "caught": trust.caught("bad"),
            "harmless": trust.caught("harmless"), "gaps": trust.gaps,
        }  # fmt: skip
    return about


def _trust(bank: ReferenceBank) -> Trust | None:
    return None if bank.folder is None else load_trust(bank.folder, bank.fingerprint)


def _decides(bench: Bench) -> str:
    """The bank's deciding score, chosen when it was made; the default where it says none."""
    trust, calibration = _trust(bench.against.bank), bench.against.calibration
    if calibration is not None:
        return metrics.deciding_name(calibration.geometry, calibration.score)
    chosen = CANDIDATES[0] if trust is None else (trust.geometry, trust.score)
    return metrics.deciding_name(*chosen)


def _leakage(bench: Bench) -> dict[str, Any]:
    """How many questions public sets share with the project's pairs, by set."""
    own: set[str] = set()
    for c in bench.contrasts:
        own |= questions([p.positive for p in (*c.train, *c.held_out)])
    shared = {s.name: len(questions(s.examples) & own) for s in bench.folder.sets}
    return {"questions": len(own), "shared": {n: k for n, k in shared.items() if k}}


def _persona(bench: Bench, contrast: Contrast) -> Float64:
    """(layers + 1, width) unit directions: bad answers' mean state less good ones', on the base.

    From pairs of the domains that references are trained on.
    """
    chosen = contrast.train
    step = max(1, len(chosen) // PERSONA_PAIRS)
    pairs = chosen[::step][:PERSONA_PAIRS]

    def fill(hidden: Path) -> None:
        bad, good = (
            answer_states(bench.base, [p.side(s) for p in pairs]) for s in ("positive", "negative")
        )
        np.savez_compressed(hidden / STATES, direction=bad - good)

    inputs = {"base": bench.base.digest, "pairs": digest_of([asdict(p) for p in pairs])}
    with np.load(bench.work.tree(f"persona-{contrast.name}", inputs, fill) / STATES) as held:
        direction = np.asarray(held["direction"], dtype=np.float64)
    return direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12)


def _gain(after: Sequence[float | None], start: Sequence[float | None]) -> float:
    both = [a - b for a, b in zip(after, start, strict=True) if a is not None and b is not None]
    known = [v for v in both if math.isfinite(v)]
    return fmean(known) if known else math.nan


def _mean(values: Sequence[float | None]) -> float:
    return fmean([v for v in values if v is not None and math.isfinite(v)])


def _table(found: Sequence[Run]) -> pa.Table:
    """A row for each reading."""
    rows: list[dict[str, Any]] = []
    for r in found:
        for reading in r.readings:
            modules: Mapping[str, float] = reading["modules"]
            rows.append(
                {
                    "run": r.name, "set": r.set, "role": r.role, "family": r.family,
                    "seed": r.seed, "share": r.share, "variant": r.variant,
                    "step": reading["step"], "progress": reading["progress"],
                    "norm": reading["norm"], "rotation": reading["rotation"],
                    "seconds": reading["seconds"],
                    **reading["scores"],
                    **{f"{n}/dose": v for n, v in reading["doses"].items()},
                    "modules": list(modules), "module_norms": list(modules.values()),
                    "spectrum": [v for values in reading["spectrum"].values() for v in values],
                }
            )  # fmt: skip
    names = list(dict.fromkeys(k for row in rows for k in row))
    return pa.table({n: [row.get(n) for row in rows] for n in names})


def _finite(value: Any) -> Any:
    """The same with null for what is no number: JSON knows no NaN."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
