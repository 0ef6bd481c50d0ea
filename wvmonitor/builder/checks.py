"""What is measured of a finished reference without asking the model anything.

Norms by component, coverage, agreement between independent repeats, cosines with controls, and
what is left of w once it is added to weights in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from wvmonitor.builder.base import Base
from wvmonitor.reading import COMPONENTS, Component, Geometry, component_of
from wvmonitor.references.reference import Reference
from wvmonitor.sources.folder import ModelFolder
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.task_vector import TaskVector

HIGHEST_CONTROL_COSINE = 0.3
LEAST_KEPT = 0.99
LEAST_BF16 = 0.9
MOST_LENGTH_DIFFERENCE = 0.1
Cosines = dict[Geometry, float]
Grams = dict[Geometry, list[list[float]]]
Probe = Mapping[str, Tensor]


def grams(repeats: Sequence[TaskVector], probe: Probe) -> Grams:
    """Inner products of independent repeats over the blocks' linear weights, by geometry."""
    blocks = [_blocks(r) for r in repeats]
    by_geometry: Grams = {"frobenius": _gram(blocks)}
    if probe:
        by_geometry["response"] = _gram([b.on(probe) for b in blocks])
    return by_geometry


def cosines(a: TaskVector, b: TaskVector, probe: Probe) -> Cosines:
    """Cosine of two vectors over the blocks' linear weights, by geometry; NaN is left out."""
    return _only_known(
        {g: _cosine(m) for g, m in grams([a, b], probe).items()}  # both self-products are in it
    )


def leave_out_table(by_domain: Mapping[str, TaskVector], probe: Probe) -> dict[str, Cosines]:
    """For each domain, the cosine of its own contrast with the sum of all the others'."""
    names = list(by_domain)
    if len(names) < 2:
        return {}
    table: dict[str, Cosines] = {name: {} for name in names}
    for geometry, gram in grams(list(by_domain.values()), probe).items():
        for i, name in enumerate(names):
            others = [j for j in range(len(names)) if j != i]
            across = sum(gram[i][j] for j in others)
            square = sum(gram[j][k] for j in others for k in others)
            scale = math.sqrt(max(gram[i][i] * square, 0.0))
            if scale:
                table[name][geometry] = across / scale
    return table


def component_shares(vector: TaskVector) -> tuple[float, dict[Component, float]]:
    """‖w‖ and the share of ‖w‖² in each component."""
    squares: dict[Component, float] = dict.fromkeys(COMPONENTS, 0.0)
    for name, update in vector.updates():
        squares[component_of(name, update.shape)] += float(updates_.inner(update, update))
    total = sum(squares.values())
    return math.sqrt(total), {c: s / total if total else 0.0 for c, s in squares.items()}


@torch.no_grad()
def kept_in_bf16(vector: TaskVector, base: Base) -> float:
    """Cosine of w with bf16(θ + w) − bf16(θ): 1 is no loss; one tensor at a time.

    A small update of a large weight is lost to rounding: w can then only be added in float32.
    """
    folder = ModelFolder(base.folder)
    across = left = whole = 0.0
    for name, update in vector.updates():
        theta = folder.read(folder.stored(name) or name).float()
        delta = updates_.to_dense(update).to(theta)
        rounded = (theta + delta).bfloat16().float() - theta.bfloat16().float()
        across += float((rounded * delta).sum(dtype=torch.float64))
        left += float((rounded * rounded).sum(dtype=torch.float64))
        whole += float((delta * delta).sum(dtype=torch.float64))
    scale = math.sqrt(left * whole)
    return across / scale if scale else 0.0


def with_controls(
    vector: TaskVector, references: Iterable[Reference], probe: Probe
) -> dict[str, Cosines]:
    """Cosine with each control."""
    return {
        r.name: cosines(vector, r.vector, probe) for r in references if r.card.kind == "control"
    }


def remarks(
    *,
    kept: float,
    coverage: float,
    bf16: float,
    controls: Mapping[str, Cosines],
    agreement: Mapping[Geometry, float | None],
    lengths: tuple[float, float] | None,
) -> list[str]:
    """What a reader of the card must be warned of, in words."""
    texts = []
    if kept < LEAST_KEPT:
        texts.append(f"compression kept {kept:.1%} of the squared norm")
    if coverage < 0.5:
        texts.append(
            f"only {coverage:.0%} of ‖w‖² lies in the blocks' linear weights, where scores look "
            "by default"
        )
    if bf16 < LEAST_BF16:
        texts.append(
            f"added to bfloat16 weights, w is rounded to a direction of cosine {bf16:.2f} with it: "
            "steer in float32, or with an adapter"
        )
    for name, row in controls.items():
        highest = max((abs(c) for c in row.values()), default=0.0)
        if highest > HIGHEST_CONTROL_COSINE:
            texts.append(
                f"its cosine with the control {name} reaches {highest:.2f}: drift of that kind "
                "will raise its score"
            )
    for geometry, value in agreement.items():
        if value is not None and value <= 0:
            texts.append(f"independent repeats do not agree ({geometry}, cosine {value:.2f})")
    if lengths is not None and min(lengths) > 0:
        difference = max(lengths) / min(lengths) - 1
        if difference > MOST_LENGTH_DIFFERENCE:
            texts.append(
                f"answers of the two sides differ in length by {difference:.0%} "
                f"({lengths[0]:.0f} and {lengths[1]:.0f} tokens)"
            )
    return texts


def _blocks(vector: TaskVector) -> TaskVector:
    return vector.select(lambda n: component_of(n, vector.shape(n)) == "blocks")


def _gram(vectors: Sequence[TaskVector]) -> list[list[float]]:
    products = [[0.0] * len(vectors) for _ in vectors]
    for i, a in enumerate(vectors):
        for j in range(i + 1):
            products[i][j] = products[j][i] = a.inner(vectors[j])
    return products


def _cosine(gram: list[list[float]]) -> float:
    scale = math.sqrt(max(gram[0][0] * gram[1][1], 0.0))
    return gram[0][1] / scale if scale else math.nan


def _only_known(row: Cosines) -> Cosines:
    return {g: c for g, c in row.items() if math.isfinite(c)}
