"""The formulas of the scores, vectorised over groups of parameters and over references.

Notation of the design, section 5: τ the task vector, w a reference, c_i the controls scaled to unit
norm, K their Gram matrix, k_x = (⟨c_i, x⟩)_i. All sums run over the parameters in scope: ‖w‖ over
all that the bank holds there, also where τ is zero; ‖τ‖ over all that changed there, also where no
reference looks. The response geometry sums over the parameters where it exists. Dimension names:
N groups of parameters (one for the whole model), R references.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wvmonitor.errors import UnknownReferenceError
from wvmonitor.reading import Component, Float64, Geometry, Gram, Reading

RIDGES: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""The λ that leave-one-control-out chooses from, in units of a control's own squared norm (1)."""

DEFAULT_RIDGE = 0.1
"""λ where a bank has fewer than two controls, so that none can be left out."""

MIN_PERPENDICULAR = 1e-9
"""Share of ‖w‖² outside the controls below which a residual is rounding error, and absent."""

MIN_WINDOW = 1e-5
"""Share of ‖τ_t‖² below which ‖τ_t − τ_{t−h}‖² drowns in float32 products: `window` is absent."""

MIN_EIGENVALUE = 0.05
"""Least eigenvalue of the scaled, noise-corrected Gram at which the joint dose is trusted."""


@dataclass(frozen=True)
class Sums:
    """A reading and its bank in one geometry, summed over N groups of parameters in scope.

    Attributes:
        groups: the N names, in natural order.
        products: (N, R), ⟨τ, w⟩.
        squared_norms: (N,), ‖τ‖².
        gram: (N, R, R), ⟨w, w'⟩.
        controls: (R,) True for controls.
        overlap: (N, R), ‖τ‖² in the parameters that w touches.
    """

    groups: tuple[str, ...]
    products: Float64
    squared_norms: Float64
    gram: Float64
    controls: NDArray[np.bool_]
    overlap: Float64

    @property
    def reference_norms(self) -> Float64:
        """(N, R), ‖w‖."""
        diagonal = np.diagonal(self.gram, axis1=1, axis2=2)
        return _root(diagonal)


@dataclass(frozen=True)
class Column:
    """One score: (N, R) values, and (N, R) True where the score exists."""

    values: Float64
    exists: NDArray[np.bool_]


def collect(
    reading: Reading,
    gram: Gram,
    geometry: Geometry,
    components: tuple[Component, ...] = ("blocks",),
    group: Callable[[str], str] | None = None,
) -> Sums:
    """Sum a reading and its bank over the parameters in scope, aligned by name.

    A squared norm that is NaN in the response geometry alone means that the geometry does not
    exist for that parameter, and leaves it out; one that is not finite in Frobenius either is a
    broken weight, and stays in, so that every score of its group comes out as NaN.

    `group` maps a parameter's name to its group; None sums everything into one.

    Raises:
        UnknownReferenceError: reading and Gram matrix do not hold the same references.
    """
    if set(reading.references) != set(gram.references):
        odd = ", ".join(sorted(set(reading.references) ^ set(gram.references)))
        raise UnknownReferenceError(
            f"reading and bank must hold the same references, but only one of them has: {odd}; "
            "measure again with this bank"
        )
    order = [reading.references.index(r) for r in gram.references]
    here = reading.geometries[geometry]
    frobenius = reading.geometries["frobenius"].squared_norms
    missing = np.isnan(here.squared_norms) & np.isfinite(frobenius)
    scope = reading.in_scope(components)
    mine = np.flatnonzero(scope & ~missing)
    theirs = np.flatnonzero([c in components for c in gram.components])
    label = group if group is not None else (lambda _name: "all")
    of_mine = [label(reading.parameters[i]) for i in mine]
    of_theirs = [label(gram.parameters[i]) for i in theirs]
    named = [label(reading.parameters[i]) for i in np.flatnonzero(scope)]
    groups = ("all",) if group is None else tuple(sorted({*named, *of_theirs}, key=_natural))
    at = {g: n for n, g in enumerate(groups)}
    count, width = len(groups), len(gram.references)
    products, squares = np.zeros((count, width)), np.zeros(count)
    products_of_bank = np.zeros((count, width, width))
    rows = np.array([at[g] for g in of_mine], dtype=int)
    np.add.at(products, rows, here.products[mine][:, order])
    np.add.at(squares, rows, here.squared_norms[mine])
    where = {name: p for p, name in enumerate(gram.parameters)}
    places = [where.get(reading.parameters[i], -1) for i in mine]
    touched = np.diagonal(gram.products[geometry], axis1=1, axis2=2) > 0
    touched = np.concatenate([touched, np.zeros((1, width), dtype=bool)])[places]  # -1: nobody's
    overlap = np.zeros((count, width))
    np.add.at(overlap, rows, np.where(touched, here.squared_norms[mine][:, None], 0.0))
    bank_rows = np.array([at[g] for g in of_theirs], dtype=int)
    np.add.at(products_of_bank, bank_rows, gram.products[geometry][theirs])
    controls = np.array([k == "control" for k in gram.kinds], dtype=bool)
    return Sums(groups, products, squares, products_of_bank, controls, overlap)


def cosine(sums: Sums) -> Column:
    """⟨τ,w⟩ / ‖τ‖‖w‖; in Frobenius the paper's score.

    Absent where τ or w is zero, and where w touches nothing of what moved.
    """
    norms = sums.reference_norms
    exists = _compared(sums) & np.logical_not(norms <= 0)
    return Column(_ratio(sums.products, _root(sums.squared_norms)[:, None] * norms), exists)


def module_cosine(
    reading: Reading,
    gram: Gram,
    geometry: Geometry,
    components: tuple[Component, ...] = ("blocks",),
) -> Column:
    """Mean over modules of their own cosines: a module with massive activations counts once.

    `cosine` divides sums, so that the few modules whose inputs are largest decide it. Here every
    weight matrix that moved, and that w touches, has one vote. (1, R); absent where none does.
    """
    each = cosine(collect(reading, gram, geometry, components, group=lambda name: name))
    votes = each.exists.sum(axis=0, keepdims=True)
    total = np.where(each.exists, each.values, 0.0).sum(axis=0, keepdims=True)
    return Column(_ratio(total, votes.astype(np.float64)), votes > 0)


def margin(sums: Sums) -> Column:
    """Cosine minus the largest cosine with a control (another one, if w is itself a control)."""
    base = cosine(sums)
    values = np.full_like(base.values, np.nan)
    exists = np.zeros_like(base.exists)
    for targets, basis in _left_out(sums.controls):
        largest = np.where(base.exists[:, basis], base.values[:, basis], -np.inf).max(axis=1)
        values[:, targets] = base.values[:, targets] - largest[:, None]
        some = np.any(base.exists[:, basis], axis=1, keepdims=True)
        exists[:, targets] = base.exists[:, targets] & some
    return Column(values, exists)


def residual(sums: Sums, ridge: float) -> Column:
    """What of τ points along w and is not explained by controls.

    s = [⟨τ,w⟩ − k_τᵀ(K+λI)⁻¹k_w] / (‖τ‖·‖w‖⊥), ‖w‖⊥² = ⟨w,w⟩ − k_wᵀ(K+λI)⁻¹k_w, divided by the full
    ‖τ‖: ‖τ‖⊥ would explode it on runs that are nearly pure control. A control that is itself
    scored is left out of the c_i. Absent without (other) controls, and where w lies in their span.
    """
    values = np.full_like(sums.products, np.nan)
    exists = np.zeros(sums.products.shape, dtype=bool)
    compared = _compared(sums)
    for targets, basis in _left_out(sums.controls):
        along, perpendicular = project(sums.products, sums.gram, basis, targets, ridge)
        full = sums.reference_norms[:, targets] ** 2
        some = np.any(sums.reference_norms[:, basis] > 0, axis=1, keepdims=True)
        denominator = _root(perpendicular) * _root(sums.squared_norms)[:, None]
        values[:, targets] = _ratio(along, denominator)
        exists[:, targets] = (
            compared[:, targets] & some & ~(perpendicular <= MIN_PERPENDICULAR * full)
        )
    return Column(values, exists)


def project(
    products: Float64,
    gram: Float64,
    basis: NDArray[np.intp],
    targets: NDArray[np.intp],
    ridge: float | Float64,
) -> tuple[Float64, Float64]:
    """Take the part that controls explain out of ⟨τ,w⟩ and of ‖w‖².

    Args:
        products: (N, R), ⟨τ,w⟩.
        gram: (N, R, R).
        basis: the controls c_i; one that is zero in a group explains nothing there.
        targets: (T,) the references w.
        ridge: λ > 0, one or (N,).

    Returns:
        (N, T) ⟨τ,w⟩ − k_τᵀ(K+λI)⁻¹k_w and (N, T) ‖w‖⊥².
    """
    norms = _root(np.diagonal(gram, axis1=1, axis2=2)[:, basis])
    unit = _ratio(np.ones_like(norms), norms, otherwise=0.0)
    scaled = gram[:, basis] * unit[:, :, None]
    penalty = np.broadcast_to(np.asarray(ridge, dtype=np.float64), (len(gram),))
    k = scaled[:, :, basis] * unit[:, None, :] + penalty[:, None, None] * np.eye(len(basis))
    k_w = scaled[:, :, targets]
    k_tau = products[:, basis] * unit
    solved = np.linalg.solve(k, k_w)
    along = products[:, targets] - np.einsum("nc,nct->nt", k_tau, solved)
    diagonal = np.diagonal(gram, axis1=1, axis2=2)[:, targets]
    return along, diagonal - np.einsum("nct,nct->nt", k_w, solved)


def choose_ridge(
    gram: Gram, geometry: Geometry, components: tuple[Component, ...] = ("blocks",)
) -> float:
    """Choose λ of `residual` by leaving one control out at a time.

    Each control in turn plays the run and is explained by the others; the λ of `RIDGES` wins whose
    worst |residual| over (left-out control, behaviour) is smallest, for an alarm is a maximum too;
    of equals, the largest. It depends on the bank only. `DEFAULT_RIDGE` with fewer than two
    controls, or no behaviour, in scope.
    """
    total = gram.total(geometry, components)
    present = np.diagonal(total) > 0
    is_control = np.array([k == "control" for k in gram.kinds], dtype=bool)
    controls, targets = np.flatnonzero(is_control & present), np.flatnonzero(~is_control & present)
    if len(controls) < 2 or not len(targets):
        return DEFAULT_RIDGE
    ridges = np.array(RIDGES)
    grams = np.broadcast_to(total, (len(ridges), *total.shape))
    worst = np.zeros(len(ridges))
    for run in controls:
        products = np.broadcast_to(total[run], (len(ridges), len(total)))
        along, perpendicular = project(products, grams, controls[controls != run], targets, ridges)
        floor = MIN_PERPENDICULAR * np.diagonal(total)[targets]
        size = np.sqrt(total[run, run] * np.maximum(perpendicular, floor))
        worst = np.maximum(worst, np.abs(along / size).max(axis=1))
    best = np.flatnonzero(worst <= worst.min() * (1 + 1e-9))
    return float(ridges[best[-1]]) if len(best) else DEFAULT_RIDGE


def window(
    reading: Reading,
    earlier: Reading | None,
    gram: Gram,
    geometry: Geometry,
    components: tuple[Component, ...] = ("blocks",),
) -> tuple[Column, str | None]:
    """Cosine of δ = τ_t − τ_{t−h} with w: where the run is heading now.

    ⟨δ,w⟩ = ⟨τ_t,w⟩ − ⟨τ_{t−h},w⟩ and ‖δ‖² = ‖τ_t‖² + ‖τ_{t−h}‖² − 2⟨τ_t,τ_{t−h}⟩. Absent without
    the earlier snapshot, and where δ is lost in rounding (`MIN_WINDOW`).

    Returns:
        The (1, R) score, and what was wrong with `earlier`, in words, if anything.
    """
    nothing = np.zeros((1, len(gram.references)), dtype=bool)
    absent = Column(np.full(nothing.shape, np.nan), nothing)
    lagged = reading.geometries[geometry].lagged
    if lagged is None or earlier is None or geometry not in earlier.geometries:
        return absent, None
    if earlier.bank != reading.bank:
        return absent, "no window score: the earlier snapshot was measured against another bank"
    if None not in (reading.lag_step, earlier.step) and reading.lag_step != earlier.step:
        return absent, (
            f"no window score: the snapshot kept is of step {reading.lag_step}, the earlier "
            f"reading of step {earlier.step}"
        )
    now, before = (collect(r, gram, geometry, components) for r in (reading, earlier))
    here = reading.geometries[geometry].squared_norms
    broken = ~np.isfinite(reading.geometries["frobenius"].squared_norms)
    both = reading.in_scope(components) & (broken | ~np.isnan(here))
    squared = now.squared_norms + before.squared_norms - 2 * lagged[both].sum()
    delta = replace(now, products=now.products - before.products, squared_norms=squared)
    column = cosine(delta)
    lost = squared <= MIN_WINDOW * np.maximum(now.squared_norms, before.squared_norms)
    return Column(column.values, column.exists & ~lost[:, None]), None


def dose(sums: Sums, gram: Gram, geometry: Geometry) -> tuple[dict[str, float], str | None]:
    """The steering coefficients k for which Σ k_j w_j explains τ: k = S⁻¹(⟨τ,w_j⟩)_j.

    S is the Gram matrix of all references, controls included, with ‖w̄_i‖² replaced by the part
    that independent repeats share (`Gram.shared`): noise in w̄_i lengthens ‖w̄_i‖² but not
    ⟨τ,w̄_i⟩, and would make k too small. A reference without repeats, or whose repeats share
    nothing (≤ 0), keeps its plain ‖w‖² and has no dose of its own. Where the corrected S is not
    safely positive (least eigenvalue, scaled to a unit diagonal, below `MIN_EIGENVALUE`), each
    reference is taken alone: k_i = ⟨τ,w̄_i⟩ / shared_i. Both are properties of the bank, so a run
    has one or the other throughout.

    Args:
        sums: over the blocks, the scope of `Gram.shared`, in one group.
        gram: of the same bank.
        geometry: of the sums.

    Returns:
        The doses by reference, and the fallback, in words, if it was taken.
    """
    products, total = sums.products[0], sums.gram[0]
    shared = np.asarray(gram.shared.get(geometry, np.full(len(total), np.nan)), dtype=np.float64)
    present = np.diagonal(total) > 0
    known = present & np.isfinite(shared) & (shared > 0)
    if not known.any():
        return {}, None
    corrected = total.copy()
    np.fill_diagonal(corrected, np.where(known, shared, np.diagonal(total)))
    columns = np.flatnonzero(present)
    size = np.sqrt(np.diagonal(corrected)[columns])
    scaled = corrected[np.ix_(columns, columns)] / np.outer(size, size)
    amounts = np.full(len(total), np.nan)
    problem = None
    if np.linalg.eigvalsh(scaled)[0] >= MIN_EIGENVALUE:
        amounts[columns] = np.linalg.solve(scaled, products[columns] / size) / size
    else:
        amounts[known] = products[known] / shared[known]
        problem = (
            f"the references are too alike in the {geometry} geometry to tell their doses apart: "
            "each dose is as if its reference were alone"
        )
    has_dose = np.flatnonzero(known & np.isfinite(amounts))
    return {gram.references[i]: float(amounts[i]) for i in has_dose}, problem


def _left_out(
    controls: NDArray[np.bool_],
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(targets, controls): behaviours against all controls, a control against the others."""
    every = np.flatnonzero(controls)
    if len(every) and not controls.all():
        yield np.flatnonzero(~controls), every
    if len(every) > 1:
        for own in every:
            yield np.array([own]), every[every != own]


def _ratio(numerator: Float64, denominator: Float64, otherwise: float = np.nan) -> Float64:
    """Elementwise ratio; `otherwise` where the denominator is zero."""
    filled = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), otherwise)
    np.divide(numerator, denominator, out=filled, where=denominator != 0)
    return filled


def _compared(sums: Sums) -> NDArray[np.bool_]:
    """(N, R) whether τ has a direction, in part where w looks.

    One that is NaN has: its NaN must reach the verdict.
    """
    moved = np.logical_not(sums.squared_norms <= 0)[:, None]
    return np.asarray(moved & np.logical_not(sums.overlap <= 0))


def _root(squares: Float64) -> Float64:
    """Square root of squared norms, which rounding may leave just below zero."""
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which "10" follows "9"."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p]
