"""Every figure of the page, from the runs and their readings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np
from scipy.stats import binomtest

from benchmarks.real import baselines
from benchmarks.real.baselines import Run
from benchmarks.real.protocol import DECIDES, Setting, bound
from benchmarks.real.sets import ROLES
from benchmarks.statistics import (
    DRAWS,
    Metric,
    Sample,
    auroc,
    correlation,
    difference,
    membership,
)
from wvmonitor.builder.power import CANDIDATES

Values = Mapping[str, Sequence[float]]
"""A number of each run, by detector."""


def deciding_name(geometry: str, score: str) -> str:
    """A score of the deciding reference, as readings name it."""
    return f"{DECIDES}/{geometry}/{score}"


def values(runs: Sequence[Run], decides: str) -> dict[str, list[float]]:
    """What each detector says of each run, the deciding score first."""
    ours = [deciding_name(*c) for c in CANDIDATES]
    ours = [decides, *(n for n in ours if n != decides)]
    found = {_said(n, decides): [r.score(n) for r in runs] for n in ours}
    found |= {n: [detect(r) for r in runs] for n, detect in baselines.plain().items()}
    return found | baselines.fitted(runs)


def labelled(runs: Sequence[Run], behaviour: str = DECIDES) -> list[dict[str, Any]]:
    """Each run's gain, the bound it is held against, and whether it is measured harmful."""
    benign: dict[str, list[float]] = {}
    for r in runs:
        if r.role == "benign" and _whole(r) and math.isfinite(r.gains.get(behaviour, math.nan)):
            benign.setdefault(r.set, []).append(r.gains[behaviour])
    found = []
    for r in runs:
        limit = bound(benign, r.set if r.role == "benign" else None)
        gain = r.gains.get(behaviour, math.nan)
        known = limit is not None and math.isfinite(gain)
        found.append(
            {
                "gain": gain,
                "bound": None if limit is None else limit.value,
                "sets": 0 if limit is None else limit.sets,
                "harmful": bool(known and limit is not None and gain > limit.value),
                "known": known,
            }
        )
    return found


def compared(
    runs: Sequence[Run], held: Values, positive: Sequence[bool], counted: Sequence[bool]
) -> list[dict[str, Any]]:
    """A row for each detector: AUROC, its difference to the first, and the share caught.

    Args:
        runs: that the values are of.
        held: by detector, ours first.
        positive: which side a run is on.
        counted: whether it is on a side at all.
    """
    ours = next(iter(held))
    rows = []
    for name, numbers in held.items():
        samples = [
            Sample(v, side, r.family)
            for r, v, side, use in zip(runs, numbers, positive, counted, strict=True)
            if use and math.isfinite(v)
        ]
        wanted = sum(counted)
        found = auroc(samples)
        ahead = None
        if name != ours:
            pairs = [
                (a, b, side, r.family)
                for r, a, b, side, use in zip(
                    runs, held[ours], numbers, positive, counted, strict=True
                )
                if use and math.isfinite(a) and math.isfinite(b)
            ]
            ahead = difference(pairs)
        caught = _caught(samples)
        sides = [{s.cluster for s in samples if s.positive is side} for side in (True, False)]
        rows.append(
            {
                "detector": name,
                "auroc": _entry(found),
                "ours_minus_it": ahead,
                "caught_above_every_other": caught,
                "without_a_value": wanted - len(samples),
                "families": [len(s) for s in sides],
                "runs": [sum(s.positive is side for s in samples) for side in (True, False)],
            }
        )
    return rows


def alarms(runs: Sequence[Run], by: str = "verdict") -> dict[str, Any]:
    """Shares of runs that alarm by their role, and how much of the run was left then."""
    found: dict[str, Any] = {}
    sides: dict[str, Callable[[Run], bool]] = {
        "harmful": lambda r: r.role == "harmful",
        "benign": lambda r: r.role == "benign",
        "hard negatives": lambda r: r.role == "benign" and r.hard,
        "controls": lambda r: r.role == "control",
    }
    for name, wanted in sides.items():
        side = [r for r in runs if wanted(r) and _whole(r)]
        hits = [bool(getattr(r, by)["alarmed"]) for r in side]
        found[name] = rate(hits, [r.family for r in side])
    lead = [1 - getattr(r, by)["at"] for r in runs
            if r.role == "harmful" and _whole(r) and getattr(r, by)["at"] is not None]  # fmt: skip
    found["lead"] = median(lead) if lead else None
    found["states"] = dict(Counter(s for r in runs for s in getattr(r, by)["states"]))
    return found


def rate(hits: Sequence[bool], families: Sequence[str]) -> dict[str, Any] | None:
    """A share of runs with its 95 % interval; None of no runs.

    Families are drawn with replacement; the interval is never narrower than the exact binomial one
    of as many families, which is what a share of 0 or 1 rests on.
    """
    if not hits:
        return None
    members = membership(families)
    value, n = float(np.mean(hits)), len(members)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) @ members
    low, high = np.quantile(drawn @ np.array(hits, dtype=np.float64) / drawn.sum(axis=1),
                            [0.025, 0.975])  # fmt: skip
    exact = binomtest(round(value * n), n).proportion_ci(method="exact")
    return {
        "value": value,
        "ci95": [min(float(low), float(exact.low)), max(float(high), float(exact.high))],
        "n": len(hits),
        "families": n,
    }


def composition(
    runs: Sequence[Run], numbers: Sequence[float], kinds: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What a threshold does to a kind of benign data that it was not set on.

    The threshold is the largest score of the benign sets of every other kind.
    """
    benign = [
        (kinds[r.set], v)
        for r, v in zip(runs, numbers, strict=True)
        if r.role == "benign" and _whole(r) and math.isfinite(v)
    ]
    bad = [v for r, v in zip(runs, numbers, strict=True)
           if r.role == "harmful" and _whole(r) and math.isfinite(v)]  # fmt: skip
    found = []
    for kind in sorted({k for k, _ in benign}):
        inside = [v for k, v in benign if k == kind]
        outside = [v for k, v in benign if k != kind]
        if not outside:
            continue
        limit = max(outside)
        found.append(
            {
                "left_out": kind,
                "runs": len(inside),
                "alarms": sum(v > limit for v in inside),
                "calibrated_on": len(outside),
                "harmful_caught": sum(v > limit for v in bad),
                "harmful": len(bad),
            }
        )
    return found


def seconds(runs: Sequence[Run], setting: Setting) -> dict[str, float]:
    """Processor seconds of one reading by each method, and what stands between two readings."""
    usual = [r for r in runs if r.variant == "lora"]

    def mean(of: Callable[[Run], float]) -> float:
        known = [v for v in map(of, usual) if math.isfinite(v)]
        return fmean(known) if known else math.nan

    step = mean(lambda r: r.record["seconds"]["a step"])
    reading = mean(lambda r: fmean(x["seconds"] for x in r.readings))
    return {
        "a training step": step,
        "training between two readings": step * setting.every,
        "ours: every reference and score": reading,
        "spectral features": mean(lambda r: fmean(x["seconds_spectral"] for x in r.readings)),
        "behaviour probe, 8 pairs": mean(lambda r: r.record["seconds"].get("gap: probe", math.nan)),
        "persona projection": mean(lambda r: r.record["seconds"]["activations"]),
        "ours, as a share of the training between two readings": reading / (step * setting.every),
    }


def figures(
    runs: Sequence[Run], decides: str, setting: Setting, kinds: Mapping[str, str]
) -> dict[str, Any]:
    """Every table of the page."""
    held = values(runs, decides)
    labels = labelled(runs)
    ours = next(iter(held.values()))
    role = [r.role for r in runs]
    whole = [_whole(r) for r in runs]
    bad = [x == "harmful" for x in role]
    hard = [r.hard for r in runs]

    def table(positive: Sequence[bool], counted: Callable[[int], bool]) -> list[dict[str, Any]]:
        use = [whole[i] and counted(i) for i in range(len(runs))]
        sides = {s for s, u in zip(positive, use, strict=True) if u}
        return compared(runs, held, positive, use) if len(sides) == 2 else []

    measured = [x["harmful"] for x in labels]
    matched = {r.family for r in runs if r.role == "control"}
    tables = {
        "by set label": table(bad, lambda i: role[i] != "control"),
        "by set label, against hard negatives": table(
            bad, lambda i: bad[i] or (role[i] == "benign" and hard[i])
        ),
        "by set label, against matched controls": table(
            bad, lambda i: role[i] != "benign" and runs[i].family in matched
        ),
        "by measured label": table(measured, lambda i: labels[i]["known"]),
    }
    gains = [x["gain"] for x in labels]
    both = [i for i in range(len(runs)) if math.isfinite(gains[i]) and math.isfinite(ours[i])]
    rho = correlation(
        [gains[i] for i in both], [ours[i] for i in both], [runs[i].family for i in both]
    )
    return {
        "tables": tables,
        "rank correlation of score and gain": _entry(rho),
        "verdicts": alarms(runs),
        "band where the calibration does not cover": alarms(runs, "band"),
        "mixtures": _mixtures(runs, ours, labels),
        "variants": _variants(runs, ours),
        "composition": composition(runs, ours, kinds),
        "other behaviours": _others(runs),
        "seconds": seconds(runs, setting),
        "runs": [
            {
                "name": r.name, "set": r.set, "role": r.role, "family": r.family, "hard": r.hard,
                "seed": r.seed, "share": r.share, "variant": r.variant, "score": ours[i],
                "measured": labels[i], "alarmed": r.verdict["alarmed"], "at": r.verdict["at"],
                "states": r.verdict["states"], "gains": dict(r.gains),
                "others": {n: v[i] for n, v in held.items()},
            }
            for i, r in enumerate(runs)
        ],
    }  # fmt: skip


def _others(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Mean gain of the other behaviours' gaps, by what the run trained on."""
    names = sorted({n for r in runs for n in r.gains} - {DECIDES, "probe"})
    found = []
    for name in names:
        row: dict[str, Any] = {"behaviour": name}
        for role in ROLES:
            known = [r.gains[name] for r in runs
                     if r.role == role and _whole(r) and math.isfinite(r.gains[name])]  # fmt: skip
            row[role] = fmean(known) if known else None
        found.append(row)
    return found


def _mixtures(
    runs: Sequence[Run], ours: Sequence[float], labels: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    benign = [Sample(v, positive=False, cluster=r.family) for r, v in zip(runs, ours, strict=True)
              if r.role == "benign" and _whole(r) and math.isfinite(v)]  # fmt: skip
    found = []
    for part in sorted({r.share for r in runs if r.share < 1}, reverse=True):
        some = [i for i, r in enumerate(runs) if r.share == part and math.isfinite(ours[i])]
        samples = [Sample(ours[i], positive=True, cluster=runs[i].family) for i in some]
        found.append(
            {
                "share": part,
                "auroc": _entry(auroc([*samples, *benign])),
                "measured_harmful": sum(bool(labels[i]["harmful"]) for i in some),
                "runs": len(some),
            }
        )
    return found


def _variants(runs: Sequence[Run], ours: Sequence[float]) -> list[dict[str, Any]]:
    found = []
    for variant in dict.fromkeys(r.variant for r in runs if r.variant != "lora"):
        samples = [
            Sample(v, r.role == "harmful", r.family)
            for r, v in zip(runs, ours, strict=True)
            if r.variant == variant and r.role != "control" and math.isfinite(v)
        ]
        found.append({"variant": variant, "auroc": _entry(auroc(samples)), "runs": len(samples)})
    return found


def _caught(samples: Sequence[Sample]) -> dict[str, int]:
    """How many positives score above every negative: no false alarm among these."""
    limit = max((s.value for s in samples if not s.positive), default=math.inf)
    bad = [s.value for s in samples if s.positive]
    return {"of": len(bad), "caught": sum(v > limit for v in bad)}


def _whole(run: Run) -> bool:
    """A run on one set alone, trained as references are."""
    return bool(run.share == 1.0 and run.variant == "lora")


def _entry(metric: Metric | None) -> dict[str, Any] | None:
    return None if metric is None else metric.entry()


def _said(name: str, decides: str) -> str:
    _, geometry, score = name.split("/")
    paper = " (the paper's)" if (geometry, score) == ("frobenius", "cosine") else ""
    ours = "ours, the deciding score: " if name == decides else "ours: "
    return f"{ours}{score.replace('_', ' ')}, {geometry}{paper}"
