"""A reading: what one measurement of a task vector yields.

Numbers only (float64, a few kilobytes), no tensors: everything after it, scores, verdicts, journal
and pictures, is arithmetic on these arrays. Dimension names: P parameters, R references of the bank
(behaviours and controls, in the bank's order).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Geometry = Literal["frobenius", "response"]
Component = Literal["blocks", "embeddings", "head", "norms", "other"]
ReferenceKind = Literal["behaviour", "control"]
LayerShares = Mapping[str, Mapping[Geometry, Mapping[str, float]]]
"""By reference, geometry and layer: the layer's share of the inner product with the reference."""
Float64 = NDArray[np.float64]

GEOMETRIES: tuple[Geometry, ...] = ("frobenius", "response")
COMPONENTS: tuple[Component, ...] = ("blocks", "embeddings", "head", "norms", "other")

# A parameter inside a numbered block: `model.layers.3.`, `transformer.h.3.`, `gpt_neox.layers.3.`,
# `encoder.block.3.`, `backbone.blocks.3.`
_IN_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.(.+)$")
_NORM = re.compile(r"(?:^|[._])(?:\w*norm\w*|ln|ln_\w+)(?:[._]|$)", re.IGNORECASE)
_HEAD = re.compile(
    r"(?:^|\.)(?:lm_head|embed_out|output_projection|score|classifier|qa_outputs|cls)\."
)
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:\w*embed\w*|wte|wpe|embeddings?|shared|position_ids)(?:\.|$)", re.IGNORECASE
)
# Inside a block, yet no map of activations: T5's table of position biases, experts' stacked biases
_TABLE_IN_BLOCK = re.compile(r"\.relative_attention_bias\.")
_BIAS = re.compile(r"(?:^|[._])bias$")


@dataclass(frozen=True)
class Products:
    """Inner products of one task vector with a bank in one geometry, parameter by parameter.

    Attributes:
        products: (P, R), ⟨τ_p, w_p⟩ for every reference; 0 where a reference does not touch p.
        squared_norms: (P,), ‖τ_p‖²; NaN where this geometry does not exist for p.
        covered: (P,), True where at least one reference of the bank touches p in this geometry.
        lagged: (P,), ⟨τ_p(t), τ_p(t−h)⟩ with the snapshot h steps earlier, if one was kept.
    """

    products: Float64
    squared_norms: Float64
    covered: NDArray[np.bool_]
    lagged: Float64 | None = None


@dataclass(frozen=True)
class Reading:
    """One measurement of a task vector against a bank.

    Attributes:
        references: the R names, in the bank's order.
        parameters: the P parameter names (every parameter of the task vector).
        components: (P,) which part of the model each parameter belongs to.
        geometries: the products, by geometry.
        bank: fingerprint of the bank measured against.
        step: optimiser step, if known.
        progress: fraction of the planned steps in [0, 1], if known.
        changed_fraction: share of the elements that differ from θ_0 at all, where it was counted
            (dense updates only): far below 1 at low precision means lost updates.
        base_digest: digest of the base the task vector starts from, if known.
        lag_step: the step of the earlier snapshot that `Products.lagged` refers to.
        warnings: what a reader of the numbers must know, in words.
        unmeasurable: why no verdict may rest on the numbers; None where one may.
    """

    references: tuple[str, ...]
    parameters: tuple[str, ...]
    components: tuple[Component, ...]
    geometries: Mapping[Geometry, Products]
    bank: str
    step: int | None = None
    progress: float | None = None
    changed_fraction: float | None = None
    base_digest: str | None = None
    lag_step: int | None = None
    warnings: tuple[str, ...] = ()
    unmeasurable: str | None = None

    def in_scope(self, components: tuple[Component, ...]) -> NDArray[np.bool_]:
        """(P,) True for the parameters that belong to `components`."""
        return np.array([c in components for c in self.components], dtype=bool)

    def squared_norm(self) -> float:
        """‖τ‖² over every parameter, Frobenius."""
        return float(self.geometries["frobenius"].squared_norms.sum())

    def norm(self) -> float:
        """‖τ‖ over every parameter, Frobenius, in units of the weights."""
        return float(np.sqrt(self.squared_norm()))

    def coverage(
        self, components: tuple[Component, ...] = ("blocks",), geometry: Geometry = "frobenius"
    ) -> float:
        """Share of ‖τ‖² (Frobenius) that lies where scores look, in [0, 1].

        That is: in parameters of `components` which at least one reference touches in `geometry`.
        It is 1 for a vector that has not moved at all: nothing is left out of nothing.
        """
        total = self.squared_norm()
        if total == 0:
            return 1.0
        mask = self.in_scope(components) & self.geometries[geometry].covered
        return float(self.geometries["frobenius"].squared_norms[mask].sum() / total)

    def component_shares(self) -> dict[Component, float]:
        """Share of ‖τ‖² by component of the model; the shares sum to 1 (or are all 0 at τ = 0)."""
        squares = self.geometries["frobenius"].squared_norms
        total = float(squares.sum())
        return {
            c: float(squares[self.in_scope((c,))].sum() / total) if total else 0.0
            for c in COMPONENTS
        }


def join_readings(parts: Sequence[Reading], elements: Sequence[int]) -> Reading:
    """One reading of parameters that were measured in several parts, in the order of the parts.

    Args:
        parts: readings of different parameters of one task vector against one bank.
        elements: how many elements each part's parameters have.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    counted = [(p.changed_fraction, n) for p, n in zip(parts, elements, strict=True)]
    moved = [(f, n) for f, n in counted if f is not None]
    total = sum(n for _, n in moved)
    return replace(
        first,
        parameters=tuple(name for p in parts for name in p.parameters),
        components=tuple(c for p in parts for c in p.components),
        geometries={g: _stacked([p.geometries[g] for p in parts]) for g in first.geometries},
        changed_fraction=sum(f * n for f, n in moved) / total if total else None,
        warnings=tuple(dict.fromkeys(w for p in parts for w in p.warnings)),
    )


def _stacked(parts: Sequence[Products]) -> Products:
    lagged = [p.lagged for p in parts if p.lagged is not None]
    return Products(
        products=np.concatenate([p.products for p in parts]),
        squared_norms=np.concatenate([p.squared_norms for p in parts]),
        covered=np.concatenate([p.covered for p in parts]),
        lagged=np.concatenate(lagged) if lagged else None,
    )


@dataclass(frozen=True)
class Gram:
    """What the scores must know of a bank: inner products among its references.

    Attributes:
        references: the R names, in the bank's order.
        kinds: (R,) behaviour or control.
        parameters: the P parameters that any reference touches.
        components: (P,) which part of the model each belongs to.
        products: (P, R, R) by geometry; parameters without that geometry hold zeros.
        shared: (R,) by geometry: mean over i ≠ j of ⟨w_i, w_j⟩ between the independent repeats
            (seeds or domains) behind each reference, over the linear weights of the blocks; NaN
            for a reference with fewer than two. It is the part of ‖w̄‖² that is not noise.
    """

    references: tuple[str, ...]
    kinds: tuple[ReferenceKind, ...]
    parameters: tuple[str, ...]
    components: tuple[Component, ...]
    products: Mapping[Geometry, Float64]
    shared: Mapping[Geometry, Float64] = field(default_factory=dict)

    def total(self, geometry: Geometry, components: tuple[Component, ...] = ("blocks",)) -> Float64:
        """(R, R) inner products summed over the parameters of `components`."""
        mask = np.array([c in components for c in self.components], dtype=bool)
        return np.asarray(self.products[geometry][mask].sum(axis=0), dtype=np.float64)


def component_of(name: str, shape: Sequence[int]) -> Component:
    """The component of the model that a parameter belongs to.

    Args:
        name: the parameter's name in the base model.
        shape: its shape: a vector is never one of the blocks' linear weights.
    """
    return _component_of(name, len(shape) > 1)


@functools.lru_cache(maxsize=1 << 17)  # asked at every reading, of the same names
def _component_of(name: str, is_map: bool) -> Component:  # noqa: FBT001  a key of the cache
    if _NORM.search(name):
        return "norms"
    if _TABLE_IN_BLOCK.search(name):
        return "embeddings"
    if _IN_BLOCK.search(name):
        return "blocks" if is_map and not _BIAS.search(name) else "other"
    if _HEAD.search(name):
        return "head"
    if _EMBEDDING.search(name):
        return "embeddings"
    return "other"


def layer_of(name: str) -> int | None:
    """Index of the transformer block that a parameter belongs to, or None outside them."""
    found = _IN_BLOCK.search(name)
    return int(found.group(1)) if found else None


def group_of(parameter: str) -> str:
    """What a parameter is counted with: its layer, by the first index ("model.layers.3.mlp…": "3").

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
    groups = [group_of(p) for p, used in zip(reading.parameters, mask, strict=True) if used]
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
