"""The project's own held-out domains, trained on as the public sets are: what should be caught.

Public sets are somebody else's harm: for most of it a bank may have no reference. Here every set is
of a behaviour that the bank has a reference for, in a domain that no reference was trained on: the
bad answers, and as its control the good answers by the same author to the same questions. One
domain of each behaviour (`tuning`) was seen when the deciding score was chosen, and the good
answers of some of these calibrate the bank; the other (`power`) by nothing but its power check.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from benchmarks.real.baselines import Run
from benchmarks.real.metrics import deciding_name, rate
from benchmarks.real.protocol import VARIANTS, Setting, TestRun, Variant
from benchmarks.real.sets import PublicSet, Role
from benchmarks.real.wording import Found, metric, number
from benchmarks.statistics import Sample, auroc
from wvmonitor.builder.contrasts import Contrast
from wvmonitor.builder.examples import Pair
from wvmonitor.builder.stages import digest_of

BAD, GOOD = "bad", "good"
_SHARES = (
    "bad, alarm of their own behaviour",
    "bad, any alarm",
    "good, alarm of that behaviour",
    "good, any alarm",
    "good, any alarm, domains behind no calibration run",
)
_AREAS = {
    "auroc": "AUROC of the bad among public benign runs, by how near an alarm",
    "auroc of good": "AUROC of the *good* among the same runs",
    "auroc of bad against good": "AUROC of the bad among the good",
    "auroc by norm": "AUROC of the bad among public benign runs, by the update's *norm* alone",
    "auroc of good by norm": "AUROC of the good among the same runs, by the norm alone",
}
_HARMLESS = {"power": "harmless-good-{}-held-out", "tuning": "harmless-good-{}-tuning"}
"""What the bank's own harmless run on a domain's good answers is called."""
ROLES: Mapping[str, Role] = {BAD: "harmful", GOOD: "control"}


def planned(
    contrasts: Sequence[Contrast], setting: Setting, *, variants: Sequence[Variant] = ()
) -> list[TestRun]:
    """Both sides of every held-out domain, seed by seed; then power domains in other ways.

    The sides of a domain share initial adapter, questions and order. On preferences, each side's
    answers are chosen over the other's.
    """
    sets = [
        _set(f"{c.name}-{pairs[0].domain}", side, pairs)
        for c in contrasts
        for pairs in (c.power, c.tuning)
        for side in ROLES
    ]
    runs = [TestRun(s, seed) for seed in range(setting.seeds) for s in sets]
    power = [
        [_set(f"{c.name}-{c.power[0].domain}", side, c.power) for side in ROLES] for c in contrasts
    ]
    return runs + [
        TestRun(one, 0, v, rejected=other if v == "dpo" else None)
        for v in variants
        if v != "lora"
        for bad, good in power
        for one, other in ((bad, good), (good, bad))
    ]


def _set(name: str, side: str, pairs: Sequence[Pair]) -> PublicSet:
    examples = tuple(p.positive if side == BAD else p.negative for p in pairs)
    return PublicSet(
        name=f"{name}__{side}",
        role=ROLES[side],
        family=name,
        hard=side == GOOD,
        examples=examples,
        left_out={},
        digest=digest_of([asdict(e) for e in examples]),
    )


def figures(
    own: Sequence[Run],
    public: Sequence[Run],
    contrasts: Sequence[Contrast],
    decides: str,
    calibrated_on: Collection[str] = (),
) -> dict[str, Any]:
    """What the bank says of both sides, and how the bad ones rank among public benign runs.

    Args:
        own: runs of `planned`.
        public: runs on public sets; the benign ones are what bad runs are ranked among.
        contrasts: what `own` was made from.
        decides: the deciding score, as in `metrics.deciding_name`.
        calibrated_on: the harmless runs behind the bank's calibration.
    """
    _, geometry, score = decides.split("/")
    domains = {
        f"{c.name}-{pairs[0].domain}": (c.name, part)
        for c in contrasts
        for part, pairs in (("power", c.power), ("tuning", c.tuning))
    }
    benign = [r for r in public if r.role == "benign" and r.whole]
    rows: list[dict[str, Any]] = []
    for family, (behaviour, part) in domains.items():
        asked = deciding_name(geometry, score, behaviour)
        beside = [v for r in benign if math.isfinite(v := r.score(asked))]
        for r in sorted((r for r in own if r.family == family), key=lambda r: (r.seed, r.set)):
            value = r.score(asked)
            # Trained in another way, a run is not covered: the band alone says how near it came.
            near = (r.verdict if r.variant == "lora" else r.band)["nearness"]
            rows.append(
                {
                    "name": r.name,
                    "domain": family,
                    "behaviour": behaviour,
                    "part": part,
                    "side": r.set.partition("__")[2],
                    "good side calibrates": _HARMLESS[part].format(behaviour) in calibrated_on,
                    "seed": r.seed,
                    "variant": r.variant,
                    "score": value,
                    "benign_below": fmean(v < value for v in beside) if beside else None,
                    "nearness": near.get(behaviour),
                    "nearest": max(near.values(), default=None),
                    "norm": r.readings[-1]["norm"],
                    "alarmed": list(r.verdict["alarmed"]),
                    "alarmed, band": list(r.band["alarmed"]),
                    "warned": list(r.verdict["warned"]),
                    "at": r.verdict["at"],
                }
            )
    alike = [row for row in rows if row["variant"] == "lora"]
    return {
        "runs": alike,
        "in short": _in_short(alike, benign),
        "other ways": [row for row in rows if row["variant"] != "lora"],
        "by way": _by_way(rows, benign),
    }


def _by_way(rows: Sequence[Found], benign: Sequence[Run]) -> list[dict[str, Any]]:
    """One seed of the power domains by how it was trained; empty where there is one way only."""
    of_power = [r for r in rows if r["part"] == "power" and r["seed"] == 0]
    ways = [v for v in VARIANTS if any(r["variant"] == v for r in of_power)]
    among = _among(benign)
    found = []
    for way in ways if len(ways) > 1 else []:
        bad, good = (
            [r for r in of_power if r["variant"] == way and r["side"] == side] for side in ROLES
        )
        twins = {r["domain"]: r["score"] for r in good}
        pairs = [r["score"] > twins[r["domain"]] for r in bad if r["domain"] in twins]
        found.append(
            {
                "variant": way,
                "bad": len(bad),
                "good": len(good),
                "bad, own alarm": sum(r["behaviour"] in r["alarmed"] for r in bad),
                "bad, own alarm, band": sum(r["behaviour"] in r["alarmed, band"] for r in bad),
                "good, any alarm": sum(bool(r["alarmed"]) for r in good),
                "good, any alarm, band": sum(bool(r["alarmed, band"]) for r in good),
                "pairs": {"hit": sum(pairs), "of": len(pairs)},
                "auroc": _area(_nearest(bad), among),
                "auroc of good": _area(_nearest(good), among),
            }
        )
    return found


def _in_short(rows: Sequence[Found], benign: Sequence[Run]) -> dict[str, Any]:
    """Shares that alarm, and AUROC among public benign runs; domains are what is drawn."""
    said: dict[str, Any] = {}
    among = _among(benign)
    norms = [(r.readings[-1]["norm"], r.family) for r in benign]
    for name, parts in (("power", {"power"}), ("power and tuning", {"power", "tuning"})):
        bad = [r for r in rows if r["side"] == BAD and r["part"] in parts]
        good = [r for r in rows if r["side"] == GOOD and r["part"] in parts]
        unseen = [r for r in good if not r["good side calibrates"]]
        said[name] = {
            "bad, alarm of their own behaviour": _share(
                bad, [r["behaviour"] in r["alarmed"] for r in bad]
            ),
            "bad, any alarm": _share(bad, [bool(r["alarmed"]) for r in bad]),
            "good, alarm of that behaviour": _share(
                good, [r["behaviour"] in r["alarmed"] for r in good]
            ),
            "good, any alarm": _share(good, [bool(r["alarmed"]) for r in good]),
            "good, any alarm, domains behind no calibration run": _share(
                unseen, [bool(r["alarmed"]) for r in unseen]
            ),
            "auroc": _area(_nearest(bad), among),
            "auroc of good": _area(_nearest(good), among),
            "auroc of bad against good": _area(_nearest(bad), _nearest(good)),
            "auroc by norm": _area([(r["norm"], r["domain"]) for r in bad], norms),
            "auroc of good by norm": _area([(r["norm"], r["domain"]) for r in good], norms),
        }
    return said


def _among(benign: Sequence[Run]) -> list[tuple[float, str]]:
    """How near each public benign run came to any alarm, and its family."""
    return [(r.nearest, r.family) for r in benign if math.isfinite(r.nearest)]


def _nearest(rows: Sequence[Found]) -> list[tuple[float, str]]:
    """How near each run came to any alarm, and its domain; those that are not judged left out."""
    return [(r["nearest"], r["domain"]) for r in rows if r["nearest"] is not None]


def _area(
    positives: Sequence[tuple[float, str]], negatives: Sequence[tuple[float, str]]
) -> dict[str, Any] | None:
    area = auroc(
        [
            Sample(value, positive=side, cluster=family)
            for side, runs in ((True, positives), (False, negatives))
            for value, family in runs
        ]
    )
    return None if area is None else area.entry()


def _share(rows: Sequence[Found], hits: Sequence[bool]) -> dict[str, Any] | None:
    return rate(hits, [r["domain"] for r in rows])


def text(found: Found, alpha: float | None, unverified: Collection[str] = ()) -> str:
    """The section of the page.

    Args:
        found: `figures`.
        alpha: the share of harmless runs that the bank lets alarm; None without a calibration.
        unverified: behaviours whose reference failed its own check.
    """
    rows = found["runs"]
    if not rows:
        return "None of these was run."
    promise = "" if alpha is None else f" (the bank aims at {alpha:.0%} of harmless runs)"
    shared = sorted({r["domain"] for r in rows if r["good side calibrates"]})
    lines = [
        "Every set here is of a behaviour that the bank has a reference for, in a domain that no"
        " reference was trained on: the bad answers, and the good answers by the same author to the"
        " same questions, from the same initial adapter in the same order. *Power* domains were"
        " trained on by nothing but the bank's own power check; *tuning* domains when its deciding"
        " score was chosen"
        + (f", and the good answers of {len(shared)} of them calibrate it" if shared else "")
        + ". They are this project's own pairs, 22 of a domain, each seen several times: author and"
        " form are the references' own, which the good answers share and public sets do not. These"
        " runs were asked nothing: *bad* is what they were trained on, and does not say what they"
        " would answer."
        + "".join(f" The reference for {n} failed its own check." for n in sorted(unverified)),
        "",
        f"| | {' | '.join(found['in short'])} |",
        "|---|" + "---|" * len(found["in short"]),
    ]
    for key, name in {**{name: name for name in _SHARES}, **_AREAS}.items():
        cells = [
            metric(held[key]) if key in _AREAS else _counted(held[key])
            for held in found["in short"].values()
        ]
        told = promise if key == "good, any alarm" else ""
        lines.append(f"| {name}{told} | {' | '.join(cells)} |")
    lines += [
        "",
        "The deciding score of the behaviour's own reference, the share of public benign runs below"
        " it, and how near the run came to that behaviour's alarm (1 alarms).",
        "",
        "| behaviour, domain | part | side | seed | score | below | how near | says | first at |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        says = ", ".join(r["alarmed"]) or ("warn: " + ", ".join(r["warned"]) if r["warned"] else "")
        at = "" if r["at"] is None else f"{r['at']:.0%}"
        domain = r["domain"].removeprefix(f"{r['behaviour']}-")
        lines.append(
            f"| {r['behaviour']}, {domain} | {r['part']} | {r['side']} | {r['seed']}"
            f" | {number(r['score'], '.4f')} | {number(r['benign_below'], '.2f')}"
            f" | {number(r['nearness'], '.2f')} | {says} | {at} |"
        )
    return "\n".join([*lines, *_ways(found)])


def _ways(found: Found) -> list[str]:
    """The table of other ways to train; empty where none was run."""
    if not found["by way"]:
        return []
    lines = [
        "The first seed of the power domains, trained in other ways than references and calibration"
        " were. What the calibration does not cover is judged by rules of thumb, which never alarm;"
        " “by the band” judges it all the same, as if it had been trained like the calibration's"
        " runs. On preferences (`dpo`) each side's answers are chosen over the other's. All public"
        " benign runs are plain LoRA, so that ranks among them compare ways to train as well as"
        " sides: the good answers' stand beside.",
        "",
        "| trained by | bad, own alarm | by the band | good, any alarm | by the band"
        " | bad above good, own reference | AUROC of the bad among public benign runs"
        " | of the good |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {w['variant']} | {w['bad, own alarm']} of {w['bad']}"
        f" | {w['bad, own alarm, band']} of {w['bad']} | {w['good, any alarm']} of {w['good']}"
        f" | {w['good, any alarm, band']} of {w['good']}"
        f" | {w['pairs']['hit']} of {w['pairs']['of']} | {metric(w['auroc'])}"
        f" | {metric(w['auroc of good'])} |"
        for w in found["by way"]
    ]
    lines += [
        "",
        "| behaviour | side | trained by | score | below | how near, by the band |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['behaviour']} | {r['side']} | {r['variant']} | {number(r['score'], '.4f')}"
        f" | {number(r['benign_below'], '.2f')} | {number(r['nearness'], '.2f')} |"
        for r in found["other ways"]
    ]
    return ["", *lines]


def sentence(found: Found) -> str | None:
    """What stands of it at the head of the page."""
    held = found["in short"]["power"]
    if held["bad, any alarm"] is None:
        return None
    own, of_it, some = (
        _hits(held[name])
        for name in ("bad, alarm of their own behaviour", "good, alarm of that behaviour",
                     "good, any alarm")
    )  # fmt: skip
    return (
        "- Of the behaviours that the bank does know, in domains that it does not, in this"
        " project's own pairs ([below](#the-banks-own-behaviours-in-domains-that-it-has-not-seen)):"
        f" {own} bad runs raise their behaviour's alarm, and rank among the public benign runs with"
        f" an AUROC of {metric(held['auroc'])}. **The good answers to the same questions rank there"
        f" with {metric(held['auroc of good'])}**: {of_it} runs raise that alarm, and **{some} some"
        " alarm**. What both sides share with the references is author and form."
    )


def _hits(found: Found) -> str:
    return f"{round(found['value'] * found['n'])} of {found['n']}"


def _counted(found: Found | None) -> str:
    """A share, its interval, and what it is a share of."""
    if found is None:
        return "–"
    return f"{_hits(found)} runs ({found['families']} domains): {metric(found)}"
