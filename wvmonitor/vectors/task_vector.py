"""TaskVector: what training has done to a model so far, parameter by parameter, lazily.

A task vector knows the names and shapes of the parameters it covers and how to produce each
update; nothing is read before it is asked for, and nothing is kept. So a checkpoint of any size is
measured with one tensor in memory at a time. Parameters it does not cover have not changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from wvmonitor.errors import ShapeMismatchError
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.compress import compress
from wvmonitor.vectors.update import Update


@dataclass(frozen=True)
class Origin:
    """Where a task vector comes from.

    Attributes:
        source: the file, folder or model it was read from, for messages.
        base_digest: digest of the base model's tensors, if known.
        base_name: what the adapter or checkpoint calls its base; for messages only.
        method: "lora", "full", …: how the weights were trained, if known.
        rank: largest rank of an adapter.
        step: optimiser step at which it was taken, if known.
        kept: share of ‖·‖² that survived compression; 1 for a vector that was not compressed.
        warnings: what a reader of its numbers must know.
        unmeasurable: why its numbers are not those of the training, so that no verdict may rest on
            them; None where they are.
    """

    source: str = "memory"
    base_digest: str | None = None
    base_name: str | None = None
    method: str | None = None
    rank: int | None = None
    step: int | None = None
    kept: float = 1.0
    warnings: tuple[str, ...] = field(default=())
    unmeasurable: str | None = None


@dataclass(frozen=True)
class Part:
    """One contribution to the change of one parameter.

    Attributes:
        name: the parameter.
        shape: its shape in the base.
        produce: gives the update.
    """

    name: str
    shape: tuple[int, ...]
    produce: Callable[[], Update]


class TaskVector:
    """τ = θ_t − θ_0 as a lazy map from parameter names to updates.

    Example:
        >>> import torch
        >>> from wvmonitor.vectors.update import LowRankUpdate
        >>> tau = TaskVector.of({"w": LowRankUpdate(torch.ones(4, 1), torch.ones(1, 3))})
        >>> tau.inner(2 * tau)
        24.0
        >>> round((2 * tau).cosine(tau), 6)
        1.0
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        produce: Callable[[str], Update],
        origin: Origin | None = None,
    ) -> None:
        """Describe a task vector.

        Args:
            shapes: the parameters covered, in the order in which they are best read.
            produce: gives the update of one parameter; called once for each pass over it.
            origin: where the vector comes from.
        """
        self._shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        self._produce = produce
        self.origin = origin or Origin()

    @classmethod
    def of(cls, updates: Mapping[str, Update], origin: Origin | None = None) -> TaskVector:
        """A task vector held in memory."""
        by_name = dict(updates)
        return cls(
            {name: u.shape for name, u in by_name.items()},
            by_name.__getitem__,
            origin,
        )

    @classmethod
    def of_parts(cls, parts: Iterable[Part], origin: Origin) -> TaskVector:
        """The task vector whose update of each parameter is the sum of its parts.

        Raises:
            ShapeMismatchError: two parts give one parameter different shapes.
        """
        by_name: dict[str, list[Part]] = {}
        for part in parts:
            mates = by_name.setdefault(part.name, [])
            if mates and mates[0].shape != part.shape:
                raise ShapeMismatchError(
                    f"{origin.source} gives {part.name!r} the shapes {mates[0].shape} and "
                    f"{part.shape}: re-save it"
                )
            mates.append(part)

        def produce(name: str) -> Update:
            first, *rest = by_name[name]
            made = first.produce()
            for part in rest:
                made = updates_.add(made, part.produce())
            return made

        return cls({n: mates[0].shape for n, mates in by_name.items()}, produce, origin)

    def __repr__(self) -> str:
        return f"TaskVector({len(self._shapes)} parameters from {self.origin.source})"

    def __len__(self) -> int:
        return len(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def names(self) -> list[str]:
        """The parameters covered, as the base model's `named_parameters()` calls them."""
        return list(self._shapes)

    def shape(self, name: str) -> torch.Size:
        """Shape of one parameter."""
        return self._shapes[name]

    def update(self, name: str) -> Update:
        """Produce the update of one parameter.

        Raises:
            ShapeMismatchError: the source gave another shape than it had announced.
        """
        made = self._produce(name)
        if made.shape != self._shapes[name]:
            raise ShapeMismatchError(
                f"{name} of {self.origin.source} came with shape {tuple(made.shape)}, announced "
                f"as {tuple(self._shapes[name])}"
            )
        return made

    def updates(self) -> Iterator[tuple[str, Update]]:
        """Every (name, update), one at a time."""
        for name in self._shapes:
            yield name, self.update(name)

    def held(self) -> TaskVector:
        """A copy in memory that later training steps do not change."""
        return TaskVector.of({n: updates_.clone(u) for n, u in self.updates()}, self.origin)

    def select(self, keep: Callable[[str], bool]) -> TaskVector:
        """The part of the vector whose parameter names satisfy `keep`."""
        return TaskVector(
            {n: s for n, s in self._shapes.items() if keep(n)}, self._produce, self.origin
        )

    # Arithmetic: lazy, so that a difference of two checkpoints is never whole in memory.

    def __add__(self, other: TaskVector) -> TaskVector:
        return self._combine(other, 1.0)

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self._combine(other, -1.0)

    def __mul__(self, factor: float) -> TaskVector:
        return TaskVector(
            self._shapes, lambda name: updates_.scale(self.update(name), factor), self.origin
        )

    __rmul__ = __mul__

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def __truediv__(self, divisor: float) -> TaskVector:
        return self * (1.0 / divisor)

    def _combine(self, other: TaskVector, sign: float) -> TaskVector:
        self._check_shapes(other)

        def produce(name: str) -> Update:
            if name not in other:
                return self.update(name)
            theirs = updates_.scale(other.update(name), sign)
            return updates_.add(self.update(name), theirs) if name in self else theirs

        same_base = self.origin.base_digest == other.origin.base_digest
        origin = Origin(
            source=f"{self.origin.source} {'+' if sign > 0 else '−'} {other.origin.source}",
            base_digest=self.origin.base_digest if same_base else None,
            base_name=self.origin.base_name if same_base else None,
            method=self.origin.method if self.origin.method == other.origin.method else None,
            warnings=tuple(dict.fromkeys(self.origin.warnings + other.origin.warnings)),
            unmeasurable=self.origin.unmeasurable or other.origin.unmeasurable,
        )
        return TaskVector({**self._shapes, **other._shapes}, produce, origin)

    def _check_shapes(self, other: TaskVector) -> None:
        for name, shape in self._shapes.items():
            if name in other and other.shape(name) != shape:
                raise ShapeMismatchError(
                    f"{name} has shape {tuple(shape)} in {self.origin.source} but "
                    f"{tuple(other.shape(name))} in {other.origin.source}: they do not come from "
                    "one base model"
                )

    # Products: float64 on the updates' device, one synchronisation at the end.

    @torch.no_grad()
    def inner(self, other: TaskVector) -> float:
        """⟨τ, other⟩ = Σ over parameters, Frobenius.

        Raises:
            ShapeMismatchError: a parameter has another shape in the other vector.
        """
        self._check_shapes(other)
        return _total(
            updates_.inner(self.update(name), other.update(name))
            for name in self._shapes
            if name in other
        )

    @torch.no_grad()
    def squared_norm(self) -> float:
        """‖τ‖² = ⟨τ, τ⟩."""
        return _total(updates_.inner(u, u) for _, u in self.updates())

    def norm(self) -> float:
        """‖τ‖, Frobenius, in units of the weights."""
        return math.sqrt(max(self.squared_norm(), 0.0))

    def cosine(self, other: TaskVector) -> float:
        """⟨τ, w⟩ / ‖τ‖‖w‖ (arXiv 2511.05408, section 5); NaN where either has not moved at all.

        Raises:
            ShapeMismatchError: a parameter has another shape in the other vector.
        """
        scale = self.norm() * other.norm()
        return self.inner(other) / scale if scale else math.nan

    @torch.no_grad()
    def compress(self, rank: int) -> TaskVector:
        """Each update replaced by its best approximation of at most this rank, held in memory.

        `origin.kept` of the result is the share of ‖τ‖² that survived.
        """
        parts = {name: compress(u, rank) for name, u in self.updates()}
        total = sum(p.total for p in parts.values())
        kept = sum(p.kept for p in parts.values()) / total if total else 1.0
        origin = replace(self.origin, kept=self.origin.kept * kept)
        return TaskVector.of({name: p.update for name, p in parts.items()}, origin)

    def on(self, probe_inputs: Mapping[str, Tensor]) -> TaskVector:
        """What the vector does to each layer's outputs on a probe (design, response geometry).

        Args:
            probe_inputs: (rows, inputs) of each linear map's input, by parameter name. Parameters
                without a probe are left out: they have no response.

        Returns:
            The responses: (outputs, rows) for each parameter; their Frobenius product is the
            response product of the vectors.
        """
        names = [n for n in self._shapes if n in probe_inputs]

        def shape(name: str) -> tuple[int, int]:
            made, probe = self._shapes[name], probe_inputs[name]
            # a transposed map is stored (in, out); a square one has the same response shape anyway
            outputs = made[0] if made[-1] == probe.shape[-1] else made[-1]
            return int(outputs), int(probe.shape[0])

        return TaskVector(
            {name: shape(name) for name in names},
            lambda name: updates_.on(self.update(name), probe_inputs[name]),
            self.origin,
        )


def _total(terms: Iterator[Tensor] | Sequence[Tensor]) -> float:
    parts = list(terms)
    if not parts:
        return 0.0
    device = parts[0].device
    return float(torch.stack([p.to(device) for p in parts]).sum())
