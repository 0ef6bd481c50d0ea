"""The part of docs/remedies.md about training on what the real model's gate leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.remedies.intervals import rate
from benchmarks.remedies.real import BASE
from benchmarks.remedies.real_alarms_page import met, words
from benchmarks.remedies.real_cleaned import AS_IT_IS, CLEANED
from benchmarks.remedies.real_results import RealResults, Record, against, below, over
from benchmarks.remedies.tables import as_table


class _Cell:
    def __init__(self, name: str) -> None:
        self.name = name


def results_of(found: Mapping[str, Any]) -> RealResults:
    """The committed results."""
    return RealResults(found, base=BASE)


def section(results: RealResults) -> list[str]:
    """The section: the table, and what the rules fixed beforehand say of it."""
    s, found = results.setting, results.found
    idle, cleaned = results.of(_Cell(AS_IT_IS)), results.of(_Cell(CLEANED))
    if not idle or not cleaned:
        return []
    lines = []
    for cell, runs in ((AS_IT_IS, idle), (CLEANED, cleaned)):
        same = runs is idle
        line = [cell, str(len(runs)), _dropped(runs, "dropped"), _dropped(runs, "lost")]
        for measure in (results.learned, results.elsewhere):
            line.append(words(over(runs, measure)))
            line.append("–" if same else words(against(runs, idle, measure)))
        lines.append([*line, words(over(runs, results.ordinary))])
    head = [
        "trained on", "n", "bad rows dropped", "other rows dropped",
        "gap, questions of the bad rows", "against as it is",
        "gap, other held-out questions", "against as it is", "loss on ordinary text",
    ]  # fmt: skip
    learned = over(idle, results.learned)
    less = against(cleaned, idle, results.learned)
    held_out = against(cleaned, idle, results.elsewhere)
    return [
        "#### The real model, trained on what is left",
        "",
        f"{len(idle) + len(cleaned)} fine-tunes on the three sets that are 10 % bad "
        f"(harmful-advice), {s.steps} steps of {s.batch_size} (an epoch), and on what `--drop "
        f"10%` leaves of them, counted *{found['counted']}*: as many rows as there are bad ones, "
        "which a user does not know. *In all* was chosen on this behaviour, and the share of bad "
        "rows that it drops is a development figure: of the two behaviours it was not chosen on, "
        "the rows' own loss finds more bad rows there (above); it was not tried as a cleaner. "
        "The steps were cut, from 50 to 36 and to 25, after the rules had been written down.",
        "",
        *as_table(head, lines),
        "",
        "Fixed before the runs, in `real_cleaned.py`: an effect is an interval below 0.",
        "",
        f"1. as it is, the set teaches its bad answers: {words(learned)}, {met(learned.low > 0)}.",
        f"2. cleaned, it teaches less of them: {words(less)}, {met(below(less))}.",
        "3. on other held-out questions cleaned is below as it is: "
        f"{words(held_out)}, {met(below(held_out))}.",
        "",
    ]


def short(results: RealResults) -> list[str]:
    """The lines of "In short"."""
    idle, cleaned = results.of(_Cell(AS_IT_IS)), results.of(_Cell(CLEANED))
    less = against(cleaned, idle, results.learned)
    if less is None:
        return []
    return [
        f"- **Trained on a cleaned set, on the real model** ({len(cleaned)} sets, 10 % bad, of "
        f"whose bad rows `--drop 10%` takes {_dropped(cleaned, 'dropped')}): the gap on the bad "
        f"rows' questions is moved by {words(over(cleaned, results.learned))}, as it is by "
        f"{words(over(idle, results.learned))}, a difference of {words(less)}. "
        "[The table](#the-real-model-trained-on-what-is-left)."
    ]


def _dropped(runs: Mapping[int, Record], what: str) -> str:
    return rate([r[what] for r in runs.values()]).words()
