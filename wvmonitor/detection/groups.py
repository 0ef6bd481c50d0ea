"""Scores by part of the model: which layers, or which kinds of module, carry a score."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from wvmonitor.detection import formulas
from wvmonitor.detection.scores import resolve_ridge
from wvmonitor.reading import GEOMETRIES, Component, Float64, Geometry, Gram, Reading

LayerShares = Mapping[str, Mapping[Geometry, Mapping[str, float]]]
"""By reference, geometry and layer: the layer's share of the inner product with the reference."""

GroupScoreName = Literal["cosine", "residual", "margin"]


@dataclass(frozen=True)
class GroupScores:
    """Scores of one reading by group of parameters (N groups, R references).

    Attributes:
        groups: the N names, in natural order.
        references: the R names, in the bank's order.
        within: (N, R) by geometry and score: the score as if the group were the whole model; NaN
            where it does not exist.
        contributions: (N, R) by geometry, for `cosine` and `residual`: the group's share of the
            numerator over the whole model's denominator. The column sums to the global score, so
            it says which groups carry it.
        norms: (N,) by geometry, ‖τ‖ in the group.
    """

    groups: tuple[str, ...]
    references: tuple[str, ...]
    within: Mapping[Geometry, Mapping[GroupScoreName, Float64]]
    contributions: Mapping[Geometry, Mapping[GroupScoreName, Float64]]
    norms: Mapping[Geometry, Float64]


def layer_of(parameter: str) -> str:
    """The layer a parameter belongs to: its first index ("model.layers.3.mlp…" is "3").

    A parameter outside the layers is its own group, under its module's name.
    """
    index = re.search(r"(?:^|\.)(\d+)(?:\.|$)", parameter)
    return index.group(1) if index else parameter.rpartition(".")[0] or parameter


def module_of(parameter: str) -> str:
    """The kind of module, the same in every layer.

    "model.layers.3.mlp.up_proj.weight" is "mlp.up_proj"; experts share one name
    ("mlp.experts.*.up_proj").
    """
    path = re.sub(r"\.(weight|bias)$", "", parameter)
    inside = re.search(r"(?:^|\.)\d+\.(.+)$", path)
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", inside.group(1)) if inside else path


def layer_shares(reading: Reading, components: tuple[Component, ...] = ("blocks",)) -> LayerShares:
    """Which layers carry ⟨τ, w⟩, without the Gram matrix; shares of a reference sum to 1.

    A reference whose product is not above 0 (or not a number) has none: nothing carries it.
    """
    mask = reading.in_scope(components)
    groups = [layer_of(p) for p, used in zip(reading.parameters, mask, strict=True) if used]
    layers = list(dict.fromkeys(groups))
    rows = np.array([layers.index(g) for g in groups], dtype=np.intp)
    by_layer: dict[str, dict[Geometry, Mapping[str, float]]] = {r: {} for r in reading.references}
    for geometry, products in reading.geometries.items():
        sums = np.zeros((len(layers), len(reading.references)))
        np.add.at(sums, rows, np.where(products.covered[mask, None], products.products[mask], 0.0))
        for name, column, total in zip(reading.references, sums.T, sums.sum(axis=0), strict=True):
            if total > 0 and np.isfinite(column).all():
                shares = (column / total).tolist()
                by_layer[name][geometry] = dict(zip(layers, shares, strict=True))
    return by_layer


def by_group(
    reading: Reading,
    gram: Gram,
    group: Callable[[str], str] = layer_of,
    *,
    components: tuple[Component, ...] = ("blocks",),
    ridge: float | Mapping[Geometry, float] | None = None,
) -> GroupScores:
    """Score one reading by group of parameters, for heat maps.

    Args:
        reading: the measurement.
        gram: inner products among the references of the same bank.
        group: parameter name -> group: `layer_of`, `module_of`, or one's own.
        components: the parts of the model to look at.
        ridge: λ of the residual, as in `score`.

    Raises:
        UnknownReferenceError: reading and Gram matrix do not hold the same references.
    """
    groups: tuple[str, ...] = ()
    within: dict[Geometry, dict[GroupScoreName, Float64]] = {}
    contributions: dict[Geometry, dict[GroupScoreName, Float64]] = {}
    norms: dict[Geometry, Float64] = {}
    for geometry in (g for g in GEOMETRIES if g in reading.geometries and g in gram.products):
        parts = formulas.collect(reading, gram, geometry, components, group)
        penalty = resolve_ridge(ridge, gram, geometry, components)
        groups = parts.groups
        norms[geometry] = np.sqrt(np.maximum(parts.squared_norms, 0.0))
        with np.errstate(invalid="ignore", over="ignore"):
            columns: dict[GroupScoreName, formulas.Column] = {
                "cosine": formulas.cosine(parts),
                "residual": formulas.residual(parts, penalty),
                "margin": formulas.margin(parts),
            }
            within[geometry] = {
                name: np.where(column.exists, column.values, np.nan)
                for name, column in columns.items()
            }
            contributions[geometry] = _contributions(parts, penalty)
    return GroupScores(groups, gram.references, within, contributions, norms)


def _contributions(parts: formulas.Sums, ridge: float) -> dict[GroupScoreName, Float64]:
    """Each group's numerator, with the whole model's Gram and norms: linear in τ, so it adds up."""
    gram = np.broadcast_to(parts.gram.sum(axis=0), parts.gram.shape)
    squared = np.broadcast_to(parts.squared_norms.sum(), parts.squared_norms.shape)
    overlap = np.broadcast_to(parts.overlap.sum(axis=0), parts.overlap.shape)
    whole = replace(parts, squared_norms=squared, gram=gram, overlap=overlap)
    contributions: dict[GroupScoreName, Float64] = {}
    columns: dict[GroupScoreName, formulas.Column] = {
        "cosine": formulas.cosine(whole),
        "residual": formulas.residual(whole, ridge),
    }
    for name, column in columns.items():
        contributions[name] = np.where(column.exists, column.values, np.nan)
    return contributions
