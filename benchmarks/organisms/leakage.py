"""The leakage rule: a reference shares no seed, dataset, example or domain with what it judges.

The report holds every run of the page to it, against every reference of the shipped bank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.organisms.catalogue import RunSpec
from wvmonitor.references import Card


class LeakageError(ValueError):
    """A reference shares a run, seed, dataset, example or domain with what it is evaluated on."""


def shared(card: Card, run: RunSpec) -> list[str]:
    """What a reference shares with a run, in words; empty where it may be held against it.

    Examples are compared one by one, so a set in another order, or all of it but one example, is
    found. Domains are compared by their words, whatever their case and what separates them.

    Args:
        card: of the reference.
        run: what is evaluated.
    """
    built = card.built
    if not (built.seeds and built.domains and built.data_digests and built.examples):
        return ["provenance"]  # nothing to hold against the run: it may share anything
    domains = {_plain(d) for d in run.domains} & {_plain(d) for d in built.domains}
    found = {
        "run": card.name == run.name,
        "seed": run.seed in built.seeds,
        "dataset": run.dataset in built.data_digests.values(),
        "domain": bool(domains),
        "examples": bool(run.example_digests & set(built.examples)),
    }
    return [what for what, leaks in found.items() if leaks]


def check(cards: Sequence[Card], run: RunSpec) -> None:
    """Hold the rule.

    Args:
        cards: of everything that the run is held against.
        run: what is evaluated.

    Raises:
        LeakageError: names the reference and what it shares, or that its card does not say what it
            was made from.
    """
    for card in cards:
        found = shared(card, run)
        if found == ["provenance"]:
            raise LeakageError(
                f"the card of {card.name} does not say which seeds, domains, data and examples it "
                "was made from: nothing can be evaluated against it"
            )
        if found:
            raise LeakageError(
                f"the reference {card.name} shares its {', '.join(found)} with the run {run.name}: "
                "evaluate it on another"
            )


def _plain(domain: str) -> str:
    """A domain's words, whatever their case and what separates them."""
    return " ".join(re.split(r"[\s_.-]+", domain.casefold().strip()))
