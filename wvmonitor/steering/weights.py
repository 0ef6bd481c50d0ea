"""θ + k·w in a live model, for as long as a `with` block runs (arXiv 2511.05408, section 3)."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from wvmonitor.errors import (
    InputError,
    KeyMismatchError,
    NonFiniteError,
    QuantizedWeightsError,
    ShapeMismatchError,
    UnmeasurableModelError,
)
from wvmonitor.references.reference import Reference
from wvmonitor.steering.live_parameters import Holder, holders, without_wrappers
from wvmonitor.vectors import functional
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import DenseUpdate, Update

Steering = Reference | TaskVector
"""What can be added to weights."""

Coefficients = Mapping[Reference, float] | Mapping[TaskVector, float] | Mapping[Steering, float]
"""How much of each to add; negative takes it out."""

Terms = Sequence[tuple[TaskVector, str, float]]
"""What is added to one parameter: (vector, the name it has there, k)."""

# Elements of a parameter that are in float32 at a time: half a megabyte stays in the cache.
_BLOCK = 1 << 17

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})

_NAMED = 3


@contextmanager
def steered(
    model: nn.Module,
    reference: Steering | Coefficients,
    k: float | None = None,
) -> Iterator[nn.Module]:
    """Add k·w to a model's weights while the block runs; afterwards every bit is as before.

    The sum is computed in float32 (float64 where an operand is) and rounded to the model's dtype.
    Originals are kept, one copy of each parameter touched, because subtracting would not be exact;
    what the block itself does to those parameters is undone with it. Blocks can be nested.

    Under PEFT the base layers' weights are moved, and the trained copies in `modules_to_save`;
    wrappers (`torch.compile`, DDP) are looked through. Tied weights are moved once. Which base the
    reference was made for is not checked: fine-tunes of it may be steered too.

    Args:
        model: the live model.
        reference: a reference or task vector, or several with their k: `{evil: -1.0, terse: 0.5}`.
        k: how much of it to add; negative takes it out. Only with a single reference.

    Yields:
        The model itself.

    Raises:
        KeyMismatchError: the reference changes a parameter that the model does not have.
        ShapeMismatchError: a parameter has another shape.
        NonFiniteError: k is not finite, or a sum is not in the model's dtype.
        QuantizedWeightsError: a parameter is quantised, or not of a floating-point dtype.
        UnmeasurableModelError: a parameter is sharded, on the meta device, or under an adapter
            that does not add to it (DoRA, OFT, IA3, trained tokens).

    Example:
        ```python
        with steered(model, bank["evil"], -1.0):
            model.generate(**inputs)
        ```
    """
    plan = _plan(model, coefficients(reference, k))
    originals: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for move in plan:
                for parameter in move.parameters:
                    originals.append((parameter, parameter.detach().clone()))
                    for block, _, new in moved_by_blocks(parameter, move.terms, move.name):
                        block.copy_(new)
        yield model
    finally:
        with torch.no_grad():
            while originals:
                touched, original = originals.pop()
                touched.copy_(original)


def coefficients(
    reference: Steering | Coefficients,
    k: float | None = None,
) -> list[tuple[TaskVector, float]]:
    """The vectors to add and how much of each.

    Raises:
        InputError: k is missing, or given twice.
        NonFiniteError: a k is NaN or infinite.
    """
    given: list[tuple[Steering, float]]
    if isinstance(reference, Mapping):
        if k is not None:
            raise InputError(
                f"k={k} was given beside several references: put each one's k into the mapping"
            )
        given = list(reference.items())
    elif k is None:
        raise InputError("k is missing: say how much of the reference to add, for instance -1.0")
    else:
        given = [(reference, k)]
    for one, factor in given:
        if not math.isfinite(factor):
            raise NonFiniteError(f"k must be finite, got {factor} for {label(one)}")
    return [(vector_of(one), float(factor)) for one, factor in given]


def vector_of(steering: Steering) -> TaskVector:
    """The vector itself."""
    return steering.vector if isinstance(steering, Reference) else steering


def label(steering: Steering) -> str:
    """What to call a vector in messages and cards."""
    return steering.name if isinstance(steering, Reference) else steering.origin.source


def moved(theta: Tensor, delta: Tensor, name: str) -> Tensor:
    """Theta + delta, computed in the working precision and rounded to theta's dtype.

    Raises:
        NonFiniteError: the sum holds NaN or infinity.
    """
    dtype = functional.working_dtype(theta, delta)
    new = (theta.to(dtype) + delta.to(theta.device, dtype)).to(theta.dtype)
    # A sum carries NaN and infinity along in one pass; one that only overflowed is looked into.
    summed = float(new.sum(dtype=dtype))
    if not math.isfinite(summed) and not bool(torch.isfinite(new).all()):
        raise NonFiniteError(
            f"{name} would hold NaN or infinity in {theta.dtype}: take a smaller k, or check the "
            "model and the reference"
        )
    return new


def moved_by_blocks(theta: Tensor, terms: Terms, name: str) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of rows of (θ, Σ k·w, their sum), so that little is held in float32 at a time.

    The first of each triple is a view of `theta`. A term is (vector, the name that the parameter
    has there, k); `name` is for errors.

    Raises:
        NonFiniteError: a sum holds NaN or infinity.
    """
    if not (terms and theta.numel()):
        return
    updates = [
        (updates_.to_device(updates_.held(v.update(n)), theta.device), k) for v, n, k in terms
    ]
    if not theta.ndim:  # a scalar is a row
        theta, updates = theta[None], [(_as_row(update), k) for update, k in updates]
    height = max(1, _BLOCK // theta[0].numel())
    for start in range(0, len(theta), height):
        stop = min(start + height, len(theta))
        parts = (updates_.to_dense(updates_.rows(u, start, stop)) * k for u, k in updates)
        delta = functools.reduce(operator.add, parts)
        block = theta[start:stop]
        yield block, delta, moved(block, delta, name)


def _as_row(update: Update) -> Update:
    return DenseUpdate(updates_.to_dense(update)[None])


@dataclass
class _Move:
    """One weight to move, every live copy of it, and what to move it by."""

    name: str
    parameters: tuple[Tensor, ...]
    terms: list[tuple[TaskVector, str, float]] = field(default_factory=list)


def _plan(model: nn.Module, terms: list[tuple[TaskVector, float]]) -> list[_Move]:
    """Everything that will be moved; whatever can be refused is refused here, before any change."""
    base = without_wrappers(model)
    live = holders(base)
    moves: dict[int, _Move] = {}
    for vector, k in terms:
        check_names(base, vector, live)
        seen: dict[int, str] = {}
        for name in vector.names():
            parameters = _distinct(live[name])
            refused = next((h.refused for h in live[name] if h.refused), None)
            _check_parameters(name, parameters, vector, refused)
            key = id(parameters[0])
            if key in seen:
                check_tied(vector, seen[key], name)
                continue
            seen[key] = name
            moves.setdefault(key, _Move(name, parameters)).terms.append((vector, name, k))
    return list(moves.values())


def _distinct(places: Sequence[Holder]) -> tuple[Tensor, ...]:
    """Every tensor that a name stands for, once."""
    return tuple({id(holder.parameter): holder.parameter for holder in places}.values())


def check_names(base: nn.Module, vector: TaskVector, live: Collection[str]) -> None:
    """See that a model has every parameter that a vector changes.

    Raises:
        KeyMismatchError, QuantizedWeightsError: it has not; the message names them.
    """
    missing = [name for name in vector.names() if name not in live]
    if not missing:
        return
    listed = ", ".join(missing[:_NAMED]) + (
        f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    )
    if getattr(base, "is_quantized", False):
        raise QuantizedWeightsError(
            f"the model is quantised and has no {listed}: load it without quantisation to steer it"
        )
    raise KeyMismatchError(
        f"{vector.origin.source} changes {listed}, which the model does not have: it was made for "
        "another architecture"
    )


def _check_parameters(
    name: str, parameters: Sequence[Tensor], vector: TaskVector, refused: str | None
) -> None:
    for parameter in parameters:
        if parameter.dtype not in FLOATS:
            raise QuantizedWeightsError(
                f"{name} is {parameter.dtype}: steering needs the unquantised weights"
            )
        if hasattr(parameter, "device_mesh") or parameter.is_meta:
            where = "on the meta device" if parameter.is_meta else "sharded over processes"
            raise UnmeasurableModelError(
                f"{name} is {where}: load the model whole, or use steer_checkpoint on its folder"
            )
        if parameter.shape != vector.shape(name):
            raise ShapeMismatchError(
                f"{name} has shape {tuple(parameter.shape)} in the model but "
                f"{tuple(vector.shape(name))} in {vector.origin.source}: it was made for another "
                "model"
            )
    if refused:
        raise UnmeasurableModelError(
            f"{name} cannot be moved by k·w, since {refused}: merge the adapter first "
            "(merge_and_unload)"
        )


def check_tied(vector: TaskVector, first: str, second: str) -> None:
    """One tensor under two names moves once, which is right only if both say the same."""
    a, b = vector.update(first), vector.update(second)
    if not torch.equal(updates_.to_dense(a), updates_.to_dense(b)):
        raise KeyMismatchError(
            f"{first} and {second} are one tied weight in the model, but {vector.origin.source} "
            "changes them differently: it was made for a model that does not tie them"
        )
