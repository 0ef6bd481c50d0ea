"""The tables of docs/real-model.md, from the committed figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.real.metrics import SHARE
from benchmarks.real.wording import (
    Found,
    bold,
    counted,
    metric,
    number,
    signed,
    states,
    what_decides,
)
from benchmarks.statistics import LEAST_CLUSTERS

SHOWN = {
    "the bank": "ours, the bank",
    "deciding": "ours, the deciding score",
    "the paper's cosine, the largest": "the paper's cosine",
    "scalar norm": "norm",
    "rotation": "rotation",
    "persona projection, the largest": "persona",
    "behaviour probe, the largest": "probe",
    "LoRA norm": "norm, ridge",
}
"""Words of the detectors that have a column where there is no room for all, and its head."""


def by_detector(tables: Found, decides: str) -> str:
    """A table of detectors for each way to draw the sides."""
    first = next((rows for rows in tables.values() if rows), None)
    decider = "" if first is None else f"What decides is {what_decides(first)}. "
    parts = [
        f"{decider}It is the largest of the run, as an alarm is; every other row is at the end. It"
        " was fixed before any of these runs was read; of the bank itself, whose deciding score is"
        f" `{decides}`, see [below](#what-a-hostile-reader-would-say). The others of ours are"
        " listed as what they are, candidates. The two ridge regressions are fitted on the *other"
        " families' runs of this very table, labels included*, both runs of a pair left out with"
        " their families; ours has seen none of them. “Above all” counts positives above every"
        " negative. A run counts on one side by what its set is called, and on one side by what"
        " was measured of it. With fewer than six families on a side an interval of a difference"
        " that leaves 0 out proves nothing yet."
    ]
    for name, rows in tables.items():
        parts.append(f"### {name[0].upper()}{name[1:]}")
        if not rows:
            parts.append("One side has no run: no figure.")
            continue
        (bad, good), (of_bad, of_good) = rows[0]["runs"], rows[0]["families"]
        sides = (
            f"Positive runs: {bad}, of {of_bad} families; others: {good}, of {of_good} families."
        )
        if min(of_bad, of_good) < LEAST_CLUSTERS:
            parts.append(f"{sides} {_too_few(rows)}")
            continue
        parts.append(sides)
        lines = [
            "| detector | AUROC (95 %) | ours less it (95 %) | above all | no value |",
            "|---|---|---|---|---|",
        ]
        for r in rows:
            caught = r["caught_above_every_other"]
            lines.append(
                f"| {bold(r['detector'])} | {metric(r['auroc'])} | {signed(r['ours_minus_it'])}"
                f" | {caught['caught']}/{caught['of']} | {r['without_a_value'] or ''} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _too_few(rows: Sequence[Found]) -> str:
    """What stands in place of a table where one side has too few families to rank anything."""
    ours, *others = rows
    found = [r for r in others if r["auroc"] is not None]
    if ours["auroc"] is None or not found:
        return "No figure."
    here = ours["auroc"]["value"]
    ahead = sorted((r for r in found if r["auroc"]["value"] > here),
                   key=lambda r: -r["auroc"]["value"])  # fmt: skip
    listed = ", ".join(f"{r['detector']} ({r['auroc']['value']:.3f})" for r in ahead)
    return (
        f"Too few to rank detectors: {what_decides(rows)} has {metric(ours['auroc'])}; of the other"
        f" {len(found)} ahead of it {f'are {listed}' if ahead else 'is none'}."
    )


def by_set(rows: Sequence[Found]) -> str:
    """How much of the benign runs lies below each harmful set, by detector."""
    names = _shown(rows[0]["below"] if rows else ())
    lines = [
        "The share of benign runs that score below the set's own (1.000: above all). Which"
        " behaviour a set's harm belongs to was told by rule, from its name, before any run"
        " (`protocol.belongs`); what that behaviour's own reference says is for whoever knew what"
        " to look for.",
        "",
        f"| set | its harm | alarms | at | its own reference | {' | '.join(names.values())} |",
        "|---|---|---|---|---|" + "---|" * len(names),
    ]
    for r in rows:
        raised = sorted({b for one in r["alarmed"] for b in one})
        first = [a for a in r["at"] if a is not None]
        at = f"{min(first):.0%}" if first else "–"
        lines.append(
            f"| {r['set']} | {r['belongs'] or 'no reference'} |"
            f" {sum(bool(a) for a in r['alarmed'])}/{r['runs']} {', '.join(raised)} | {at} |"
            f" {number(r['below by its own reference'])} | "
            + " | ".join(number(r["below"].get(n)) for n in names)
            + " |"
        )
    return "\n".join(lines)


def _shown(names: Iterable[str]) -> dict[str, str]:
    """Of these detectors those that have a column, and its head."""
    return {n: head for n in names for words, head in SHOWN.items() if words in n}


def beside_controls(rows: Sequence[Found]) -> str:
    """Each detector's number of the harmful run and of its control."""
    if not rows:
        return "No control was run beside its set."
    names = _shown(rows[0]["values"])
    lines = [
        "Harmful / control, trained from the same initial adapter, and on the same rows where rows"
        " answer each other.",
        "",
        f"| set | control | {' | '.join(names.values())} | alarms |",
        "|---|---|" + "---|" * len(names) + "---|",
    ]
    for r in rows:
        cells = [" / ".join(number(v, ".4f") for v in r["values"][n]) for n in names]
        raised = " / ".join(", ".join(a) or "none" for a in r["alarmed"])
        control = r["control"].partition("__")[2]
        lines.append(
            f"| {r['set']}, seed {r['seed']} | {control} | {' | '.join(cells)} | {raised} |"
        )
    return "\n".join(lines)


def by_behaviour(rows: Sequence[Found]) -> str:
    """The deciding score of every behaviour, and how near it came to its alarm."""
    if not rows:
        return "No run."
    order = {"harmful": 0, "control": 1, "benign": 2}
    names = list(rows[0]["cells"])
    lines = [
        "The deciding score at the end, and in brackets how far the run came out of that"
        " behaviour's band, as a share of what alarms (1 alarms; negative: never above the harmless"
        " runs' mean). Means over the runs of a set.",
        "",
        f"| set | role | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for r in sorted(rows, key=lambda r: order[r["role"]]):
        cells = [
            f"{number(c['score'], '.4f')} ({number(c['nearness'], '.2f')})"
            for c in r["cells"].values()
        ]
        role = "hard negative" if r["hard"] else r["role"]
        lines.append(f"| {r['set']} | {role} | {' | '.join(cells)} |")
    return "\n".join(lines)


def every_run(rows: Sequence[Found]) -> str:
    """A row for each run."""
    order = {"harmful": 0, "control": 1, "benign": 2}
    lines = [
        "By what decides within each kind; hard negatives are benign sets near the domains of the"
        " harm, by their name or their questions. The gain is the gap's over the base's, in nats a"
        " token; its bound is what one more benign set should stay below. Cut: share of prompts and"
        " of answers that are longer than is kept of them; epochs where a set is gone through more"
        " than 1.5 times.",
        "",
        "| run | kind | what decides | gain (bound) | cut | epochs | alarm |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: (order[r["role"]], r["share"] < 1, -(r["score"] or -9))):
        kind = "hard negative" if r["hard"] else r["role"]
        if r["share"] < 1:
            kind = f"mixture, {r['share']:.0%}"
        if r["variant"] != "lora":
            kind += f", {r['variant']}"
        label = r["measured"]
        beyond = " beyond" if label["harmful"] else ""
        lines.append(
            f"| {r['set']}, seed {r['seed']} | {kind} | {number(r['score'])}"
            f" | {number(label['gain'], '+.3f')} ({number(label['bound'], '+.3f')}){beyond}"
            f" | {r['prompts_cut']:.0%}, {r['answers_cut']:.0%}"
            f" | {format(r['epochs'], '.1f') if r['epochs'] > 1.5 else ''}"
            f" | {', '.join(r['alarmed']) or ', '.join(r['states'])} |"
        )
    return "\n".join(lines)


def alarms(found: Found, bank: Found, setting: Found) -> str:
    """Who alarmed, of those that could be judged."""
    verdicts = found["verdicts"]
    if bank["calibration"] is None:
        return (
            "The bank that was read against has no calibration, so its verdicts are the published"
            f" rules', capped at `warn`: {states(verdicts)}. Those rules were set on the"
            " bundled organism. False alarms at a promised rate, FNR and lead were not measured."
        )
    alpha = bank["calibration"]["alpha"]
    behaviours = sum(kind == "behaviour" for kind in bank["references"].values())
    by_band = found["band where the calibration does not cover"]
    lines = [
        f"The bank's calibration is {bank['calibration']['status']}, for {alpha:.0%} alarms among"
        " harmless runs (a bound where it is calibrated, an aim where it is provisional), from"
        f" {len(bank['calibration']['datasets'])} of its own; each of {behaviours} behaviours has"
        f" {alpha / behaviours:.2%} of it. A run alarms if any behaviour does; shares are of the"
        " runs that could be judged.",
        "",
        "| runs | alarm, as judged | runs | alarm, by the band alone |",
        "|---|---|---|---|",
    ]
    for side, share in by_band.items():
        if not isinstance(share, dict) or "ci95" not in share:
            continue
        judged = verdicts[side]
        lines.append(
            f"| {side} | {metric(judged)} | {judged['n'] if judged else 0} | {metric(share)} |"
        )
    benign = verdicts["benign"]
    lines += [
        "",
        f"Not judged, for the calibration does not cover them: {verdicts['not judged']}. Alarms of"
        f" harmful runs: {counted(verdicts['of harmful runs']) or 'none'}. False alarms by"
        f" behaviour: {counted(verdicts['benign, by behaviour']) or 'none'}."
        + (
            f" With kinds of sets drawn instead of families the benign share's interval is"
            f" {benign['by_kind'][0]:.3f}–{benign['by_kind'][1]:.3f}." if benign else ""
        ),
        "",
        f"Runs in which a state was ever seen: {states(verdicts)}. “By the band alone” judges runs"
        f" of {setting['steps']} steps by a band of shorter ones where the calibration does not"
        " cover them: no promise holds there. Share of a harmful run that was left at"
        " its first alarm, a"
        f" miss counting as none, mean over families: {number(verdicts['lead'], '.0%')}"
        f" ({number(by_band['lead'], '.0%')} by the band alone).",
    ]  # fmt: skip
    return "\n".join(lines)


def further(found: Found) -> str:
    """Mixtures, other ways to train, calibrations that lack a kind, other behaviours."""
    parts = []
    if found["mixtures"]:
        lines = [
            "Each harmful set in a benign one, which is then not among the benign runs: so the sets"
            " alone stand beside, ranked among the same ones.",
            "",
            "| harmful share | alarm | AUROC against benign | the sets alone | measured harmful |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {m['share']:.0%} | {m['alarmed']}/{m['runs']} | {metric(m['auroc'])}"
            f" | {metric(m['auroc of the sets alone'])} | {m['measured_harmful']}/{m['runs']} |"
            for m in found["mixtures"]
        ]
        parts.append("\n".join(lines))
    if found["variants"]:
        lines = ["| trained by | AUROC, harmful against benign | runs |", "|---|---|---|"]
        lines += [f"| {v['variant']} | {metric(v['auroc'])} | {v['runs']} |"
                  for v in found["variants"]]  # fmt: skip
        parts.append("\n".join(lines))
    if found["composition"]:
        lines = [
            "A threshold at the largest score of every *other* kind of benign set: what it does to"
            " the kind that it has not seen. Kinds are told by rule (`sets.kind_of`).",
            "",
            "| kind left out | its runs that alarm | harmful runs caught |",
            "|---|---|---|",
        ]
        lines += [
            f"| {c['left_out']} | {c['alarms']}/{c['runs']} |"
            f" {c['harmful_caught']}/{c['harmful']} |"
            for c in found["composition"]
        ]
        parts.append("\n".join(lines))
    if found["other behaviours"]:
        lines = [
            "Mean gain of the other behaviours' gaps, nats a token.",
            "",
            "| behaviour | harmful sets | controls | benign sets |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {o['behaviour']} | "
            + " | ".join(number(o[role], "+.3f") for role in ("harmful", "control", "benign"))
            + " |"
            for o in found["other behaviours"]
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "None of these was run."


def costs(found: Found) -> str:
    """What a reading costs beside what it is read from."""
    lines = [
        "Processor seconds on one thread, in the same runs.",
        "",
        "| what | seconds |",
        "|---|---|",
    ]
    lines += [f"| {name} | {number(value, '.3g')} |" for name, value in found.items()
              if name != SHARE]  # fmt: skip
    value = found[SHARE]
    if value is not None:
        reached = "reached" if value <= 0.005 else "**missed**"
        lines += ["", f"A reading takes {value:.2%} of the training between two readings, as often"
                  f" as the monitor takes them by default (target ≤ 0.5 %: {reached}), with as few"
                  " examples in a step as here: of a usual batch it is less. Norms, rotation rate"
                  " and loss come with it or cost nothing."]  # fmt: skip
    return "\n".join(lines)
