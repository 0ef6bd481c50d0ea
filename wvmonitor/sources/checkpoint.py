"""The task vector of a fully fine-tuned checkpoint against its base, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from wvmonitor.errors import KeyMismatchError
from wvmonitor.files.storage import Location, shown
from wvmonitor.sources import identity
from wvmonitor.sources.folder import ModelFolder, check_finite, compare_shapes
from wvmonitor.sources.names import beside_the_language_model, is_task_head, new_head_note, step_of
from wvmonitor.sources.rounding import RoundedBase, is_linear, rounded_base, since_rounding
from wvmonitor.vectors import DenseUpdate, Origin, StreamedUpdate, TaskVector, Update

_NAMED = 5


def read_checkpoints(base: Location, finetuned: Location) -> TaskVector:
    """τ = finetuned − base, streamed from safetensors, sharded or not on either side.

    Differences are taken in float32 (float64 where either side is), whatever the dtypes of the
    two. Tied weights count once. A resized vocabulary is compared on its common rows, which the
    origin's warnings say. Where the checkpoint was made from a rounded copy of the base (a LoRA
    merged into the dequantised 4-bit base), τ is taken from that copy if it can be redone exactly;
    if not, `origin.unmeasurable` says so. Updates are streamed: a block of each side is in memory,
    never a tensor.

    Raises:
        MissingPathError, UnsafeFileError, MalformedFileError: a side cannot be read.
        QuantizedWeightsError: a side is quantised.
        KeyMismatchError: a tensor is on one side only, or an integer buffer changed.
        ShapeMismatchError: a tensor has two shapes, and it is no vocabulary.
        NonFiniteError: when an update is streamed, if a tensor holds NaN or infinity.
    """
    start, end = identity.open_base(base), ModelFolder(finetuned)
    names = _paired_names(start, end)
    left_out = sum(beside_the_language_model(n) for n in start.names() if n not in end)
    warnings = [f"{left_out} tensors beside the language model are in the base only"] * (
        left_out > 0
    )
    heads = sorted(_task_heads(end, start))
    if heads:
        warnings.append(new_head_note(heads, end.where))
    lost = sorted(_task_heads(start, end))
    if lost:
        warnings.append(f"{', '.join(lost[:3])} is in the base only, and is not in the change")
    warnings += [
        f"{name} of {folder.where} is not its embeddings, though config.json ties them: it counts "
        "by itself, as transformers 5 loads it (4 would drop it)"
        for folder in (start, end)
        for name in names
        if folder.own_despite_tying(name)
    ]
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        if _is_integer(start, name) or _is_integer(end, name):
            _check_equal_buffers(start, end, name)
            continue
        shapes[name] = _shape_at(start, name)
        warnings += compare_shapes(name, shapes[name], _shape_at(end, name), end.where)

    rounded = rounded_base(start, end)
    if rounded is not None and rounded.redone is not None:
        warnings.append(f"{rounded}: that rounding was redone and is left out of the change")

    def produce(name: str) -> Update:
        if rounded is not None and rounded.redone is not None and is_linear(start, end, name):
            pair = [check_finite(f.read(name), name, f.where) for f in (start, end)]
            turned = start.is_conv1d(name)
            weight, trained = (t.mT if turned else t for t in pair)
            delta = since_rounding(weight, trained, rounded.redone)
            return DenseUpdate(delta.mT if turned else delta, start.is_transposed(name))
        return _difference(start, end, name, shapes[name])

    origin = Origin(
        source=end.where,
        base_digest=identity.base_digest(base),
        base_name=str(base),
        method="full",
        step=step_of(finetuned),
        warnings=tuple(warnings),
        unmeasurable=_drowned(rounded),
    )
    return TaskVector(shapes, produce, origin)


def _drowned(rounded: RoundedBase | None) -> str | None:
    if rounded is None or rounded.redone is not None:
        return None
    return (
        f"{rounded}, and that rounding cannot be redone exactly: judge the adapter itself, from "
        "before it was merged"
    )


def _paired_names(start: ModelFolder, end: ModelFolder) -> list[str]:
    """Names on both sides, tied weights once; in the order of the base's own names."""
    names: dict[tuple[str, str], str] = {}
    lonely: list[str] = []
    one_sided = _task_heads(start, end) | _task_heads(end, start)
    for name in dict.fromkeys([*start.names(), *end.names()]):
        first, last = start.stored(name), end.stored(name)
        if name in one_sided:
            continue
        if first is None or last is None:
            lonely.append(f"{shown(name)} (only in {(end if first is None else start).where})")
        elif name == first or (first, last) not in names:
            names[first, last] = name
    if lonely:
        beside = [n for n in start.names() if beside_the_language_model(n)]
        if len(lonely) == len(beside) and not any(n in end for n in beside):
            return list(names.values())
        rest = f" and {len(lonely) - _NAMED} more" if len(lonely) > _NAMED else ""
        raise KeyMismatchError(
            f"{end.where} and {start.where} do not hold the same tensors "
            f"({', '.join(lonely[:_NAMED])}{rest}): check that the checkpoint is whole, and that "
            "this is the model that it was trained from"
        )
    return list(names.values())


def _task_heads(folder: ModelFolder, other: ModelFolder) -> set[str]:
    """The heads of one side that the other has not: a fine-tune put its own in their place."""
    return {
        name
        for name in folder.names()
        if is_task_head(name) and name not in other and other.stored(name) is None
    }


def _shape_at(folder: ModelFolder, name: str) -> tuple[int, ...]:
    stored = folder.stored(name)
    assert stored is not None  # noqa: S101  _paired_names keeps only names that both sides hold
    return folder.shape(stored)


def _is_integer(folder: ModelFolder, name: str) -> bool:
    stored = folder.stored(name)
    return stored is not None and not folder.dtype(stored).is_floating_point


def _check_equal_buffers(start: ModelFolder, end: ModelFolder, name: str) -> None:
    first, second = start.read(start.stored(name) or name), end.read(end.stored(name) or name)
    if first.shape != second.shape or first.dtype != second.dtype or not first.equal(second):
        raise KeyMismatchError(
            f"the integer buffer {shown(name)} differs between {start.where} and {end.where}, and "
            "a difference of integers is no update of weights: give two checkpoints of one "
            "architecture and preprocessing"
        )


def _difference(
    start: ModelFolder, end: ModelFolder, name: str, shape: tuple[int, ...]
) -> StreamedUpdate:
    first, second = start.stored(name) or name, end.stored(name) or name
    wide = torch.float64 in (start.dtype(first), end.dtype(second))
    dtype = torch.float64 if wide else torch.float32
    total = math.prod(shape)
    common = min(total, math.prod(end.shape(second)))  # a resized vocabulary differs in its rows

    def stream(elements: int) -> Iterator[Tensor]:
        kept_before, delta = (torch.empty(min(elements, common), dtype=dtype) for _ in range(2))
        befores = start.stream(first, elements, common)
        afters = end.stream(second, elements, common)
        for before, after in zip(befores, afters, strict=True):
            if before.numel() < delta.numel():  # the last one
                kept_before, delta = kept_before[: before.numel()], delta[: before.numel()]
            torch.sub(delta.copy_(after), kept_before.copy_(before), out=delta)
            if not math.isfinite(delta.sum()):
                check_finite(before, first, start.where)
                check_finite(after, second, end.where)
            yield delta

    padded = stream if common == total else lambda size: _padded(stream(size), size, total)
    named = start if name in start else end
    return StreamedUpdate(torch.Size(shape), dtype, padded, named.is_transposed(name))


def _padded(blocks: Iterable[Tensor], elements: int, total: int) -> Iterator[Tensor]:
    """Blocks, and zeros behind them, in blocks of `elements` that are `total` together."""
    starts = iter(range(0, total, elements))
    for block, start in zip(blocks, starts, strict=False):
        yield pad(block, (0, min(elements, total - start) - block.numel()))
    for start in starts:
        yield torch.zeros(min(elements, total - start))
