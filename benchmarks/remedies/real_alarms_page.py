"""The part of docs/remedies.md about what waits for an alarm on a real model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import fmean

from benchmarks.real.protocol import DECIDES
from benchmarks.remedies.intervals import Interval, span
from benchmarks.remedies.real import BASE
from benchmarks.remedies.real_alarms import (
    BACK_AND_ON,
    BACK_AND_STOP,
    BAD,
    BRAKE,
    CELLS,
    NOTHING,
    ROUNDED,
    STOP,
    TURN,
    Cell,
)
from benchmarks.remedies.real_results import (
    DIGITS,
    LEAST_SEEDS,
    UNDECIDED,
    Measure,
    RealResults,
    Record,
    against,
    below,
    lost,
    over,
)
from benchmarks.remedies.tables import MET, MISSED, as_table

_SAID = {
    STOP: "stop",
    BACK_AND_STOP: "go back, stop there",
    BRAKE: "brake: go on, {k:g} × {name} from the alarm on",
    BACK_AND_ON: "go back, go on with {k:g} × {name}; stop if it alarms again",
}
_PLAIN = {STOP: "stopped", BACK_AND_STOP: "gone back and stopped", BRAKE: "braked"}


def results_of(found: Mapping[str, object]) -> RealResults:
    """The committed results."""
    return RealResults(found, base=BASE)


def section(results: RealResults) -> list[str]:
    """The section: what was done, both tables, and what the rules fixed beforehand say of them."""
    s, found = results.setting, results.found
    counted = [len(results.of(c)) for c in CELLS if results.of(c)]
    first_bad = found["setting"]["first_bad"]
    text = [
        "### What waits for an alarm",
        "",
        f"{sum(counted)} fine-tunes of {found['model']}, {span(counted)} a cell, watched by the "
        f"bank `{found['bank'][:16]}…` (`wvmonitor bank --quick`, provisional, one seed a "
        f"reference), with the settings that ship: {s.steps} steps of {s.batch_size}, a reading "
        f"and a checkpoint every {s.steps // s.readings}. They are longer than the runs above, of "
        "which one in three alarmed. Domains and questions are theirs; of the other domain "
        f"{len(next(iter(found['drawn'].values()))['elsewhere'])} questions are asked. Everything "
        "that alarms is answered, whichever behaviour it is.",
        "",
        "- **Questions trained on** come first here: it is there that bad advice is learned, and "
        "elsewhere next to nothing of it arrives (above, and in a look at finished runs of "
        "docs/real-model.md before these were planned: by both of its runs on bad advice the gap "
        "on the questions trained on was moved by 0.92, in the other domain by 0.00 and 0.01).",
        "- **No dose can be told** of a reference of one seed: the brake takes none out, and "
        "`steer --remove` without a number refuses. A number is given instead.",
        "",
    ]
    for data in (BAD, TURN):
        if not results.of(Cell(data, NOTHING)):
            continue
        told = (
            f"**{data.capitalize()}**."
            if data == BAD
            else f"**{data.capitalize()}**: the first bad row comes at step {first_bad + 1}."
        )
        text += [told, "", *_table(results, data), "", *_alarms(results, data)]
        text += [*_what_it_means(results, data), ""]
    text += [*_rules(results), "", *_rounded(results)]
    if missing := [c.name for c in CELLS if not results.of(c)]:
        text += [f"Not run, and so in no table: {'; '.join(missing)}.", ""]
    return text


def _rounded(results: RealResults) -> list[str]:
    """What bfloat16 weights would keep of a repair."""
    record = next((r for r in results.found["records"] if r["cell"] == ROUNDED), None)
    if record is None:
        return []
    lost = ", ".join(f"{share:.0%} at {k}" for k, share in record["lost"].items())
    refused = len(record["refused"])
    return [
        f"**In bfloat16** the base's weights would round away {lost} × {DECIDES} (‖written − "
        f"asked‖ ÷ ‖k·w‖): `steer` does not write {refused} of these {len(record['lost'])} into "
        "them unless `--lossy` is said, but an adapter, which holds all of it.",
        "",
    ]


def short(results: RealResults) -> list[str]:
    """The lines of "In short"."""
    idle = results.of(Cell(BAD, NOTHING))
    if not idle:
        return []
    done = [(answer, results.of(Cell(BAD, answer))) for answer in _PLAIN]
    said = [f"{_PLAIN[a]} {words(over(runs, results.learned))}" for a, runs in done if runs]
    repaired = results.repaired(Cell(BAD, NOTHING), "2")
    if repaired:
        said.append(f"2 × {DECIDES} taken out at the end {words(over(repaired, results.learned))}")
    return [
        f"- **An alarm answered on the real model** ({len(idle)} runs a cell; "
        f"{len(_alarmed(idle))} of {len(idle)} alarm): with nothing done the gap on the questions "
        f"trained on is moved by {words(over(idle, results.learned))}; {', '.join(said)}. "
        "[The tables](#what-waits-for-an-alarm)."
    ]


def _treatments(results: RealResults, data: str) -> list[tuple[str, dict[int, Record]]]:
    found: list[tuple[str, dict[int, Record]]] = []
    for cell in (c for c in CELLS if c.data == data):
        runs = results.of(cell)
        if not runs:
            continue
        rode = [k for r in runs.values() for n, k in r["rode"].items() if n == DECIDES]
        said = _SAID.get(cell.answer, NOTHING).format(k=max(rode, default=1.0), name=DECIDES)
        found.append((said, runs))
        if cell.answer == NOTHING:
            for how in dict.fromkeys(h for r in runs.values() for h in r["repaired"]):
                left = results.repaired(cell, how)
                if left:
                    amount = how if how[0].isdigit() else "its measured dose of"
                    found.append((f"nothing; {amount} × {DECIDES} taken out at the end", left))
    return found


def _table(results: RealResults, data: str) -> list[str]:
    measures: list[tuple[str, Measure]] = [
        ("gap, questions trained on", results.learned),
        ("gap, trained domain", results.near),
        ("gap elsewhere", results.elsewhere),
    ]
    if data == TURN:
        measures.append(("loss on new stories", results.own))
    head = ["what is done", "n", "steps"]
    for name, _ in measures:
        head += [name, "against nothing done"]
    head += ["loss on ordinary text", "residual"]
    idle = results.of(Cell(data, NOTHING))
    lines = []
    for treatment, runs in _treatments(results, data):
        line = [treatment, str(len(runs)), _steps(runs)]
        for _, measure in measures:
            same = runs is idle or treatment == NOTHING
            line += [
                words(over(runs, measure)),
                "–" if same else words(against(runs, idle, measure)),
            ]
        line += [words(over(runs, results.ordinary)), _residual(runs)]
        lines.append(line)
    return as_table(head, lines)


def _steps(runs: Mapping[int, Record]) -> str:
    """How far what is left was trained: of a run that went back and stopped, to where it went."""
    counts = [
        r["last_step"] if r["went_back_to"] is None or _went_on(r) else r["went_back_to"]
        for r in runs.values()
        if "last_step" in r
    ]
    return span(counts) if counts else "–"


def _went_on(record: Record) -> bool:
    return bool(record["rode"])


def _residual(runs: Mapping[int, Record]) -> str:
    known = [r["residuals"]["frobenius"] for r in runs.values() if "residuals" in r]
    return f"{min(known):.4f} to {max(known):.4f}" if known else "–"


def _alarms(results: RealResults, data: str) -> list[str]:
    """What each run did at its alarm."""
    first_bad = results.found["setting"]["first_bad"] if data == TURN else 0
    lines = []
    for cell in (c for c in CELLS if c.data == data):
        runs = results.of(cell)
        if not runs:
            continue
        steps = ", ".join("none" if r["alarm"] is None else str(r["alarm"]) for r in runs.values())
        line = f"- {cell.answer}: first alarm at step {steps}"
        early = sum(r["alarm"] is not None and r["alarm"] <= first_bad for r in runs.values())
        if data == TURN:
            line += f"; before the first bad row in {early} of {len(runs)}"
        if cell.answer == NOTHING:
            alarmed = Counter(n for r in runs.values() for n in r["watched"]["alarms"])
            told = ", ".join(f"{name} in {n} of {len(runs)}" for name, n in alarmed.most_common())
            line += f"; alarms at any time: {told or 'none'}"
        back = [r["went_back_to"] for r in runs.values() if r["went_back_to"] is not None]
        line += f"; back to step {', '.join(map(str, back))}" if back else ""
        if cell.answer in (BACK_AND_STOP, BACK_AND_ON) and len(back) < len(
            alarmed := _alarmed(runs)
        ):
            line += f", in {len(alarmed) - len(back)} no checkpoint was ok: stopped at the alarm"
        if cell.answer in (BRAKE, BACK_AND_ON):
            rode = sorted({f"{k:g} × {n}" for r in runs.values() for n, k in r["rode"].items()})
            line += f"; {', '.join(rode) or 'nothing'} rode along"
        if cell.answer == BACK_AND_ON:
            again = [r["last_step"] for r in runs.values() if _again(r)]
            line += f"; {len(again)} of {len(runs)} alarmed again, and stopped"
            line += f" at step {', '.join(map(str, again))}" if again else ""
        lines.append(f"{line}.")
    return lines


def _what_it_means(results: RealResults, data: str) -> list[str]:
    """What a stop spares beside the steps it spares, and what a quiet score at the end is worth."""
    stopped = results.of(Cell(data, STOP))
    lines = []
    if data == BAD and stopped:
        steps = [r["last_step"] / results.setting.steps for r in stopped.values()]
        learned = _learned(results, data, STOP).values()
        lines.append(
            "- **A timer would do as well**: run by run, what is stopped has done "
            f"{_percent(steps)} of the steps and learned {_percent(learned)} "
            "of what it learns with nothing done. What the alarm adds is which run to stop: no "
            "harmless run of this length was put to it here, and on good answers by the same "
            "author [the same bank alarms, too](real-model.md)."
        )
    for answer in (BRAKE, BACK_AND_ON):
        runs = results.of(Cell(data, answer))
        shares, idle = _learned(results, data, answer), results.of(Cell(data, NOTHING))
        on = {s: runs[s] for s in shares if runs[s]["last_step"] == results.setting.steps}
        if not on:
            continue
        there = _percent(shares[seed] for seed in on)
        lines.append(
            f"- **A quiet score at the end proves nothing** ({answer.partition(';')[0]}): "
            f"{len(on)} of {len(runs)} reach the last step, with {there} of the learning there all "
            "the same, at a residual of "
            f"{_residuals(on.values())} ({_residuals(idle[s] for s in on)} with nothing done, and "
            f"{_residuals(stopped.values())} where it alarms). What rides along keeps w out of the "
            "weights, and with it the score, and not the answers."
        )
    return lines


def _learned(results: RealResults, data: str, answer: str) -> dict[int, float]:
    """By seed, the share of what nothing done teaches that is there."""
    runs, idle = results.of(Cell(data, answer)), results.of(Cell(data, NOTHING))
    return {
        s: fmean(results.learned(runs[s], s).values()) / fmean(results.learned(idle[s], s).values())
        for s in runs
        if s in idle
    }


def _percent(shares: Iterable[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)


def _residuals(runs: Iterable[Record]) -> str:
    return ", ".join(f"{r['residuals']['frobenius']:.4f}" for r in runs)


def _alarmed(runs: Mapping[int, Record]) -> list[Record]:
    return [r for r in runs.values() if r["alarm"] is not None]


def _again(record: Record) -> bool:
    return any(kind == "stop" and "although inoculated" in said for kind, said in record["events"])


def _rules(results: RealResults) -> list[str]:
    lines = [
        "What was to be looked for was fixed before the first run, in `real_alarms.py`: an effect "
        "is an interval of the difference below 0, on the questions trained on."
        + (
            f" Going back and on, of {BAD}, was added when its other runs had been read."
            if results.of(Cell(BAD, BACK_AND_ON))
            else ""
        ),
        "",
    ]
    for data in (BAD, TURN):
        idle = results.of(Cell(data, NOTHING))
        if not idle:
            continue
        found = over(idle, results.learned)
        lines.append(f"- {data}, nothing done, is learned: {words(found)}, {met(found.low > 0)}.")
        for cell in (c for c in CELLS if c.data == data and c.answer != NOTHING):
            runs = results.of(cell)
            less = against(runs, idle, results.learned)
            if less is None:
                continue
            line = f"- {data}, {cell.answer}: {words(less)}, {_verdict(runs, idle, less)}"
            if data == TURN and cell.answer in (BRAKE, BACK_AND_ON):
                cost = against(runs, idle, results.own)
                line += f"; no cost on new stories: {words(cost)}, {met(not lost(cost))}"
            lines.append(f"{line}.")
    if not results.of(Cell(TURN, NOTHING)):
        lines.append(
            "- that braking and going on cost nothing of a harmless first part, and that no alarm "
            "comes before the first bad row: **not tested**, for those runs were not made."
        )
    return lines


def _verdict(runs: Mapping[int, Record], idle: Mapping[int, Record], less: Interval) -> str:
    if len(set(runs) & set(idle)) < LEAST_SEEDS:
        return UNDECIDED
    return met(below(less))


def met(there: bool) -> str:  # noqa: FBT001  a verdict in words
    """Whether what was looked for is there."""
    return MET if there else MISSED


def words(interval: Interval | None) -> str:
    """A figure of these tables, with its interval."""
    return "–" if interval is None else interval.words(DIGITS)
