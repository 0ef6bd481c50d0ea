"""A task vector's updates in a weight file: `NAME.left` and `NAME.right`, or `NAME.delta`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import torch

from wvmonitor.errors import MalformedFileError
from wvmonitor.files.safetensors import PlannedTensor, SafetensorsFile, Writable
from wvmonitor.vectors.update import DenseUpdate, LowRankUpdate, StreamedUpdate, Update, whole

TRANSPOSED = "transposed"
"""The metadata's key for the parameters that are stored (in, out), one a line."""


def as_tensors(
    updates: Iterable[tuple[str, Update]],
) -> tuple[dict[str, Writable], dict[str, str]]:
    """The tensors of (name, update) pairs by key, and what the file's metadata must say of them."""
    tensors: dict[str, Writable] = {}
    transposed = []
    for name, update in updates:
        if update.transposed:
            transposed.append(name)
        if isinstance(update, LowRankUpdate):
            tensors[f"{name}.left"] = update.left.detach().contiguous()
            tensors[f"{name}.right"] = update.right.detach().contiguous()
        elif isinstance(update, DenseUpdate):
            tensors[f"{name}.delta"] = update.delta.detach().contiguous()
        else:
            make = functools.partial(whole, update)
            tensors[f"{name}.delta"] = PlannedTensor(update.dtype, tuple(update.shape), make)
    return tensors, {TRANSPOSED: "\n".join(transposed)}


def read_updates(file: SafetensorsFile, again: str) -> dict[str, Update]:
    """Every update of a file, in memory.

    Args:
        file: written from `as_tensors`.
        again: what to do about a broken file, for the error.

    Raises:
        MalformedFileError: a parameter is there twice, or half.
    """
    shapes, produce = open_updates(file, again)
    return {name: produce(name) for name in shapes}


def open_updates(
    file: SafetensorsFile, again: str, *, held: float = math.inf
) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Update]]:
    """The shape of every update of a file, and what reads one of them when it is asked for.

    Args:
        file: written from `as_tensors`; stays open for as long as updates are read.
        again: what to do about a broken file, for the error.
        held: bytes; a whole update that is larger is streamed and never held.

    Raises:
        MalformedFileError: a parameter is there twice, or half.
    """
    transposed = set((file.metadata.get(TRANSPOSED) or "").split("\n"))
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, str] = {}
    for key, info in file.tensors.items():
        name, _, part = key.rpartition(".")
        if {part, parts.get(name)} == {"left", "right"}:
            continue  # both are there
        if name in parts:
            raise MalformedFileError(
                f"{file.where} holds {name!r} twice, dense and low-rank: {again}"
            )
        other = {"left": "right", "right": "left"}.get(part)
        if part != "delta" and f"{name}.{other}" not in file.tensors:
            raise MalformedFileError(
                f"{file.where} holds {key!r}, which is neither a .delta nor one of a .left/.right "
                f"pair: {again}"
            )
        parts[name] = part
        shapes[name] = info.shape
        if part != "delta":
            left, right = (file.info(f"{name}.{side}").shape for side in ("left", "right"))
            shapes[name] = (*left[:-1], *right[-1:])

    def produce(name: str) -> Update:
        if parts[name] != "delta":
            left, right = (file.read(f"{name}.{side}") for side in ("left", "right"))
            return LowRankUpdate(left, right, name in transposed)
        key = f"{name}.delta"
        info = file.info(key)
        if info.size <= held:
            return DenseUpdate(file.read(key), name in transposed)
        stream = functools.partial(file.stream, key)
        return StreamedUpdate(torch.Size(info.shape), info.dtype, stream, name in transposed)

    return shapes, produce
