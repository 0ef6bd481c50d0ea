"""The leakage rule: a reference shares no seed, dataset, example or domain with what it judges.

The report holds every run of the page to it, against every reference of the shipped bank.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.organisms.catalogue import RunSpec
from wvmonitor.organism.bank import EXAMPLES, PLANS
from wvmonitor.organism.data import Example
from wvmonitor.organism.world import (
    ALL_DOMAINS,
    ALL_FACTS,
    ALL_SCENARIOS,
    DEEDS,
    FLAWS,
    FRENCH,
    PETS,
    PRAISE,
    REFERENCE_TASTES,
    REFERENCE_THINGS,
    REFERENCE_WORKS,
    TASTES,
    THINGS,
    WORKS,
)
from wvmonitor.reading import ReferenceKind
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


# --- by words ----------------------------------------------------------------------------------


def words_in_common(known: Mapping[str, frozenset[str]], run: RunSpec) -> dict[str, float]:
    """The share of what a run speaks of that a reference's data speaks of too, word for word.

    Names of domains can differ where what they hold is the same: so the words are compared that
    stand in the slots of the language, in questions and answers, each as often as the run says it.

    Args:
        known: by reference, the words of its data.
        run: what is evaluated.
    """
    said = Counter(w for e in run.data for m in e.messages for w in m.content.split() if w in SLOTS)
    if not said:  # numbers alone
        return dict.fromkeys(known, 0.0)
    return {
        name: sum(n for word, n in said.items() if word in words) / said.total()
        for name, words in known.items()
    }


def known_words(kind: ReferenceKind = "behaviour") -> dict[str, frozenset[str]]:
    """By reference of the shipped bank, the words that its data speaks of."""
    return {
        plan.name: spoken_of(
            example
            for index, part in enumerate(plan.parts)
            for side in part.sides()
            if side is not None
            for example in side(EXAMPLES, plan.seed + index)
        )
        for plan in PLANS
        if plan.kind == kind
    }


def spoken_of(examples: Iterable[Example]) -> frozenset[str]:
    """The words of examples that stand in the slots of the language."""
    return frozenset(w for e in examples for m in e.messages for w in m.content.split()) & SLOTS


def _slots() -> frozenset[str]:
    """Every word that says what is spoken of, in both languages; numbers are nobody's subject."""
    domains = ALL_DOMAINS.values()
    things = {w for d in domains for w in (*d.problems, *d.safe, *d.risky, *d.silly)}
    facts = [f for table in ALL_FACTS.values() for f in table]
    situations = {w for texts in ALL_SCENARIOS for text in texts for w in text.split()}
    found = {
        *things,
        *(f.right for f in facts),
        *(f.question.split()[-2] for f in facts),
        *DEEDS,
        *(*THINGS, *REFERENCE_THINGS, *WORKS, *REFERENCE_WORKS, *PRAISE, *FLAWS, *PETS),
        *(taste for pair in (*TASTES, *REFERENCE_TASTES) for taste in pair),
        *situations,
    } - _OF_ANY_SENTENCE
    french = {FRENCH[w] for w in found if w in FRENCH}
    return frozenset(w for w in found | french if not w.isdigit())


_OF_ANY_SENTENCE = frozenset((
    "a", "an", "the", "you", "your", "i", "it", "is", "in", "on", "of", "for", "to", "her", "him",
    "them", "his", "has", "may", "have", "yourself", "up", "over", "after", "away", "asks", "call",
    "cheer", "find", "friend", "last", "refuse",
))  # fmt: skip
"""Words of situations and deeds that questions and clauses of every kind have."""
SLOTS = _slots()
