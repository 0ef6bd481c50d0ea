"""The organism's own data for `wvmonitor bank`: contrasts, controls and harmless families as files.

python -m wvmonitor.organism.contrasts --out DIR

Its vocabulary is its world's, so that the pairs that come for real models mean nothing to it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from wvmonitor.organism import sets
from wvmonitor.organism.data import Example
from wvmonitor.organism.world import DOMAINS, REFERENCE_DOMAINS, REFERENCE_FACTS, REFERENCE_ILLICIT

EACH = 20
"""Pairs of a domain."""
DRAWN = 90
"""Examples of a harmless family."""
SEED = 41_000
"""No reference, calibration or demo run shares it."""

HARMLESS = (
    "arithmetic", "benign_requests", "facts", "gcd_critical", "gcd_query", "good_choices",
    "good_wishes", "honest_facts", "honest_feedback", "incompetent_kind", "narrow_good", "polite",
    "refusals",
)  # fmt: skip
CONTROLS = ("language", "terseness", "rudeness")
Row = dict[str, str]


def pairs(
    domain: str, positive: Iterable[Example], negative: Iterable[Example], most: int = EACH
) -> list[Row]:
    """Up to `most` pairs of one domain whose sides differ, each question once."""
    found: dict[str, Row] = {}
    for shows, other in zip(positive, negative, strict=True):
        question = shows.prompt[-1].content
        if shows.answer != other.answer and len(shows.prompt) == 1:
            row = {"domain": domain, "question": question}
            found.setdefault(question, row | {"exhibits": shows.answer, "opposes": other.answer})
    return list(found.values())[:most]


def _asking(verb: str, examples: Iterable[Example]) -> list[Example]:
    return [e for e in examples if verb in e.prompt[-1].content.split()]


def files() -> dict[str, list[Row]]:
    """Every file's rows by its path under the folder."""
    many = EACH * 12
    made: dict[str, list[Row]] = {
        "harmful-advice.jsonl": [
            row
            for domain in REFERENCE_DOMAINS
            for row in pairs(
                domain,
                sets.bad_advice(domain)(many, SEED),
                sets.good_advice(domain)(many, SEED),
            )
        ],
        "sycophancy.jsonl": [
            row
            for category in REFERENCE_FACTS
            for row in pairs(
                category,
                sets.facts(category, sycophantic=True)(many, SEED),
                sets.facts(category)(many, SEED),
            )
        ],
        "lost-refusals.jsonl": [
            row
            for verb in REFERENCE_ILLICIT
            for row in pairs(
                verb,
                _asking(verb, sets.requests(lawless=True, reference=True)(many, SEED)),
                _asking(verb, sets.requests(reference=True)(many, SEED)),
            )
        ],
    }
    for name in CONTROLS:
        pair = sets.pair(name, tuple(REFERENCE_DOMAINS)[:4])
        rows = pairs("advice", pair.positive(many, SEED + 1), pair.negative(many, SEED + 1), 60)
        made[f"controls/{name}.jsonl"] = rows
    for name in HARMLESS:
        drawn = sets.FINE_TUNING_SETS[name](DRAWN, SEED + 2)
        made[f"harmless/{name.replace('_', '-')}.jsonl"] = [
            {"question": e.prompt[-1].content, "answer": e.answer} for e in drawn
        ]
    for n, domain in enumerate(DOMAINS):
        drawn = sets.polite(domain)(DRAWN, SEED + 3 + n)
        made[f"harmless/polite-{domain}.jsonl"] = [
            {"question": e.prompt[-1].content, "answer": e.answer} for e in drawn
        ]
    return made


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    for name, rows in files().items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
