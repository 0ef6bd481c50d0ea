"""`wvmonitor blame` as a gate: what it finds of bad rows, and what it flags of harmless ones.

No training: the pushes of a set's good rows, of the bad rows on the same prompts, and of other good
rows that are known to be so, from which sets of every contamination are put together. Five sets of
300 rows a kind; the threshold is that which flags one in a hundred of 240 known good rows, the
bank's controls are taken out of the reference, as the command does both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import mannwhitneyu

from benchmarks.blame import MIXTURES
from benchmarks.remedies.runs import BANK, BASE, FLAG_RATE, KNOWN_GOOD, as_rows
from wvmonitor.organism import sets
from wvmonitor.organism.data import rng_for
from wvmonitor.organism.train import load_base
from wvmonitor.references import ReferenceBank
from wvmonitor.steering.blame import Blamed, blame
from wvmonitor.steering.data_gate import Threshold, screened, threshold_of, without_controls

ROWS, SEEDS, FIRST_SEED = 300, 5, 300
SHARES = (0.0, 0.01, 0.05, 0.1)
TOP = 0.05

KINDS = ("bad medical advice", "cruel wishes", "caving about facts", "praise for anything")
"""Of `benchmarks.blame`'s mixtures, which has the others' AUROC."""

OTHERS: dict[str, sets.SetMaker] = {
    "good advice in another language": sets.language(),
    "terse advice": sets.terse(),
    "rude advice": sets.rude(),
    "useless advice, well meant": sets.incompetent_kind(),
    "honest facts": sets.facts(),
    "refusals": sets.requests(),
}
"""Harmless rows, held against known good ones of another kind: good advice in plain English."""


def run(path: Path) -> None:
    """Measure, and write the counts of every set."""
    torch.set_num_threads(1)
    bank = ReferenceBank.load(BANK)
    model, tokenizer = load_base(BASE)
    directions = {n: without_controls(bank, n)[0] for n in ("evil", "sycophancy")}

    def pushes(rows: Sequence[Any], reference: str) -> list[Blamed]:
        """In the order of the rows."""
        ranked = blame(model, as_rows(rows, tokenizer), directions[reference])
        return sorted(ranked, key=lambda b: b.example.index)

    found: list[dict[str, Any]] = []
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS):
        for kind in KINDS:
            bad, good, reference = MIXTURES[kind]
            known = pushes(good(KNOWN_GOOD, seed + 900), reference)
            rows, bad_rows = good(ROWS, seed), bad(ROWS, seed)
            # a fact asked without a hint is answered alike by both: no bad row
            wrong = [i for i in range(ROWS) if rows[i] != bad_rows[i]]
            order = rng_for("gate", kind, seed).sample(wrong, round(max(SHARES) * ROWS))
            clean = pushes(rows, reference)
            dirty = dict(zip(order, pushes([bad_rows[i] for i in order], reference), strict=True))
            threshold = threshold_of(known, FLAG_RATE)
            for share in SHARES:
                chosen = set(order[: round(share * ROWS)])
                mixed = [dirty[i] if i in chosen else clean[i] for i in range(ROWS)]
                found.append({"kind": kind, "share": share} | _judged(mixed, chosen, threshold))
            print(kind, seed, found[-1], flush=True)
        plain = threshold_of(pushes(sets.good_advice()(KNOWN_GOOD, seed + 900), "evil"), FLAG_RATE)
        for name, maker in OTHERS.items():
            other = pushes(maker(ROWS, seed), "evil")
            found.append({"kind": name, "share": None} | _judged(other, set(), plain))
    path.write_text(json.dumps({"bank": bank.fingerprint, "sets": found}, indent=1) + "\n")


def _judged(rows: Sequence[Blamed], bad: set[int], threshold: Threshold) -> dict[str, Any]:
    """What the gate says of a set, of which these places are bad."""
    push = {i: b.push for i, b in enumerate(rows)}
    outcome = screened(rows, threshold)
    flagged = {i for i in push if push[i] > threshold.push}
    top = set(sorted(push, key=lambda i: -push[i])[: math.ceil(TOP * len(rows))])
    judged: dict[str, Any] = {
        "found": [len(flagged & bad), len(bad)],
        "lost": [len(flagged - bad), len(rows) - len(bad)],
        "top": [len(top & bad), len(bad)],
        "passed": outcome.passed,
    }
    if bad:
        of_bad, others = ([push[i] for i in push if (i in bad) is side] for side in (True, False))
        area = float(mannwhitneyu(of_bad, others).statistic) / (len(of_bad) * len(others))
        judged["auroc"] = area
    return judged
