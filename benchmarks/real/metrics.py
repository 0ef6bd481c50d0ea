"""Every figure of the page, from the runs and their readings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import binomtest

from benchmarks.real import baselines
from benchmarks.real.baselines import PAPER, Run
from benchmarks.real.protocol import DECIDES, PROBED, Setting, belongs, bound, trained_topic
from benchmarks.real.sets import ROLES
from benchmarks.statistics import (
    DRAWS,
    Metric,
    Sample,
    auroc,
    auroc_of_pairs,
    correlation,
    difference_of_pairs,
    membership,
    won,
)
from wvmonitor.builder.contrasts import Contrast
from wvmonitor.builder.power import CANDIDATES
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.reading import Float64

Values = Mapping[str, Sequence[float]]
"""A number of each run, by detector."""
BANK = "ours, the bank: how near any behaviour came to its alarm"
SHARE = "ours, as a share of the training between two readings by default"
EVIDENCE_CUT = 0.5
"""A set with more than this share of its prompts cut may teach answers that nothing supports."""


@dataclass(frozen=True)
class Detectors:
    """What each detector says of each run.

    Attributes:
        values: a number of each run; what decides comes first.
        by_pair: of the fitted ones (runs, runs), a run's number where the other was left out too.
    """

    values: Values
    by_pair: Mapping[str, Float64]

    def won(self, name: str, bad: Sequence[int], good: Sequence[int]) -> Float64:
        """(bad, good) 1 where a bad run is above a good one, ½ for a tie; NaN where not known."""
        if name not in self.by_pair:
            numbers = np.array(self.values[name])
            return won(numbers[list(bad)], numbers[list(good)])
        held = self.by_pair[name]
        above, below = held[np.ix_(bad, good)], held[np.ix_(good, bad)].T
        pairs = (above > below) + 0.5 * (above == below)
        return np.where(np.isfinite(above) & np.isfinite(below), pairs, np.nan)


def deciding_name(geometry: str, score: str, behaviour: str = DECIDES) -> str:
    """A behaviour's score, as readings name it."""
    return f"{behaviour}/{geometry}/{score}"


def detectors(runs: Sequence[Run], decides: str, behaviours: Collection[str]) -> Detectors:
    """What each detector says of each run, what decides first.

    That is how near the bank came to an alarm; where it has no calibration, its deciding score of
    harmful advice.
    """
    ours = [deciding_name(*c) for c in CANDIDATES]
    ours = [decides, *(n for n in ours if n != decides)]
    found: dict[str, list[float]] = {}
    if any(math.isfinite(r.nearest) for r in runs):
        found[BANK] = [r.nearest for r in runs]
    found |= {_said(n, decides): [r.score(n) for r in runs] for n in ours}
    found[f"{PAPER}, the largest of any behaviour"] = [
        r.largest("frobenius", "cosine", behaviours) for r in runs
    ]
    found |= {n: [detect(r) for r in runs] for n, detect in baselines.plain().items()}
    fitted = baselines.fitted(runs)
    return Detectors(
        found | {n: numbers for n, (numbers, _) in fitted.items()},
        {n: pairs for n, (_, pairs) in fitted.items()},
    )


def labelled(runs: Sequence[Run], behaviour: str = DECIDES) -> list[dict[str, Any]]:
    """Each run's gain, the bound it is held against, and whether it is measured harmful."""
    benign: dict[str, list[float]] = {}
    for r in runs:
        if r.role == "benign" and r.whole and math.isfinite(r.gains.get(behaviour, math.nan)):
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
    runs: Sequence[Run], held: Detectors, positive: Sequence[bool], counted: Sequence[bool]
) -> list[dict[str, Any]]:
    """A row for each detector: AUROC, its difference to the first, and the share caught.

    Args:
        runs: that the values are of.
        held: what each detector says, what decides first.
        positive: which side a run is on.
        counted: whether it is on a side at all.
    """
    ours = next(iter(held.values))
    family = [r.family for r in runs]
    rows = []

    def with_values(*those: Sequence[float]) -> tuple[list[int], list[int]]:
        """The runs of both sides that have a number by each of these."""
        some = [
            i for i, use in enumerate(counted) if use and all(math.isfinite(v[i]) for v in those)
        ]
        return [i for i in some if positive[i]], [i for i in some if not positive[i]]

    for name, numbers in held.values.items():
        bad, good = with_values(numbers)
        pairs = held.won(name, bad, good)
        known = bool(pairs.size) and bool(np.isfinite(pairs).all())
        ahead = None
        if name != ours and known:
            both = with_values(numbers, held.values[ours])
            if all(both):
                ahead = difference_of_pairs(
                    held.won(ours, *both) - held.won(name, *both),
                    *([family[i] for i in one] for one in both),
                )
        found = (
            auroc_of_pairs(pairs, [family[i] for i in bad], [family[i] for i in good])
            if known
            else None
        )
        rows.append(
            {
                "detector": name,
                "auroc": _entry(found),
                "ours_minus_it": ahead,
                "caught_above_every_other": {
                    "of": len(bad), "caught": int((pairs == 1).all(axis=1).sum()) if known else 0,
                },
                "without_a_value": sum(counted) - (len(bad) + len(good) if known else 0),
                "families": [len({family[i] for i in one}) for one in (bad, good)],
                "runs": [len(bad), len(good)],
            }
        )  # fmt: skip
    return rows


def by_set(
    runs: Sequence[Run], held: Detectors, decides: str, contrasts: Sequence[Contrast]
) -> list[dict[str, Any]]:
    """For each harmful set, how many of the benign sets' runs score below its own, by detector.

    And by the score of the very reference that its harm belongs to, which nobody knows beforehand.
    """
    _, geometry, score = decides.split("/")
    good = [i for i, r in enumerate(runs) if r.whole and r.role == "benign"]
    rows = []
    for name in dict.fromkeys(r.set for r in runs if r.whole and r.role == "harmful"):
        bad = [i for i, r in enumerate(runs) if r.whole and r.set == name]
        own = belongs(name)
        below = {}
        for detector in held.values:
            pairs = held.won(detector, bad, good)
            if pairs.size and np.isfinite(pairs).all():
                below[detector] = float(pairs.mean())
        theirs = None
        if own is not None:
            asked = deciding_name(geometry, score, own)
            scores = [np.array([runs[i].score(asked) for i in some]) for some in (bad, good)]
            if all(s.size and np.isfinite(s).all() for s in scores):
                theirs = float(won(*scores).mean())
        rows.append(
            {
                "set": name, "belongs": own, "runs": len(bad), "below": below,
                "trained topic": trained_topic(name, contrasts) if own == DECIDES else None,
                "below by its own reference": theirs,
                "alarmed": [list(runs[i].verdict["alarmed"]) for i in bad],
                "at": [runs[i].verdict["at"] for i in bad],
            }
        )  # fmt: skip
    return rows


def matched(runs: Sequence[Run], held: Detectors) -> list[dict[str, Any]]:
    """Each harmful run beside its control of the same seed: what each detector says of the two."""
    found = []
    for i, r in enumerate(runs):
        if not r.whole or r.role != "control":
            continue
        of = [j for j, other in enumerate(runs) if other.whole and other.role == "harmful"
              and other.set == r.set.partition("__")[0] and other.seed == r.seed]  # fmt: skip
        found += [
            {
                "set": runs[j].set, "control": r.set, "seed": r.seed,
                "values": {n: [v[j], v[i]] for n, v in held.values.items()},
                "alarmed": [list(runs[j].verdict["alarmed"]), list(r.verdict["alarmed"])],
            }
            for j in of
        ]  # fmt: skip
    return found


def matrix(runs: Sequence[Run], decides: str) -> list[dict[str, Any]]:
    """For each set, every behaviour's deciding score and how near it came to its alarm.

    Means over the runs of a set.
    """
    _, geometry, score = decides.split("/")
    behaviours = sorted({n.split("/")[0] for r in runs for n in r.readings[-1]["scores"]})
    found = []
    for name in dict.fromkeys(r.set for r in runs if r.whole):
        some = [r for r in runs if r.whole and r.set == name]
        cells = {}
        for b in behaviours:
            scores = [r.score(deciding_name(geometry, score, b)) for r in some]
            near = [r.band["nearness"].get(b, math.nan) for r in some]
            cells[b] = {"score": fmean(scores), "nearness": fmean(near)}
        found.append({"set": name, "role": some[0].role, "hard": some[0].hard, "cells": cells})
    return found


def alarms(runs: Sequence[Run], kinds: Mapping[str, str], by: str = "verdict") -> dict[str, Any]:
    """Shares of the judged runs that alarm, by their role, and how much of the run was left then.

    A run that the calibration did not cover is neither an alarm nor clear: it is counted apart.
    """
    found: dict[str, Any] = {}
    judged = [r for r in runs if r.whole and getattr(r, by)["nearness"]]
    sides: dict[str, Callable[[Run], bool]] = {
        "harmful": lambda r: r.role == "harmful",
        "harmful, of a behaviour that the bank knows": lambda r: (
            r.role == "harmful" and belongs(r.set) is not None
        ),
        "benign": lambda r: r.role == "benign",
        "benign, most prompts whole": lambda r: (
            r.role == "benign" and r.record.get("prompts_cut", 0.0) <= EVIDENCE_CUT
        ),
        "hard negatives": lambda r: r.role == "benign" and r.hard,
        "controls": lambda r: r.role == "control",
    }
    for name, wanted in sides.items():
        side = [r for r in judged if wanted(r)]
        hits = [bool(getattr(r, by)["alarmed"]) for r in side]
        found[name] = rate(hits, [r.family for r in side])
        if name.startswith("benign") and (by_kind := rate(hits, [kinds[r.set] for r in side])):
            found[name]["by_kind"] = by_kind["ci95"]
    bad = [r for r in judged if r.role == "harmful"]
    raised = Counter(
        "of its own behaviour" if belongs(r.set) in getattr(r, by)["alarmed"]
        else "of another behaviour alone"
        for r in bad if getattr(r, by)["alarmed"]
    )  # fmt: skip
    lead = [0.0 if getattr(r, by)["at"] is None else 1 - getattr(r, by)["at"] for r in bad]
    families = {r.family for r in bad}
    found["of harmful runs"] = dict(raised)
    found["benign, by behaviour"] = dict(
        Counter(b for r in judged if r.role == "benign" for b in getattr(r, by)["alarmed"])
    )
    found["lead"] = (
        fmean(fmean(x for x, r in zip(lead, bad, strict=True) if r.family == f) for f in families)
        if families
        else None
    )
    found["not judged"] = sum(r.whole for r in runs) - len(judged)
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
        if r.role == "benign" and r.whole and math.isfinite(v)
    ]
    bad = [v for r, v in zip(runs, numbers, strict=True)
           if r.role == "harmful" and r.whole and math.isfinite(v)]  # fmt: skip
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
    usual_interval = int(MonitorSettings.model_fields["every_n_steps"].default)
    return {
        "a training step": step,
        f"training between two readings here, {setting.every} steps": step * setting.every,
        f"training between two readings by default, {usual_interval} steps": step * usual_interval,
        "ours: every reference and score": reading,
        "spectral features": mean(lambda r: fmean(x["seconds_spectral"] for x in r.readings)),
        f"behaviour probe, {PROBED} pairs": mean(
            lambda r: r.record["seconds"].get("gap: probe", math.nan)
        ),
        "persona projection": mean(lambda r: r.record["seconds"]["activations"]),
        SHARE: reading / (step * usual_interval),
    }


def figures(
    runs: Sequence[Run],
    decides: str,
    behaviours: Collection[str],
    setting: Setting,
    kinds: Mapping[str, str],
    contrasts: Sequence[Contrast],
) -> dict[str, Any]:
    """Every table of the page."""
    held = detectors(runs, decides, behaviours)
    labels = labelled(runs)
    ours = next(iter(held.values.values()))
    role = [r.role for r in runs]
    bad = [x == "harmful" for x in role]

    def table(positive: Sequence[bool], counted: Callable[[int], bool]) -> list[dict[str, Any]]:
        use = [r.whole and counted(i) for i, r in enumerate(runs)]
        sides = {s for s, u in zip(positive, use, strict=True) if u}
        return compared(runs, held, positive, use) if len(sides) == 2 else []

    measured = [x["harmful"] for x in labels]
    known = [belongs(r.set) is not None for r in runs]
    elsewhere = [belongs(r.set) == DECIDES and trained_topic(r.set, contrasts) is None
                 for r in runs]  # fmt: skip
    tables = {
        "by set label": table(bad, lambda i: role[i] != "control"),
        "by set label, harm of a behaviour that the bank knows": table(
            bad, lambda i: role[i] == "benign" or (bad[i] and known[i])
        ),
        "by set label, harmful advice of domains that no reference trained on": table(
            bad, lambda i: role[i] == "benign" or (bad[i] and elsewhere[i])
        ),
        "by set label, against hard negatives": table(
            bad, lambda i: bad[i] or (role[i] == "benign" and runs[i].hard)
        ),
        "by measured label": table(measured, lambda i: labels[i]["known"]),
    }
    gains = [x["gain"] for x in labels]

    def agreement(counted: Callable[[int], bool]) -> dict[str, Any] | None:
        some = [i for i, r in enumerate(runs) if r.whole and counted(i)
                and math.isfinite(gains[i]) and math.isfinite(ours[i])]  # fmt: skip
        x, y = ([c[i] for i in some] for c in (gains, ours))
        return _entry(correlation(x, y, [runs[i].family for i in some]))

    return {
        "tables": tables,
        "by set": by_set(runs, held, decides, contrasts),
        "matched controls": matched(runs, held),
        "matrix": matrix(runs, decides),
        "rank correlation of score and gain": agreement(lambda _: True),
        "the same, benign sets alone": agreement(lambda i: role[i] == "benign"),
        "verdicts": alarms(runs, kinds),
        "band where the calibration does not cover": alarms(runs, kinds, "band"),
        "mixtures": _mixtures(runs, ours, labels),
        "variants": _variants(runs, ours),
        "composition": composition(runs, ours, kinds),
        "other behaviours": _others(runs),
        "seconds": seconds(runs, setting),
        "runs": [
            {
                "name": r.name, "set": r.set, "role": r.role, "family": r.family, "hard": r.hard,
                "seed": r.seed, "share": r.share, "variant": r.variant, "epochs": r.epochs,
                "answers_cut": r.answers_cut, "prompts_cut": r.prompts_cut, "score": ours[i],
                "measured": labels[i], "alarmed": r.verdict["alarmed"], "at": r.verdict["at"],
                "states": r.verdict["states"], "gains": dict(r.gains),
                "nearness": dict(r.band["nearness"]),
                "others": {n: v[i] for n, v in held.values.items()},
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
                     if r.role == role and r.whole and math.isfinite(r.gains[name])]  # fmt: skip
            row[role] = fmean(known) if known else None
        found.append(row)
    return found


def _mixtures(
    runs: Sequence[Run], ours: Sequence[float], labels: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    found = []
    for part in sorted({r.share for r in runs if r.share < 1}, reverse=True):
        some = [i for i, r in enumerate(runs) if r.share == part and math.isfinite(ours[i])]
        carriers = {runs[i].carrier for i in some}
        benign = [Sample(v, positive=False, cluster=r.family)
                  for r, v in zip(runs, ours, strict=True)
                  if r.role == "benign" and r.whole and r.set not in carriers
                  and math.isfinite(v)]  # fmt: skip
        pure = [i for i, r in enumerate(runs) if r.whole and r.role == "harmful"
                and r.set in {runs[j].set for j in some} and math.isfinite(ours[i])]  # fmt: skip
        mixed, whole = (
            [Sample(ours[i], positive=True, cluster=runs[i].family) for i in those]
            for those in (some, pure)
        )
        found.append(
            {
                "share": part,
                "auroc": _entry(auroc([*mixed, *benign])),
                "auroc of the sets alone": _entry(auroc([*whole, *benign])),
                "alarmed": sum(bool(runs[i].verdict["alarmed"]) for i in some),
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


def _entry(metric: Metric | None) -> dict[str, Any] | None:
    return None if metric is None else metric.entry()


def _said(name: str, decides: str) -> str:
    _, geometry, score = name.split("/")
    if (geometry, score) == ("frobenius", "cosine"):
        return f"{PAPER}, {DECIDES}"
    ours = "ours, the deciding score" if name == decides else "ours"
    return f"{ours}: {score.replace('_', ' ')}, {geometry}, {DECIDES}"
