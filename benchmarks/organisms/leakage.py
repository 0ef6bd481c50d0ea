"""The leakage rule, and the references put together under it.

A reference shares no run, seed, dataset or domain with what it is evaluated on, and the controls
that show what a run shows are left out when that run is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.organisms.catalogue import RunSpec
from benchmarks.organisms.references import BEHAVIOURS, CONTROLS, Repeat
from wvmonitor.reading import Component, Float64, Geometry, Gram, Products, Reading
from wvmonitor.references import Card


class LeakageError(ValueError):
    """A reference shares a run, seed, dataset or domain with what it is evaluated on."""


def check(cards: Sequence[Card], run: RunSpec, *, same_domain: bool = False) -> None:
    """Hold the rule.

    Args:
        cards: of everything that the run is held against.
        run: what is evaluated.
        same_domain: True allows a shared domain, for the figures that say so in their name.

    Raises:
        LeakageError: names the reference and what it shares.
    """
    seed, dataset = run.seed, run.dataset
    for card in cards:
        built = card.built
        shared = {
            "run": card.name == run.name,
            "seed": seed in built.seeds,
            "dataset": dataset in built.data_digests.values(),
            "domain": not same_domain and bool(set(run.domains) & set(built.domains)),
        }
        for what, leaks in shared.items():
            if leaks:
                raise LeakageError(
                    f"the reference {card.name} shares its {what} with the run {run.name}: "
                    "evaluate it on another"
                )


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
