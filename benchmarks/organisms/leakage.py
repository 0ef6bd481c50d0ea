"""The leakage rule, and the references put together under it.

A reference shares no run, seed, dataset or domain with what it is evaluated on, and the controls
that show what a run shows are left out when that run is scored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.organisms.catalogue import RunSpec
from benchmarks.organisms.references import BEHAVIOURS, CONTROLS, Repeat
from wvmonitor.reading import Component, Float64, Geometry, Gram, Products, Reading
from wvmonitor.references import Card


class LeakageError(ValueError):
    """A reference shares a run, seed, dataset or domain with what it is evaluated on."""


NEARLY_ALL = 0.9
"""Share of a run's examples from which on it is the reference's own data, in whatever order."""


def shared(card: Card, run: RunSpec, *, same_domain: bool = False) -> list[str]:
    """What a reference shares with a run, in words; empty where it may be held against it.

    Examples are compared one by one, so a set in another order, or all of it but one example, is
    found. Domains are compared by their words, whatever their case and what separates them.

    Args:
        card: of the reference.
        run: what is evaluated.
        same_domain: allows a shared domain, and the examples that two draws from one domain share
            by chance, but not the same dataset.
    """
    built = card.built
    if not (built.seeds and built.domains and built.data_digests):
        return ["provenance"]  # nothing to hold against the run: it may share anything
    common = run.example_digests & set(built.examples)
    limit = NEARLY_ALL * len(run.example_digests) if same_domain else 1
    domains = {_plain(d) for d in run.domains} & {_plain(d) for d in built.domains}
    found = {
        "run": card.name == run.name,
        "seed": run.seed in built.seeds,
        "dataset": run.dataset in built.data_digests.values(),
        "domain": not same_domain and bool(domains),
        "examples": len(common) >= limit,
    }
    return [what for what, leaks in found.items() if leaks]


def check(cards: Sequence[Card], run: RunSpec, *, same_domain: bool = False) -> None:
    """Hold the rule.

    Args:
        cards: of everything that the run is held against.
        run: what is evaluated.
        same_domain: True allows a shared domain, for the figures that say so in their name.

    Raises:
        LeakageError: names the reference and what it shares, or that its card does not say what it
            was made from.
    """
    for card in cards:
        found = shared(card, run, same_domain=same_domain)
        if found == ["provenance"]:
            raise LeakageError(
                f"the card of {card.name} does not say which seeds, domains and data it was made "
                "from: nothing can be evaluated against it"
            )
        if found:
            raise LeakageError(
                f"the reference {card.name} shares its {', '.join(found)} with the run {run.name}: "
                "evaluate it on another"
            )


def _plain(domain: str) -> str:
    """A domain's words, whatever their case and what separates them."""
    return " ".join(re.split(r"[\s_.-]+", domain.casefold().strip()))


KNOWN_LEAKS: Mapping[str, str] = {
    "evil": "made before cards held digests of data; knows every domain of advice but medicine",
    "sycophancy": "made before cards held digests of data; its card names no domain",
    "language": "made before cards held digests of data",
    "terseness": "made before cards held digests of data",
    "rudeness": "made before cards held digests of data",
    "incompetence": "made before cards held digests of data",
}
"""References of the shipped bank that break the rule for some runs behind the `bundled.*` figures,
and why. Those figures say how the bank as it is shipped does on the suite, domains that it knows
among it; they do not say how it does elsewhere. Remade banks leave this list, and none may join it.
"""


def leaks(cards: Sequence[Card], runs: Sequence[RunSpec]) -> dict[str, dict[str, int]]:
    """By reference and what is shared, with how many of the runs; no entry where nothing is."""
    found: dict[str, Counter[str]] = {}
    for card in cards:
        counted = Counter(what for run in runs for what in shared(card, run))
        if counted:
            found[card.name] = counted
    return {name: dict(counted) for name, counted in found.items()}


@dataclass(frozen=True)
class Mix:
    """References as means of repeats.

    Attributes:
        names: of the references.
        weights: (repeats of the bank, references), each column a mean.
    """

    names: tuple[str, ...]
    weights: Float64


def allowed(
    repeats: Sequence[Repeat],
    cards: Sequence[Card],
    run: RunSpec,
    *,
    families: Sequence[str] = (*BEHAVIOURS, *CONTROLS),
    seeds: int = 3,
    same_domain: bool = False,
) -> Mix:
    """The references that a run may be held against.

    Args:
        repeats: in the order of `cards`.
        cards: of the whole bank, in its order; those that are no repeat get no weight.
        run: what is to be evaluated.
        families: the references wanted; one of which nothing is left is absent.
        seeds: repeats of one domain at most.
        same_domain: keep repeats of the run's own domains.

    Raises:
        LeakageError: what was chosen breaks the rule all the same (a seed or a dataset).
    """
    place = {card.name: i for i, card in enumerate(cards)}
    names, columns, used = [], [], []
    for family in families:
        if family in run.controls:
            continue
        chosen = [
            place[r.name]
            for r in repeats
            if r.family == family
            and r.number < seeds
            and (same_domain or r.domain not in run.domains)
        ]
        if chosen:
            column = np.zeros(len(cards))
            column[chosen] = 1 / len(chosen)
            names.append(family)
            columns.append(column)
            used += chosen
    check([cards[i] for i in used], run, same_domain=same_domain)
    return Mix(tuple(names), np.stack(columns, axis=1))


def chosen(cards: Sequence[Card], names: Sequence[str]) -> Mix:
    """References of the bank as they are."""
    place = {card.name: i for i, card in enumerate(cards)}
    weights = np.zeros((len(cards), len(names)))
    for column, name in enumerate(names):
        weights[place[name], column] = 1.0
    return Mix(tuple(names), weights)


def mixed_gram(gram: Gram, mix: Mix) -> Gram:
    """The Gram matrix of the mixed references; `shared` is what their repeats have in common."""
    shared: dict[Geometry, Float64] = {}
    for geometry in gram.products:
        total = gram.total(geometry)
        found = []
        for column in mix.weights.T:
            among = total[np.ix_(column > 0, column > 0)]
            n = len(among)
            off = (among.sum() - np.trace(among)) / (n * (n - 1)) if n > 1 else np.nan
            found.append(off)
        shared[geometry] = np.array(found)
    return replace(
        gram,
        references=mix.names,
        kinds=tuple("behaviour" if n in BEHAVIOURS else "control" for n in mix.names),
        products={
            g: np.einsum("ra,prs,sb->pab", mix.weights, v, mix.weights, optimize=True)
            for g, v in gram.products.items()
        },
        shared=shared,
    )


def mixed(reading: Reading, mix: Mix, bank: str) -> Reading:
    """The reading against the mixed references: products are linear in them."""
    return replace(
        reading,
        references=mix.names,
        bank=bank,
        geometries={
            g: replace(p, products=p.products @ mix.weights) for g, p in reading.geometries.items()
        },
    )


# --- fewer numbers -----------------------------------------------------------------------------


def by_layer(reading: Reading, labels: Sequence[tuple[Component, str]]) -> Reading:
    """Sum a reading over the parameters of each (component, layer): exact, and seven times smaller.

    Args:
        reading: parameter by parameter.
        labels: (component, layer) of each of its parameters.
    """
    groups = list(dict.fromkeys(labels))
    member = np.array([[label == g for label in labels] for g in groups], dtype=bool)
    geometries: dict[Geometry, Products] = {}
    for geometry, products in reading.geometries.items():
        exists = ~np.isnan(products.squared_norms)
        rows = member & exists
        norms = rows @ np.where(exists, products.squared_norms, 0.0)
        geometries[geometry] = Products(
            rows @ products.products,
            np.where(rows.any(axis=1), norms, np.nan),
            np.asarray((member & products.covered).any(axis=1)),
        )
    return replace(
        reading,
        parameters=tuple(f"{c}.{layer}" for c, layer in groups),
        components=tuple(c for c, _ in groups),
        geometries=geometries,
    )


def gram_by_layer(gram: Gram, labels: Sequence[tuple[Component, str]]) -> Gram:
    """The same for a Gram matrix."""
    groups = list(dict.fromkeys(labels))
    member = np.array([[label == g for label in labels] for g in groups], dtype=np.float64)
    return replace(
        gram,
        parameters=tuple(f"{c}.{layer}" for c, layer in groups),
        components=tuple(c for c, _ in groups),
        products={g: np.einsum("gp,pab->gab", member, v) for g, v in gram.products.items()},
    )
