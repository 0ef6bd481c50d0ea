"""Parts of the model: which layer a parameter is of, and which layers carry a product."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from wvmonitor.reading import Component, Geometry, Reading

LayerShares = Mapping[str, Mapping[Geometry, Mapping[str, float]]]
"""By reference, geometry and layer: the layer's share of the inner product with the reference."""


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
