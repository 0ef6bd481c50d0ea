"""Scores: statistics of a reading, in float64 on a few kilobytes.

Every score is computed in each geometry in which it exists, and names it. The formulas, one
function each, are in `formulas.py`; what a score means is in the design, section 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from wvmonitor.detection import formulas
from wvmonitor.detection.formulas import Column, choose_ridge
from wvmonitor.errors import SettingsError
from wvmonitor.reading import GEOMETRIES, Component, Geometry, Gram, Reading, ReferenceKind

__all__ = [
    "COVERAGE_FLOOR",
    "SCORE_NAMES",
    "ReferenceScores",
    "ScoreName",
    "Scores",
    "choose_ridge",
    "covers_a_part",
    "is_covered",
    "judged_norm",
    "resolve_ridge",
    "score",
    "share_in_scope",
]

ScoreName = Literal["cosine", "residual", "margin", "module_cosine", "window"]
SCORE_NAMES: tuple[ScoreName, ...] = get_args(ScoreName)

COVERAGE_FLOOR = 0.5
"""Below this share of ‖τ‖² where references look, nothing can be judged."""


@dataclass(frozen=True)
class ReferenceScores:
    """What one reading says about one reference.

    Attributes:
        kind: behaviour or control; verdicts are passed on behaviours only.
        values: by geometry, then by score. A score that cannot be computed is absent; one that
            came out as NaN or infinite is kept as such, so that the verdict can say unknown.
        dose: the steering coefficient k for which k·w explains τ, corrected for noise; None where
            the reference has no independent repeats. In the response geometry where it is known
            there, else Frobenius.
        doses: the same, in each geometry where it is known.
    """

    reference: str
    kind: ReferenceKind
    values: Mapping[Geometry, Mapping[ScoreName, float]]
    dose: float | None = None
    doses: Mapping[Geometry, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """The scores of one reading against every reference of a bank.

    Attributes:
        norm: ‖τ‖ over every parameter, Frobenius.
        coverage: by geometry, the share of ‖τ‖² that lies where the scores look.
        components: the parts of the model that the scores sum over.
        ridge: by geometry, the λ of `residual`.
        bank: fingerprint of the bank measured against; "" where it is not known.
        unmeasurable: why no verdict may rest on them; None where one may.
        lag: steps in the window of `window`, where there is one and they are known.
        shares: the share of ‖τ‖² in each part of the model; empty where it is not known.
    """

    references: Mapping[str, ReferenceScores]
    norm: float
    coverage: Mapping[Geometry, float]
    step: int | None = None
    progress: float | None = None
    warnings: tuple[str, ...] = ()
    components: tuple[Component, ...] = ("blocks",)
    ridge: Mapping[Geometry, float] = field(default_factory=dict)
    bank: str = ""
    lag: int | None = None
    unmeasurable: str | None = None
    shares: Mapping[Component, float] = field(default_factory=dict)


def score(
    reading: Reading,
    gram: Gram,
    *,
    earlier: Reading | None = None,
    components: tuple[Component, ...] = ("blocks",),
    ridge: float | Mapping[Geometry, float] | None = None,
) -> Scores:
    """Compute every score of one reading, in every geometry that reading and bank share.

    At τ = 0 no direction exists: `values` is empty, every dose is 0, and the verdict is warming.
    Of a reference that touches nothing of what has moved there is neither score nor dose: it was
    not compared, which is not the same as being orthogonal.

    Args:
        reading: the measurement at this step.
        gram: inner products among the references of the same bank.
        earlier: the reading of the snapshot that `Products.lagged` refers to, for `window`.
        components: the parts of the model to sum over. (Doses are always of the blocks, where
            the bank knows what independent repeats share.)
        ridge: λ of `residual`, > 0, for all geometries or by geometry; None chooses it by
            `choose_ridge`.

    Raises:
        UnknownReferenceError: reading and Gram matrix do not hold the same references.
        SettingsError: a ridge that is not a positive number.
    """
    geometries = [g for g in GEOMETRIES if g in reading.geometries and g in gram.products]
    values: dict[str, dict[Geometry, dict[ScoreName, float]]] = {r: {} for r in gram.references}
    doses: dict[str, dict[Geometry, float]] = {r: {} for r in gram.references}
    ridges: dict[Geometry, float] = {}
    coverage: dict[Geometry, float] = {}
    warnings = list(reading.warnings)
    with np.errstate(invalid="ignore", over="ignore"):
        shares = reading.component_shares()
    for geometry in geometries:
        sums = formulas.collect(reading, gram, geometry, components)
        blocks = sums
        if components != ("blocks",):
            blocks = formulas.collect(reading, gram, geometry, ("blocks",))
        ridges[geometry] = resolve_ridge(ridge, gram, geometry, components)
        # Broken weights come out as NaN, which the verdict says; numpy need not.
        with np.errstate(invalid="ignore", over="ignore"):
            moving, odd = formulas.window(reading, earlier, gram, geometry, components)
            known, alone = formulas.dose(blocks, gram, geometry)
            coverage[geometry] = reading.coverage(components, geometry)
            columns: dict[ScoreName, Column] = {
                "cosine": formulas.cosine(sums),
                "residual": formulas.residual(sums, ridges[geometry]),
                "margin": formulas.margin(sums),
                "module_cosine": formulas.module_cosine(reading, gram, geometry, components),
                "window": moving,
            }
        warnings += [w for w in (odd, alone) if w is not None and w not in warnings]
        for i, reference in enumerate(gram.references):
            by_score = {n: float(c.values[0, i]) for n, c in columns.items() if c.exists[0, i]}
            if by_score:
                values[reference][geometry] = by_score
            # where nothing that it touches has moved, no dose is known (0 at τ = 0, of course)
            if reference in known and (blocks.overlap[0, i] > 0 or not reading.norm() > 0):
                doses[reference][geometry] = known[reference]
    return Scores(
        references={
            r: ReferenceScores(
                reference=r,
                kind=kind,
                values=values[r],
                dose=doses[r].get("response", doses[r].get("frobenius")),
                doses=doses[r],
            )
            for r, kind in zip(gram.references, gram.kinds, strict=True)
        },
        norm=reading.norm(),
        coverage=coverage,
        step=reading.step,
        progress=reading.progress,
        warnings=tuple(warnings),
        components=components,
        ridge=ridges,
        bank=reading.bank,
        lag=None
        if reading.step is None or reading.lag_step is None
        else reading.step - reading.lag_step,
        unmeasurable=reading.unmeasurable,
        shares=shares,
    )


def resolve_ridge(
    ridge: float | Mapping[Geometry, float] | None,
    gram: Gram,
    geometry: Geometry,
    components: tuple[Component, ...],
) -> float:
    """λ in one geometry: the one that was asked for, else `choose_ridge`."""
    value = ridge.get(geometry) if isinstance(ridge, Mapping) else ridge
    if value is None:
        return choose_ridge(gram, geometry, components)
    if not (math.isfinite(value) and value > 0):
        raise SettingsError(f"ridge must be a positive number, got {value}: leave it out to choose")
    return float(value)


def share_in_scope(scores: Scores) -> float:
    """The share of ‖τ‖² in the components that scores look at; 1 where it is not known."""
    if not scores.shares:
        return 1.0
    return sum(scores.shares.get(component, 0.0) for component in scores.components)


def is_covered(scores: Scores, geometry: Geometry, *, strict: bool) -> bool:
    """Whether references look at enough of what a verdict is to cover.

    Args:
        scores: of the reading.
        geometry: of the deciding score.
        strict: whether it is to cover the whole change, not of the scores' components only.
    """
    seen = scores.coverage.get(geometry, 0.0)
    whole = 1.0 if strict else share_in_scope(scores)
    return seen >= COVERAGE_FLOOR or (seen > 0 and seen >= COVERAGE_FLOOR * whole)


def covers_a_part(scores: Scores, geometry: Geometry) -> bool:
    """Whether most of the change lies where the scores don't look."""
    return not scores.coverage.get(geometry, 0.0) >= COVERAGE_FLOOR


def judged_norm(scores: Scores, geometry: Geometry) -> float:
    """‖τ‖ of what a verdict covers: of the scores' components where most lies elsewhere."""
    if not covers_a_part(scores, geometry):
        return scores.norm
    return scores.norm * math.sqrt(max(share_in_scope(scores), 0.0))
