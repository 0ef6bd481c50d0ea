"""Which score should decide, by what bank and calibration hold: no held-out run is looked at.

A bank that is built for a real model chooses its deciding score on development runs
(`wvmonitor.builder.power`). The organism's bank keeps of its own making the inner products of each
reference's repeats, in both geometries: the cosine of each repeat with the mean of the others says
how far a new run that shows the behaviour would come, and the calibration's runs how far harmless
ones do. Distances and the choice among the scores are the builder's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.organisms.labels import BEHAVIOURS
from benchmarks.organisms.scored import Scored
from wvmonitor.builder.power import CANDIDATES, CLEARLY, deciding, distance
from wvmonitor.detection.band import DecidingScore
from wvmonitor.reading import Geometry
from wvmonitor.references import Card
from wvmonitor.references.trust import Separation

KEPT = ("cosine", "residual")
"""Of the builder's candidates those that the tables hold."""

Decides = tuple[Geometry, DecidingScore]
"""A score by its geometry and name."""

DEFAULT: Decides = CANDIDATES[0]
"""What decides where no other score is clearly better."""

SHIPPED: Decides = ("response", "residual")
"""What the bundled calibration decides by, as `wvmonitor calibrate` does without options."""


def choice(cards: Mapping[str, Card], harmless: Sequence[Scored]) -> dict[str, Any]:
    """How far each score would tell the behaviours from harmless runs, and which should decide.

    Args:
        cards: of the behaviours' references.
        harmless: the calibration's runs.
    """
    rows = []
    for geometry, score in CANDIDATES:
        if score not in KEPT:
            continue
        each: dict[str, list[float]] = {}
        for b in BEHAVIOURS:
            good = [r.final(b, geometry, score) for r in harmless]
            each[b] = [distance(v, good) for v in left_one_out(cards[b].repeats[geometry])]
        by = {b: fmean(values) for b, values in each.items()}
        rows.append(
            {
                "geometry": geometry,
                "score": score,
                "d": fmean(by.values()),
                "by_behaviour": by,
                "least": {b: min(values) for b, values in each.items()},
            }
        )
    told = [Separation(**{k: row[k] for k in ("geometry", "score", "d")}) for row in rows]
    return {
        "runs": len(harmless),
        "clearly": CLEARLY,
        "candidates": rows,
        "default": list(DEFAULT),
        "shipped": list(SHIPPED),
        "chosen": list(deciding(told)),
    }


def left_one_out(inner: Sequence[Sequence[float]]) -> list[float]:
    """The cosine of each repeat with the mean of the others.

    Args:
        inner: (n, n), ⟨w_i, w_j⟩.
    """
    gram = np.array(inner)
    found = []
    for i in range(len(gram)):
        others = np.arange(len(gram)) != i
        size = np.sqrt(gram[i, i] * gram[np.ix_(others, others)].mean())
        found.append(float(gram[i, others].mean() / size))
    return found
