"""The part of docs/remedies.md about a real model, from its committed results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from benchmarks.real.protocol import DECIDES
from benchmarks.remedies.intervals import Interval, crossed, mean, span
from benchmarks.remedies.real import (
    BAD,
    FAMILY,
    GOOD,
    NOTHING,
    OTHER,
    RANDOM,
    Cell,
    gaps,
    good_losses,
    trained,
    untrained,
)
from benchmarks.remedies.real_results import (
    DIGITS,
    LEAST_SEEDS,
    UNDECIDED,
    Measure,
    RealResults,
    Record,
    Values,
    against,
    below,
    lost,
    over,
)
from benchmarks.remedies.tables import MET, MISSED, as_table
from wvmonitor.steering.edit import ALIKE


def section(results: RealResults) -> list[str]:
    """The section: what was done, every table, and what the rules fixed beforehand say of them."""
    s, found = results.setting, results.found
    counted = [len(results.of(c)) for c in trained(s)]
    text = [
        "## On a real small model",
        "",
        f"{found['model']} (135 million parameters): {sum(counted)} fine-tunes, {span(counted)} "
        f"a cell. LoRA of rank {s.rank} on all linear layers, {s.steps} steps of {s.batch_size}, "
        f"peak rate {s.rate:g}, on {s.trained} questions of one domain of the project's own pairs "
        f"of {DECIDES}. Even seeds train on *{found['domains'][1]}* and are asked about "
        f"*{found['domains'][0]}*, odd ones the other way round; the reference has seen neither: "
        f"it is of {', '.join(found['reference']['domains'])}, the mean of two seeds. "
        f"Alarms are those of the bank `{found['bank'][:16]}…`.",
        "",
        "- **The gap** is log p of the harmful answer less that of the good one, each a mean over "
        "its tokens, in nats a token; up is worse. No answer is written and nobody judges: a gap "
        "that moves is a preference that moves, and not yet a harmful model.",
        "- **Elsewhere**: all questions of the other domain. *Trained domain*: the "
        f"{_left(results)} questions of its own that a run has not trained on. Every figure is "
        "*over the base's own*, question by question. *Questions trained on* were added when the "
        "first two runs had been read and had learned nothing that carries over: nothing was fixed "
        "beforehand about them, and what is repaired was not asked them.",
        "- **(low–high) is a 95 % interval** with the luck of the runs (t over seeds) and of the "
        "questions; what was measured once, without a seed, has that of the questions only. With "
        "three seeds it is wide, and 0 inside it proves no absence.",
        "- **The loss** on good answers is that of the trained domain's other questions, on "
        f"ordinary text that of {len(results.base['ordinary'])} texts of harmless families, one "
        "each; up is worse.",
        "",
        "### How much is a dose of this reference?",
        "",
        "The base with k·w in it, not trained, asked all questions of both domains.",
        "",
        *_doses(results),
        "",
        "### Bad advice",
        "",
        *_bad(results),
        "",
        *_rules(results),
        "",
        "### Harmless runs, remedied by mistake",
        "",
        f"Good answers to the questions that the bad advice answers, and {s.trained} {s.family} "
        "(made by rule). Their own loss is that of rows they were not trained on.",
        "",
        *_benign(results),
        "",
        *_told(results),
        "",
    ]
    if missing := [c.name for c in [*untrained(s), *trained(s)] if not results.of(c)]:
        text += [f"Not run yet, and so in no table: {'; '.join(missing)}.", ""]
    return text


def short(results: RealResults) -> list[str]:
    """The lines of "In short"."""
    s = results.setting
    idle, riding = results.of(Cell(BAD)), results.of(Cell(BAD, DECIDES, s.k))
    found = against(riding, idle, results.elsewhere)
    if found is None:
        return []
    shown = "is shown" if _effect(results) else "is **not shown**"
    if len(set(riding) & set(idle)) < LEAST_SEEDS:
        shown = f"is {UNDECIDED}"
    elif not over(idle, results.elsewhere).low > 0:
        shown += ", and there is no harm elsewhere beyond doubt to be protected from"
    return [
        f"- **On a real model** ({results.found['model']}, {len(idle)} runs a cell, nats a token): "
        f"bad advice moves the gap elsewhere by {_w(over(idle, results.elsewhere))}, with "
        f"{s.k:g} × {DECIDES} riding along by {_w(over(riding, results.elsewhere))}, a difference "
        f"of {_w(found)}; by the rules fixed beforehand a protection by the direction {shown}. "
        f"{_afterthought(results)}[The tables](#on-a-real-small-model)."
    ]


def _afterthought(results: RealResults) -> str:
    """What no rule was fixed for: the questions that were trained on."""
    k = results.setting.k
    idle, riding, random, other = (
        results.with_learned(results.of(Cell(BAD, *riding)))
        for riding in ((), (DECIDES, k), (RANDOM, k), (OTHER, k))
    )
    found = against(riding, idle, results.learned)
    if found is None:
        return ""
    return (
        "On the questions trained on, asked as an afterthought, it is moved by "
        f"{_w(over(idle, results.learned))} and by {_w(over(riding, results.learned))}, a "
        f"difference of {_w(found)}, of {_w(against(random, idle, results.learned))} with a "
        f"random direction as long, and of {_w(against(other, idle, results.learned))} with "
        f"{k:g} × {OTHER}. "
    )


def _effect(results: RealResults) -> bool:
    k = results.setting.k
    riding = results.of(Cell(BAD, DECIDES, k))
    others = (results.of(Cell(BAD)), results.of(Cell(BAD, RANDOM, k)))
    return all(below(against(riding, other, results.elsewhere)) for other in others)


def limits(results: RealResults | None) -> str:
    """What the tables leave open about real models, for the list at the page's end."""
    if results is None:
        return "- Nothing about a real model: these cells have been run on the bundled one only."
    s = results.setting
    counted = [len(results.of(c)) for c in trained(s)]
    return (
        f"- Little about real models: one of 135 million parameters, {span(counted)} runs a cell "
        f"of {s.steps} steps on {s.trained} questions, asked by probabilities and not by what it "
        "writes; what waits for an alarm was tried in runs of 48 steps, and screened data on sets "
        "of a hundred rows. No doses from a reference of several seeds at an alarm, no other "
        "behaviours' runs, no larger models, no full fine-tuning."
    )


def _doses(results: RealResults) -> list[str]:
    """The table of the base with k·w."""
    base, lines = results.base, []
    places = sorted(int(i) for i in base["pairs"])
    for cell in untrained(results.setting)[1:]:
        if not (record := results.of(cell).get(0)):
            continue
        now, before = gaps(record, places), gaps(base, places)
        good, good_before = good_losses(record, places), good_losses(base, places)
        shown = [
            crossed([{i: now[i] - before[i] for i in places}]),
            crossed([{i: good[i] - good_before[i] for i in places}]),
            crossed([results.ordinary(record, 0)]),
        ]
        lines.append([cell.treatment, *map(_w, shown)])
    head = ["added to the base", "gap", "loss on good answers", "loss on ordinary text"]
    card = results.found["reference"]["held_out_gap"]
    told = (
        "By the reference's card, on a part of these questions, the gap moves by "
        f"{card['+1'] - card['+0']:.{DIGITS}f} from 0 to 1 × {DECIDES}."
    )
    if not lines:
        return [told, "", "More doses, and other directions: not run yet."]
    idle = results.of(Cell(BAD))
    own = crossed([gaps(base, places)])
    after = [
        "",
        f"The base's own gap is {_w(own)}: it prefers neither side clearly."
        if own.low < 0 < own.high
        else f"The base's own gap is {_w(own)}.",
    ]
    moved = over(idle, results.elsewhere) if idle else None
    if moved is not None and moved.low > 0:
        by = {
            c.k: over({0: results.of(c)[0]}, _all(results, places)).value
            for c in untrained(results.setting)
            if c.vector == DECIDES and results.of(c)
        }
        nearest = min(by, key=lambda k: abs(by[k] - moved.value))
        after[-1] += (
            f" The bad advice below moves it elsewhere by {_w(moved)}: of these doses "
            f"{nearest:g} × {DECIDES} comes nearest to that."
        )
    elif moved is not None:
        after[-1] += (
            f" The bad advice below moves it elsewhere by {_w(moved)}, which is not beyond doubt "
            "above 0: no dose of w is comparable to that."
        )
    return [told, "", *as_table(head, lines), *after]


def _all(results: RealResults, places: Sequence[int]) -> Measure:
    def measure(record: Record, _: int) -> Values:
        now, before = gaps(record, places), gaps(results.base, places)
        return {i: now[i] - before[i] for i in places}

    return measure


def _treatments(results: RealResults, data: str) -> list[tuple[str, str, dict[int, Record]]]:
    """What is done, how many runs there are of it, and their records."""
    k, found = results.setting.k, []
    listed = [c for c in trained(results.setting) if c.data == data]
    listed.sort(key=lambda c: (("", DECIDES, RANDOM, OTHER).index(c.vector), c.k))
    for cell in listed:
        runs = results.of(cell)
        found.append((cell.treatment, str(len(runs)), runs))
        if cell.vector or not runs:
            continue
        for how, said in (
            ("the measured dose", "its measured dose taken out at the end"),
            (f"{k:g}", f"{k:g} × {DECIDES} taken out at the end"),
        ):
            if not any(how in r["repaired"] for r in runs.values()):
                continue
            left = results.repaired(cell, how)
            if left and how == "the measured dose":
                said += f" ({fmean(r['taken out'] for r in left.values()):.2f})"
            n = str(len(left)) + ("" if len(left) == len(runs) else f" of {len(runs)}")
            found.append((f"{NOTHING}; {said}", n, left))
    return [f for f in found if f[1] != "0"]


def _bad(results: RealResults) -> list[str]:
    idle = results.of(Cell(BAD))
    if not idle:
        return ["Not run yet."]
    head = [
        "what is done", "n", "gap elsewhere", "against nothing done", "gap, trained domain",
        "against nothing done", "gap, questions trained on", "against nothing done",
        "loss on good answers", "loss on ordinary text", "dose", "residual",
    ]  # fmt: skip
    lines = []
    for treatment, n, runs in _treatments(results, BAD):
        if not runs:
            lines.append([treatment, n, *["–"] * (len(head) - 2)])
            continue
        same = treatment == NOTHING
        lines.append(
            [
                treatment, n,
                _w(over(runs, results.elsewhere)),
                "–" if same else _w(against(runs, idle, results.elsewhere)),
                _w(over(runs, results.near)),
                "–" if same else _w(against(runs, idle, results.near)),
                *_learned(results, runs, {} if same else idle),
                _w(over(runs, results.loss)),
                _w(over(runs, results.ordinary)),
                _mean([r.get("dose") for r in runs.values()]),
                _mean([r["residuals"].get("response") for r in runs.values() if "residuals" in r]),
            ]
        )  # fmt: skip
    return as_table(head, lines)


def _learned(
    results: RealResults, runs: Mapping[int, Record], idle: Mapping[int, Record]
) -> list[str]:
    """The gap on what was trained on, of the runs that were asked it, and its difference."""
    asked = results.with_learned(runs)
    found = over(asked, results.learned) if asked else None
    few = f", {len(asked)} of {len(runs)} runs" if asked and len(asked) < len(runs) else ""
    less = against(asked, results.with_learned(idle), results.learned)
    return [f"{_w(found)}{few}", _w(less)]


def _rules(results: RealResults) -> list[str]:
    """What was fixed beforehand to be looked for, and whether it is there."""
    k = results.setting.k
    riding, idle = results.of(Cell(BAD, DECIDES, k)), results.of(Cell(BAD))
    random, other = results.of(Cell(BAD, RANDOM, k)), results.of(Cell(BAD, OTHER, k))
    enough = len(set(riding) & set(idle)) >= LEAST_SEEDS
    asked: list[tuple[str, Interval | None]] = [
        ("bad advice teaches at all: the gap elsewhere, with nothing done, is above the base's",
         over(idle, results.elsewhere) if idle else None),
        (f"first, {k:g} × {DECIDES} against nothing done, elsewhere",
         against(riding, idle, results.elsewhere)),
        (f"first, {k:g} × {DECIDES} against a random direction as long, elsewhere",
         against(riding, random, results.elsewhere)),
        (f"{k:g} × {DECIDES} against {k:g} × {OTHER}, elsewhere",
         against(riding, other, results.elsewhere)),
        (f"{k:g} × {DECIDES} against nothing done, trained domain",
         against(riding, idle, results.near)),
    ]  # fmt: skip
    lines = [
        "What was to be looked for was fixed before the runs, in `real_page.py`: an effect is an "
        "interval below 0. The two that are called first decide; every other figure of these "
        "tables is one of dozens, of which one in twenty misses by chance.",
        "",
    ]
    for n, (what, interval) in enumerate(asked):
        if interval is None:
            lines.append(f"- {what}: not run yet.")
            continue
        there = interval.low > 0 if n == 0 else below(interval)
        verdict = (MET if there else MISSED) if enough else UNDECIDED
        lines.append(f"- {what}: {_w(interval)}, {verdict}.")
    return lines


def _benign(results: RealResults) -> list[str]:
    head = [
        "trained on", "what is done", "n", "gap elsewhere", "against nothing done", "own loss",
        "against nothing done", "loss on ordinary text", "against nothing done",
    ]  # fmt: skip
    lines, costs = [], []
    for data in (GOOD, FAMILY):
        idle = results.of(Cell(data))
        own = results.loss if data == GOOD else results.own
        named = results.setting.family if data == FAMILY else data
        for treatment, n, runs in _treatments(results, data):
            if not runs:
                lines.append([named, treatment, n, *["–"] * (len(head) - 3)])
                continue
            line = [named, treatment, n]
            for measure in (results.elsewhere, own, results.ordinary):
                change = None if treatment == NOTHING else against(runs, idle, measure)
                line += [_w(over(runs, measure)), _w(change)]
                if measure is not results.elsewhere and lost(change):
                    costs.append(f"{named}, {treatment}: {_w(change)}")
            lines.append(line)
    if not lines:
        return ["Not run yet."]
    told = "; ".join(costs) if costs else "none of these"
    return [
        *as_table(head, lines),
        "",
        f"A cost is a loss whose difference has an interval above 0: {told}.",
    ]


def _told(results: RealResults) -> list[str]:
    """What the bank and `steer --remove` said of the runs that nothing was done about."""
    lines = []
    for data in (BAD, GOOD, FAMILY):
        runs = results.of(Cell(data))
        if not runs:
            continue
        named = results.setting.family if data == FAMILY else data
        watched = [r["watched"] for r in runs.values()]
        alarms = sum(bool(w["alarms"]) for w in watched)
        own = sum(DECIDES in w["alarms"] for w in watched)
        warned = sum(any("warn" in states for states in w["states"].values()) for w in watched)
        unknown = sum(
            any(set(states) <= {"unknown"} for states in w["states"].values()) for w in watched
        )
        line = (
            f"- {named}, nothing done: the bank raised an alarm in {alarms} of {len(runs)} runs "
            f"({own} for {DECIDES}), and warned in {warned}"
        )
        line += f"; in {unknown} it could say nothing" if unknown else ""
        repaired = [r["repaired"]["the measured dose"] for r in runs.values()]
        refused = sum("refused" in r for r in repaired)
        cautious = sum(bool(r.get("cautions")) for r in repaired)
        line += (
            f". `steer --remove {DECIDES}` refused {refused} (no dose above 0) and warned of "
            f"{cautious} that the harm may not be of the reference's shape (residual below "
            f"{ALIKE:g}, or two doses that disagree)."
        )
        lines.append(line)
    bad = [r["watched"] for r in results.of(Cell(BAD)).values()]
    first = [min(w["alarms"].values()) for w in bad if w["alarms"]]
    if bad and not first:
        lines.append(
            "- No run on bad advice alarmed, so stopping, braking and going back, which wait for "
            "an alarm, would have done nothing about any of them: they have no row."
        )
    elif bad:
        lines.append(
            "- Stopping, braking and going back wait for an alarm: they would have acted on "
            f"{len(first)} of {len(bad)} runs on bad advice (at step "
            f"{', '.join(map(str, sorted(first)))} of {results.setting.steps}). They were tried in "
            "[longer runs](#what-waits-for-an-alarm)."
        )
    return lines


def _left(results: RealResults) -> str:
    counts = sorted({len(d["near"]) for d in results.found["drawn"].values()})
    return " or ".join(map(str, counts))


def _mean(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return mean(known).words() if known else "–"


def _w(interval: Interval | None) -> str:
    return "–" if interval is None else interval.words(DIGITS)
