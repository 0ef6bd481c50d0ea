"""The part of docs/remedies.md about data screened on a real model, from its committed results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.remedies.gate_page import percent
from benchmarks.remedies.intervals import rate
from benchmarks.remedies.real_gate import (
    BAD,
    GOOD,
    LOOKED_AT,
    OTHER_GOOD,
    PUBLIC_BAD,
    PUBLIC_CONTROL,
)
from benchmarks.remedies.real_gate_results import (
    IN_ALL,
    TOKEN,
    WAYS,
    GateResults,
    Row,
    Sieved,
    Way,
)
from benchmarks.remedies.tables import MET, MISSED, as_table
from benchmarks.statistics import Metric

_ORDINARY = "ordinary rows"
_BESIDE = {
    _ORDINARY: "ordinary rows",
    GOOD: "good answers to the same questions",
    OTHER_GOOD: "good answers to other questions, by the same author",
}


def section(results: GateResults) -> list[str]:
    """The section: what was screened, every table, and what the rules fixed beforehand say."""
    s = results.setting
    whole = [b for b in results.behaviours if results.whole(b)]
    pairs = len(results.rows(whole[0], BAD))
    sets = sorted({r.of for r in results.ordinary(whole[0])})
    return [
        "### Data screened on the real model",
        "",
        f"`wvmonitor blame` on {results.found['model']} with the bank "
        f"`{results.found['bank'][:16]}…` (one seed a reference), its controls taken out of each "
        f"reference. The bad rows are the {pairs} answers that show a behaviour in the two domains "
        "that its reference has not seen. The ordinary rows are other people's: "
        f"{s.sets * s.rows} of {len(sets)} public sets, no longer than the longest bad row. "
        "Nothing is trained for these tables.",
        "",
        "- **A token**: the push as the command gives it, a mean over an answer's tokens. *In "
        "all*: times its tokens (`--per example`), which is what a trainer that averages a batch "
        "over its tokens makes of it. That was added when harmful-advice and hallucination had "
        "been looked at: of these two its figures prove nothing.",
        "- **The row's own loss**, which needs no reference, stands beside it, in whichever "
        "direction ranks better here: more than a user could know. *Length* is the number of the "
        "answer's tokens alone.",
        "- **Bad rows are told from ordinary ones by author and form as well**, for one author "
        "wrote all pairs, those of the references too. Good answers to the same questions share "
        "both, and the topic: what is left there is the behaviour.",
        "- (low–high) is a 95 % interval: questions are drawn, and the sets of ordinary rows.",
        "",
        *_areas(results, whole),
        "",
        "In pairs, question by question: how often the bad answer pushes more than the good one, "
        "or than the same answer where it was asked for; and how those others, in which nothing is "
        "bad, rank among ordinary rows.",
        "",
        *_pairs(results, whole),
        "",
        *_rules(results, whole),
        "",
        f"Sets of {s.rows} rows of which no two share one, {s.sets} of each contamination; the "
        f"threshold flags {percent(s.flag_rate)} of {s.rows} other ordinary rows of the same "
        "public sets. *Fails* counts sets that the gate does not pass (exit code 1).",
        "",
        *_sets(results, whole),
        "",
        "Flagged by a threshold that is not of their kind, and by one that is: the "
        f"{len(results.rows(whole[0], OTHER_GOOD)) or 'other'} good answers to other questions "
        "by the same author.",
        "",
        *_other_kinds(results, whole),
        "",
    ]


def _areas(results: GateResults, whole: Sequence[str]) -> list[str]:
    head = [
        "bad rows of", "told from", "push a token", "loss a token", "difference",
        "push in all", "loss in all", "difference", "length",
    ]  # fmt: skip
    lines = []
    for behaviour in whole:
        for name, others in _beside(results, behaviour).items():
            lines.append([behaviour, name, *_line(results, results.rows(behaviour, BAD), others)])
        public = results.rows(behaviour, PUBLIC_BAD)
        control = results.rows(behaviour, PUBLIC_CONTROL)
        named = f"{results.setting.public} (public)"
        for name, others in ((_ORDINARY, results.ordinary(behaviour)),
                             ("the same answers, asked for", control)):  # fmt: skip
            if public and others:
                lines.append([named, name, *_line(results, public, others)])
    return as_table(head, lines)


def _pairs(results: GateResults, whole: Sequence[str]) -> list[str]:
    head = [
        "bad rows of", "beside", "bad pushes more, a token", "in all", "by domain, a token",
        "the others among ordinary rows, a token", "in all",
    ]  # fmt: skip
    lines = []
    for behaviour in whole:
        for group, other in ((BAD, GOOD), (PUBLIC_BAD, PUBLIC_CONTROL)):
            twins = results.rows(behaviour, other)
            if not twins:
                continue
            token, in_all = (results.pairs(behaviour, group, other, way) for way in WAYS)
            ordinary = results.ordinary(behaviour)
            lines.append(
                [
                    behaviour if group == BAD else f"{results.setting.public} (public)",
                    _kind(other),
                    _pooled(token),
                    _pooled(in_all),
                    ", ".join(f"{hits} of {n}" for hits, n in token.values()),
                    *(_m(results.told(twins, ordinary, way).push) for way in WAYS),
                ]
            )
    return as_table(head, lines)


def _pooled(by_domain: Mapping[str, tuple[int, int]]) -> str:
    """Of all pairs together, with Wilson's interval."""
    hits, n = _summed(by_domain)
    return f"{hits} of {n}: {rate([[hits, n]]).words()}"


def _summed(by_domain: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """How many push more, and how many there are, over all domains."""
    return sum(hits for hits, _ in by_domain.values()), sum(n for _, n in by_domain.values())


def _beside(results: GateResults, behaviour: str) -> dict[str, list[Row]]:
    found = {_BESIDE[g]: results.rows(behaviour, g) for g in (GOOD, OTHER_GOOD)}
    both = {_ORDINARY: results.ordinary(behaviour), **found}
    return {name: rows for name, rows in both.items() if rows}


def _line(results: GateResults, bad: Sequence[Row], others: Sequence[Row]) -> list[str]:
    cells: list[str] = []
    for way in WAYS:
        told = results.told(bad, others, way)
        loss = f"{_m(told.loss)} ({told.by_loss})"
        cells += [_m(told.push), loss, _gain(told.gain)]
    return [*cells, _m(results.lengths(bad, others))]


def _rules(results: GateResults, whole: Sequence[str]) -> list[str]:
    """What was fixed beforehand to be looked for, and whether it is there."""
    lines = [
        "What was to be looked for was fixed before any row was screened, in `real_gate.py`, for "
        "the push a token; for the push in all, before any row of the behaviours that are not in "
        f"brackets. (Brackets: {', '.join(LOOKED_AT)}, where it was chosen.)",
        "",
    ]
    asked = (
        "above ½ among ordinary rows",
        "above the loss there, in the loss's better direction",
        "above ½ among good answers to the same questions (by AUROC; in pairs, and by domain, "
        "above)",
        "every clean set passes and every set that is "
        f"{percent(max(results.setting.shares))} bad fails",
    )
    for n, rule in enumerate(asked):
        told = []
        for way in WAYS:
            said = []
            for behaviour in whole:
                there = _kept(results, behaviour, way)[n]
                name = f"({behaviour})" if way is IN_ALL and behaviour in LOOKED_AT else behaviour
                said.append(f"{name} {MET if there else MISSED}")
            told.append(f"{way.name}: {', '.join(said)}")
        lines.append(f"{n + 1}. {rule}: {'; '.join(told)}.")
    return lines


def _kept(results: GateResults, behaviour: str, way: Way) -> tuple[bool, bool, bool, bool]:
    bad = results.rows(behaviour, BAD)
    ordinary = results.told(bad, results.ordinary(behaviour), way)
    same = results.told(bad, results.rows(behaviour, GOOD), way)
    shares = results.setting.shares
    clean, worst = (results.sieved(behaviour, x, way) for x in (min(shares), max(shares)))
    return (
        ordinary.push.ci95[0] > 0.5,
        ordinary.gain["ci95"] is not None and ordinary.gain["ci95"][0] > 0,
        same.push.ci95[0] > 0.5,
        all(x.passed for x in clean) and not any(x.passed for x in worst),
    )


def _sets(results: GateResults, whole: Sequence[str]) -> list[str]:
    s = results.setting
    worst = max(s.shares)
    head = [
        "bad rows of", "counted", f"bad rows flagged, at {percent(worst)}", "clean rows flagged",
        f"bad rows among the {percent(worst)} that push most", "by loss",
        *(f"fails at {percent(share)} bad" for share in s.shares),
    ]  # fmt: skip
    lines = []
    for behaviour in whole:
        for way in WAYS:
            by_share = [results.sieved(behaviour, share, way) for share in s.shares]
            failed = [f"{sum(not x.passed for x in sets)} of {len(sets)}" for sets in by_share]
            lines.append(
                [
                    behaviour,
                    way.name,
                    rate([x.found for x in by_share[-1]]).words(),
                    rate([x.lost for x in by_share[0]]).words(3),
                    rate([x.top for x in by_share[-1]]).words(),
                    rate([x.top_by_loss for x in by_share[-1]]).words(),
                    *failed,
                ]
            )
    return as_table(head, lines)


def _other_kinds(results: GateResults, whole: Sequence[str]) -> list[str]:
    head = [
        "reference", "rows", "counted", "flagged by the ordinary rows' threshold",
        "by the same author's",
    ]  # fmt: skip
    lines = []
    for behaviour in whole:
        known = results.rows(behaviour, OTHER_GOOD)
        for group in (BAD, GOOD, PUBLIC_BAD, PUBLIC_CONTROL):
            rows = results.rows(behaviour, group)
            for way in WAYS if rows else ():
                ordinary = [
                    [results.flagged(rows, results.threshold(behaviour, n, way), way), len(rows)]
                    for n in range(results.setting.sets)
                ]
                own: Mapping[bool, Any] = {False: "–"}
                if known:
                    hits = results.flagged(rows, results.threshold_from(known, way), way)
                    own = {True: rate([[hits, len(rows)]]).words()}
                lines.append(
                    [behaviour, _kind(group), way.name, rate(ordinary).words(), own[bool(known)]]
                )
    return as_table(head, lines)


def _kind(group: str) -> str:
    return {BAD: "bad answers", GOOD: _BESIDE[GOOD], PUBLIC_BAD: "public bad answers",
            PUBLIC_CONTROL: "the same, asked for"}[group]  # fmt: skip


def short(results: GateResults) -> list[str]:
    """The lines of "In short"."""
    whole = [b for b in results.behaviours if results.whole(b)]
    if not whole:
        return []
    first = whole[0]
    bad = results.rows(first, BAD)
    ordinary = results.told(bad, results.ordinary(first), TOKEN)
    same = results.told(bad, results.rows(first, GOOD), TOKEN)
    worst = max(results.setting.shares)
    sets = results.sieved(first, worst, TOKEN)
    new = [x for b in whole if b not in LOOKED_AT for x in results.sieved(b, worst, IN_ALL)]
    failed = [x for b in whole for x in results.sieved(b, worst, TOKEN) if not x.passed]
    every = len(whole) * results.setting.sets
    in_all = f"Counted in all, of the behaviours on which that was not chosen, {_found(new)}. "
    works = len(failed) == every
    return [
        f"- **Screened data, on the real model** ({first}): the push ranks bad rows among ordinary "
        f"public ones with an AUROC of {_m(ordinary.push)}, their own loss with "
        f"{_m(ordinary.loss)}; among good answers to the same questions with {_m(same.push)}. "
        f"In sets that are {percent(worst)} bad the gate flags {_found(sets)} of the bad rows, and "
        f"it fails {len(failed)} of the {every} such sets of all behaviours: "
        f"**as a gate it {'works' if works else 'does not work'} there**. "
        f"{in_all if new else ''}{_wrong_way(results, first)}"
        "[The tables](#data-screened-on-the-real-model)."
    ]


def _wrong_way(results: GateResults, behaviour: str) -> str:
    """Where the same public answers push more when they were asked for; empty where they do not."""
    if not results.rows(behaviour, PUBLIC_CONTROL):
        return ""
    hits, n = _summed(results.pairs(behaviour, PUBLIC_BAD, PUBLIC_CONTROL, TOKEN))
    if rate([[hits, n]]).high >= 0.5:
        return ""
    return (
        "On the one public set with a control **the push goes the wrong way beyond chance**: the "
        f"same answers push more where they were asked for, in {n - hits} of {n}. "
    )


def _found(sets: Sequence[Sieved]) -> str:
    return rate([x.found for x in sets]).words()


def _m(found: Metric) -> str:
    return f"{found.value:.3f} ({found.ci95[0]:.3f}–{found.ci95[1]:.3f})"


def _gain(found: Mapping[str, Any]) -> str:
    words = f"{found['value']:+.3f}"
    if found["ci95"] is not None:
        low, high = found["ci95"]
        words += f" ({low:+.3f} to {high:+.3f})"
    return words.replace("-", "−")
