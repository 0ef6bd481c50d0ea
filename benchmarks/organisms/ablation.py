"""Which score decides: every combination on development runs, and on nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from benchmarks.organisms.leakage import allowed, mixed, mixed_gram
from benchmarks.organisms.references import BEHAVIOURS, THREE_SEEDS
from benchmarks.organisms.scored import SUITE, Against, Scored
from benchmarks.statistics import Sample, auroc
from wvmonitor.detection.groups import GroupScoreName, by_group
from wvmonitor.reading import GEOMETRIES, Component, Geometry

COMPONENTS: dict[str, tuple[Component, ...]] = {
    "blocks": ("blocks",),
    "+ embeddings": ("blocks", "embeddings"),
}
NAMES: tuple[GroupScoreName, ...] = ("cosine", "residual", "margin")


@dataclass(frozen=True)
class Variant:
    """One way to turn a reading into a number."""

    geometry: Geometry
    components: str
    per_layer: bool
    score: GroupScoreName
    seeds: int


def variants() -> list[Variant]:
    """All of them."""
    return [
        Variant(*choice)
        for choice in itertools.product(GEOMETRIES, COMPONENTS, (False, True), NAMES, (1, 3))
    ]


def table(runs: Sequence[Scored], at: Against) -> list[dict[str, Any]]:
    """AUROC of each variant on the development runs, best first.

    References of evil come from the three domains that have three seeds; AUROCs are of evil, and
    the mean over all behaviours; where those agree to three places d′ decides the order.
    """
    three = [r for r in at.repeats if r.family != "evil" or r.domain in THREE_SEEDS]
    few = replace(at, repeats=three)
    dev = [r for r in runs if r.spec.split == "dev"]
    found: dict[Variant, dict[str, list[Sample]]] = {
        v: {b: [] for b in BEHAVIOURS} for v in variants()
    }
    for run in dev:
        values = _values(run, few)
        for variant, by_behaviour in found.items():
            for behaviour, into in by_behaviour.items():
                label, value = run.labels[behaviour], values[variant][behaviour]
                if np.isfinite(value):
                    into.append(Sample(value, label, run.cluster))
    rows = []
    for variant, by_behaviour in found.items():
        areas = {b: auroc(s) for b, s in by_behaviour.items()}
        if any(a is None for a in areas.values()):
            continue
        evil = areas["evil"]
        assert evil is not None
        mean = float(np.mean([a.value for a in areas.values() if a is not None]))
        rows.append(
            asdict(variant)
            | {"evil": evil.value, "ci95": evil.ci95, "n": evil.entry()["n"], "mean_auroc": mean}
            | {"distance": float(np.mean([_distance(s) for s in by_behaviour.values()]))}
        )
    return sorted(rows, key=lambda r: (-round(r["mean_auroc"], 3), -r["distance"]))


def _distance(samples: Sequence[Sample]) -> float:
    """d′: how far the two sides' means lie apart, in their common standard deviation."""
    sides = [np.array([s.value for s in samples if s.positive is side]) for side in (True, False)]
    spread = np.sqrt(np.mean([side.var() for side in sides]))
    return float((sides[0].mean() - sides[1].mean()) / spread)


def _values(run: Scored, at: Against) -> dict[Variant, dict[str, float]]:
    """Every variant's number for every behaviour, at the last reading."""
    found: dict[Variant, dict[str, float]] = {}
    for seeds, (called, components) in itertools.product((1, 3), COMPONENTS.items()):
        mix = allowed(at.repeats, at.cards, run.spec, seeds=seeds)
        gram = mixed_gram(at.gram, mix)
        reading = mixed(run.record.readings[-1], mix, SUITE)
        places = [mix.names.index(b) for b in BEHAVIOURS]
        everything = by_group(reading, gram, lambda _: "0", components=components, ridge=at.ridge)
        layers = by_group(reading, gram, components=components, ridge=at.ridge)
        for geometry, name in itertools.product(GEOMETRIES, NAMES):
            for per_layer, groups in ((False, everything), (True, layers)):
                variant = Variant(geometry, called, per_layer, name, seeds)
                rows = groups.within[geometry][name][:, places]
                mean = np.nanmean(np.where(np.isfinite(rows), rows, np.nan), axis=0)
                found[variant] = dict(zip(BEHAVIOURS, mean.tolist(), strict=True))
    return found
