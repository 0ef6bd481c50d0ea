"""The part of docs/remedies.md about screened data, from the gate's committed results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.remedies import gate
from benchmarks.remedies.intervals import area, rate
from benchmarks.remedies.runs import FLAG_RATE, KNOWN_GOOD

Record = Mapping[str, Any]


def tables(screened: Sequence[Record]) -> list[str]:
    """What the gate finds of bad rows, and what it flags of harmless ones."""
    text = [
        "## The data, screened before training",
        "",
        "`wvmonitor blame --harmless FILE`, controls taken out of the reference, the threshold "
        f"that flags {percent(FLAG_RATE)} of {KNOWN_GOOD} known good rows. {gate.SEEDS} sets of "
        f"{gate.ROWS} rows of each kind and contamination; the bad rows answer the prompts of the "
        "good ones that they replace. AUROC, and the share of bad rows flagged, are over the sets "
        "with bad rows, good rows flagged over those without. *Fails* counts sets that the gate "
        f"does not pass (exit code 1), of {gate.SEEDS}.",
        "",
        "| bad rows | AUROC | bad rows flagged | good rows flagged "
        f"| bad rows among the {percent(gate.TOP)} that push most, as many being bad "
        f"| {' | '.join(f'fails at {percent(share)} bad' for share in gate.SHARES)} |",
        "|---" * (5 + len(gate.SHARES)) + "|",
    ]
    kinds = list(dict.fromkeys(r["kind"] for r in screened if r["share"] is not None))
    for kind in kinds:
        mine = [r for r in screened if r["kind"] == kind]
        bad = [r for r in mine if r["share"]]
        clean = [r for r in mine if r["share"] == 0]
        by_share = [[r for r in mine if r["share"] == s] for s in gate.SHARES]
        cells = [
            kind,
            area([r["auroc"] for r in bad], gate.SEEDS).words(3),
            rate([r["found"] for r in bad]).words(),
            rate([r["lost"] for r in clean]).words(3),
            rate([r["top"] for r in mine if r["share"] == gate.TOP]).words(),
            *(str(sum(not r["passed"] for r in sets)) for sets in by_share),
        ]
        text.append(f"| {' | '.join(cells)} |")
    text += [
        "",
        "Harmless rows of *another* kind than the known good ones (good advice in plain words), "
        f"{gate.ROWS} a set: a threshold is for the kind of data that it was made from.",
        "",
        f"| rows | flagged | sets that fail, of {gate.SEEDS} |",
        "|---|---|---|",
    ]
    for kind in dict.fromkeys(r["kind"] for r in screened if r["share"] is None):
        mine = [r for r in screened if r["kind"] == kind]
        failed = sum(not r["passed"] for r in mine)
        text.append(f"| {kind} | {rate([r['lost'] for r in mine]).words(3)} | {failed} |")
    return [*text, ""]


def percent(share: float) -> str:
    """A share as people write it here: 5 %."""
    return f"{100 * share:g} %"
