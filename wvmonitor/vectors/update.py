"""An update: the change of one named parameter, dense (held or streamed) or low-rank.

Dimension suffixes: O outputs, I inputs, R rank, N rows of a probe; `...` stands for leading batch
dimensions (fused experts are (experts, O, I)).

Linear maps are (O, I), as in `torch.nn.Linear`. A parameter stored the other way round (GPT-2's
`Conv1D`) is marked `transposed`: inner products do not mind, but what the update does to
activations does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from wvmonitor.errors import ShapeMismatchError
from wvmonitor.vectors import functional


@dataclass(frozen=True)
class DenseUpdate:
    """A change held element by element.

    Attributes:
        delta: θ_t − θ_0 of this parameter, of the parameter's shape.
        transposed: True where a linear map is stored as (I, O).
    """

    delta: Tensor
    transposed: bool = False

    @property
    def shape(self) -> torch.Size:
        """The parameter's shape."""
        return self.delta.shape


@dataclass(frozen=True)
class StreamedUpdate:
    """A dense change that is read block by block, and is never whole in memory.

    Attributes:
        shape: the parameter's.
        dtype: of the blocks.
        stream: `stream(elements)` gives the change flat and in order, in blocks of so many
            elements (the last one shorter). A block holds until the next is asked for.
        transposed: True where a linear map is stored as (I, O).
    """

    shape: torch.Size
    dtype: torch.dtype
    stream: Callable[[int], Iterator[Tensor]]
    transposed: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        # files do not travel to other processes, numbers do
        return DenseUpdate, (whole(self), self.transposed)


@dataclass(frozen=True)
class LowRankUpdate:
    """A change held as two factors: `left @ right`.

    Attributes:
        left: (..., O, R), or (..., I, R) where `transposed`.
        right: (..., R, I), or (..., R, O) where `transposed`.
        transposed: True where a linear map is stored as (I, O).
    """

    left: Tensor
    right: Tensor
    transposed: bool = False

    def __post_init__(self) -> None:
        if (
            self.left.ndim < 2
            or self.left.shape[-1] != self.right.shape[-2]
            or self.left.shape[:-2] != self.right.shape[:-2]
        ):
            raise ShapeMismatchError(
                f"factors of shape {tuple(self.left.shape)} and {tuple(self.right.shape)} do not "
                "multiply: expected (..., out, rank) and (..., rank, in)"
            )

    @functools.cached_property  # asked for several times of each of thousands of modules
    def shape(self) -> torch.Size:
        """The parameter's shape."""
        return torch.Size((*self.left.shape[:-1], self.right.shape[-1]))

    @property
    def rank(self) -> int:
        """The number of columns of `left`: an upper bound on the update's rank."""
        return int(self.left.shape[-1])


Dense = DenseUpdate | StreamedUpdate
Update = Dense | LowRankUpdate


def whole(update: StreamedUpdate) -> Tensor:
    """All blocks as one tensor of the parameter's shape, in their own precision."""
    made = torch.empty(update.shape, dtype=update.dtype)
    flat, start = made.view(-1), 0
    for block in update.stream(functional.chunk_elements(made.device)):
        flat[start : start + block.numel()] = block
        start += block.numel()
    return made


def to_dense(update: Update) -> Tensor:
    """The update as one tensor of the parameter's shape, in the working precision."""
    update, dtype = held(update), dtype_of(update)
    if isinstance(update, DenseUpdate):
        return update.delta.to(dtype)
    return functional.matmul(update.left.to(dtype), update.right.to(dtype))


def held(update: Update) -> DenseUpdate | LowRankUpdate:
    """The same update, whole in memory if it was streamed."""
    if isinstance(update, StreamedUpdate):
        return DenseUpdate(whole(update), update.transposed)
    return update


def pieces(update: Dense, elements: int) -> Iterator[Tensor]:
    """A dense change flat and in order, in pieces of so many elements; see `StreamedUpdate`."""
    if isinstance(update, StreamedUpdate):
        yield from update.stream(elements)
    elif update.delta.numel():
        yield from torch.split(update.delta.reshape(-1), elements)


def dtype_of(update: Update) -> torch.dtype:
    """The precision in which the update is worked with: float32 or float64."""
    if isinstance(update, StreamedUpdate):
        return torch.float64 if update.dtype == torch.float64 else torch.float32
    if isinstance(update, DenseUpdate):
        return functional.working_dtype(update.delta)
    return functional.working_dtype(update.left, update.right)


def device_of(update: Update) -> torch.device:
    """Where the update lies; what is streamed comes on the CPU."""
    if isinstance(update, StreamedUpdate):
        return torch.device("cpu")
    return update.delta.device if isinstance(update, DenseUpdate) else update.left.device


def rows(update: Update, start: int, stop: int) -> Update:
    """The change of rows [start, stop) of the parameter, along its first dimension."""
    update = held(update)
    if isinstance(update, DenseUpdate):
        return replace(update, delta=update.delta[start:stop])
    batched = update.left.ndim > 2
    right = update.right[start:stop] if batched else update.right
    return replace(update, left=update.left[start:stop], right=right)


def inner(a: Update, b: Update) -> Tensor:
    """⟨a, b⟩ (Frobenius) as a float64 scalar tensor on the updates' device.

    Raises:
        ShapeMismatchError: the two are changes of differently shaped parameters.
    """
    check_same_shape(a, b)
    if isinstance(a, LowRankUpdate) and isinstance(b, LowRankUpdate):
        return functional.low_rank_inner(a.left, a.right, b.left, b.right)
    if isinstance(a, LowRankUpdate):
        a, b = b, a
    assert not isinstance(a, LowRankUpdate)  # noqa: S101  narrows the type: returned above
    if isinstance(b, LowRankUpdate):
        return functional.dense_low_rank_inner(to_dense(a), b.left, b.right)
    size = functional.chunk_elements(device_of(a))
    if a is b:  # read once
        return functional.inners_of_pieces(((mine, mine) for mine in pieces(a, size)), 1)[0]
    both = zip(pieces(a, size), pieces(b, size), strict=True)
    return functional.inners_of_pieces(both, 1)[0]


def add(a: Update, b: Update) -> Update:
    """Sum of two updates: low-rank ones concatenate their factors, anything else is added densely.

    Raises:
        ShapeMismatchError: the two are changes of differently shaped parameters.
    """
    check_same_shape(a, b)
    if isinstance(a, LowRankUpdate) and isinstance(b, LowRankUpdate):
        dtype = functional.working_dtype(a.left, a.right, b.left, b.right)
        left = torch.cat([a.left.to(dtype), b.left.to(dtype)], dim=-1)
        right = torch.cat([a.right.to(dtype), b.right.to(dtype)], dim=-2)
        return LowRankUpdate(left, right, a.transposed)
    return DenseUpdate(to_dense(a) + to_dense(b), a.transposed)


def scale(update: Update, factor: float) -> Update:
    """Multiple of an update, in the working precision."""
    if isinstance(update, LowRankUpdate):
        dtype = dtype_of(update)
        return replace(update, left=update.left.to(dtype) * factor, right=update.right.to(dtype))
    return DenseUpdate(to_dense(update) * factor, update.transposed)


def as_linear(update: Update) -> DenseUpdate | LowRankUpdate:
    """The update as a map (..., O, I): transposed storage as its transpose (a view, no copy)."""
    update = held(update)
    if not update.transposed or len(update.shape) < 2:
        return update
    if isinstance(update, DenseUpdate):
        return DenseUpdate(update.delta.mT)
    return LowRankUpdate(update.right.mT, update.left.mT)


def on(update: Update, probe_NI: Tensor) -> Update:
    """The response of an update: update · Xᵀ, of shape (O, N) (design, response geometry).

    The Frobenius product of two responses is tr(a C bᵀ) with C = XᵀX.

    Raises:
        ShapeMismatchError: the update is not a 2-D map from the probe's inputs.
    """
    linear = as_linear(update)
    if len(linear.shape) != 2 or linear.shape[-1] != probe_NI.shape[-1]:
        raise ShapeMismatchError(
            f"a probe of {probe_NI.shape[-1]} inputs cannot be sent through an update of shape "
            f"{tuple(linear.shape)}: a 2-D map from as many inputs was expected"
        )
    dtype = dtype_of(linear)
    if isinstance(linear, DenseUpdate):
        return DenseUpdate(functional.matmul(linear.delta.to(dtype), probe_NI.to(dtype).mT))
    right = functional.matmul(linear.right.to(dtype), probe_NI.to(dtype).mT)
    return LowRankUpdate(linear.left, right)


def to_device(update: Update, device: torch.device) -> Update:
    """The update on another device (itself, where it is there already)."""
    if device_of(update) == device:
        return update
    if isinstance(update, LowRankUpdate):
        return replace(update, left=update.left.to(device), right=update.right.to(device))
    return DenseUpdate(to_dense(update).to(device), update.transposed)


def clone(update: Update) -> Update:
    """A copy in memory that later training steps do not change."""
    if isinstance(update, StreamedUpdate):
        return held(update)
    if isinstance(update, DenseUpdate):
        return replace(update, delta=update.delta.detach().clone())
    return replace(update, left=update.left.detach().clone(), right=update.right.detach().clone())


def check_same_shape(a: Update, b: Update) -> None:
    """Raise `ShapeMismatchError` unless both change a parameter of one shape and layout."""
    if a.shape != b.shape or (len(a.shape) > 1 and a.transposed != b.transposed):
        raise ShapeMismatchError(
            f"one update has shape {tuple(a.shape)}{' (in, out)' if a.transposed else ''}, the "
            f"other {tuple(b.shape)}{' (in, out)' if b.transposed else ''}: they change different "
            "parameters, or the bases differ"
        )


def check_layout(update: Update, transposed: bool | None) -> None:  # noqa: FBT001
    """Raise `ShapeMismatchError` if the references store the parameter the other way round."""
    if transposed not in (None, update.transposed):
        raise ShapeMismatchError(
            f"an update of shape {tuple(update.shape)} is stored as "
            f"{'(in, out)' if update.transposed else '(out, in)'}, the references' as "
            f"{'(in, out)' if transposed else '(out, in)'}: one of the two was read without "
            "its model's configuration"
        )
