"""A first look without a reference: where an update lies, and how concentrated it is.

Fine-tuning that teaches one thing often shows in few directions: the top singular vectors of what
it changed (after arXiv 2508.00161). This says where to look, and judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wvmonitor.errors import NonFiniteError
from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.files.storage import Location, shown
from wvmonitor.reading import Component, component_of, layer_of
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import DenseUpdate, LowRankUpdate, Update

# Up to this smaller side a dense matrix is decomposed exactly; beyond, its top part is found by
# subspace iteration.
_EXACT = 512
_OVERSAMPLING = 8
_ITERATIONS = 6


@dataclass(frozen=True)
class Spectrum:
    """The top of one matrix's singular value decomposition.

    Attributes:
        parameter: its name; with the index in brackets for one of a stack (fused experts).
        layer: index of its transformer block, if it lies in one.
        squared_norm: ‖Δ‖².
        values: the largest singular values, in descending order.
        left: (outputs, k) directions in which outputs change most.
        right: (k, inputs) directions of the inputs that they answer to.
    """

    parameter: str
    component: Component
    layer: int | None
    squared_norm: float
    values: tuple[float, ...]
    left: Tensor
    right: Tensor

    @property
    def norm(self) -> float:
        """‖Δ‖, Frobenius."""
        return float(self.squared_norm**0.5)

    @property
    def stable_rank(self) -> float | None:
        """‖Δ‖²/σ₁²: about how many directions share the change; None where nothing changed."""
        top = self.values[0] if self.values else 0.0
        return self.squared_norm / top**2 if top > 0 else None

    @property
    def top_share(self) -> float | None:
        """Share of ‖Δ‖² in the top direction, in [0, 1]."""
        rank = self.stable_rank
        return None if rank is None else min(1.0, 1.0 / rank)


@dataclass(frozen=True)
class LayerScreen:
    """One transformer block, or one component outside the blocks.

    Attributes:
        layer: index of the block; None outside them.
        share: share of the vector's ‖τ‖².
        stable_rank: of its largest matrix.
        top_share: share of the largest matrix's ‖Δ‖² in its top direction.
        largest: name of the matrix that changed most.
    """

    layer: int | None
    component: Component
    share: float
    stable_rank: float | None
    top_share: float | None
    largest: str
    matrices: int


@torch.no_grad()
def screen(vector: TaskVector, top: int = 4) -> Iterator[Spectrum]:
    """The spectrum of every matrix of a task vector, one at a time; vectors (1-D) are left out.

    Raises:
        NonFiniteError: an update holds NaN or infinity.
    """
    for name, update in vector.updates():
        if len(update.shape) < 2:
            continue
        component, layer = component_of(name, update.shape), layer_of(name)
        for suffix, matrix in _matrices(updates_.as_linear(update)):
            square = float(updates_.inner(matrix, matrix))
            if not square < float("inf"):
                raise NonFiniteError(
                    f"{shown(name)} of {vector.origin.source} holds NaN or infinity: the run "
                    "diverged or the file is damaged; take an earlier checkpoint"
                )
            left, values, right = spectrum(matrix, top)
            yield Spectrum(
                f"{name}{suffix}", component, layer, square, tuple(values.tolist()), left, right
            )


def spectrum(update: Update, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """The top singular vectors and values of a 2-D update: (O, k), (k,), (k, I), float64.

    A low-rank update is never multiplied out: the SVD of the small (R, R) matrix between the QR
    factors of its two sides gives it exactly. A large dense one is found by subspace iteration from
    a fixed start, whose values are lower bounds (exact to about 1 % where the spectrum decays).
    """
    if isinstance(update, LowRankUpdate):
        q_left, t_left = torch.linalg.qr(update.left.to(torch.float64))
        q_right, t_right = torch.linalg.qr(update.right.to(torch.float64).mT)
        u, s, vh = torch.linalg.svd(t_left @ t_right.mT, full_matrices=False)
        return q_left @ u[:, :top], s[:top], vh[:top] @ q_right.mT
    delta = updates_.to_dense(update)
    if min(delta.shape) <= _EXACT:
        u, s, vh = torch.linalg.svd(delta.to(torch.float64), full_matrices=False)
        return u[:, :top], s[:top], vh[:top]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(delta.shape[1], top + _OVERSAMPLING, generator=generator, dtype=delta.dtype)
    basis = torch.linalg.qr(delta @ start.to(delta.device)).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(delta @ torch.linalg.qr(delta.mT @ basis).Q).Q
    u, s, vh = torch.linalg.svd((basis.mT @ delta).to(torch.float64), full_matrices=False)
    return basis.to(torch.float64) @ u[:, :top], s[:top], vh[:top]


def by_layer(spectra: list[Spectrum]) -> list[LayerScreen]:
    """The matrices of each transformer block together, and of each component outside them."""
    total = sum(s.squared_norm for s in spectra)
    groups: dict[tuple[int | None, Component], list[Spectrum]] = {}
    for item in spectra:
        groups.setdefault((item.layer, item.component), []).append(item)
    screens = []
    for (layer, component), members in groups.items():
        largest = max(members, key=lambda s: s.squared_norm)
        screens.append(
            LayerScreen(
                layer=layer,
                component=component,
                share=sum(s.squared_norm for s in members) / total if total else 0.0,
                stable_rank=largest.stable_rank,
                top_share=largest.top_share,
                largest=largest.parameter,
                matrices=len(members),
            )
        )
    return sorted(screens, key=lambda g: (g.layer is None, g.layer or 0, g.component))


def save_directions(path: Location, spectra: Mapping[str, list[Spectrum]]) -> None:
    """Write the top singular directions as safetensors: `<parameter>.left`, `.values`, `.right`.

    A checkpoint's number in the file's metadata stands before each name.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {"format": "wvmonitor.directions"}
    for number, (label, items) in enumerate(spectra.items()):
        metadata[str(number)] = label
        for item in items:
            stem = f"{number}.{item.parameter}"
            tensors[f"{stem}.left"] = item.left.to(torch.float32).contiguous()
            tensors[f"{stem}.right"] = item.right.to(torch.float32).contiguous()
            tensors[f"{stem}.values"] = torch.tensor(item.values, dtype=torch.float32)
    write_safetensors(path, tensors, metadata)


def _matrices(update: Update) -> Iterator[tuple[str, Update]]:
    """A stack of matrices one by one, each with its index; a single matrix as it is."""
    update = updates_.held(update)
    if len(update.shape) == 2:
        yield "", update
        return
    stack = range(update.shape[:-2].numel())
    if isinstance(update, DenseUpdate):
        flat = update.delta.reshape(-1, *update.shape[-2:])
        yield from ((f"[{i}]", DenseUpdate(flat[i])) for i in stack)
    else:
        left = update.left.reshape(-1, *update.left.shape[-2:])
        right = update.right.reshape(-1, *update.right.shape[-2:])
        yield from ((f"[{i}]", LowRankUpdate(left[i], right[i])) for i in stack)
