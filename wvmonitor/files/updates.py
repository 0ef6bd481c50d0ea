"""A task vector's updates in a weight file: `NAME.left` and `NAME.right`, or `NAME.delta`."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from wvmonitor.errors import MalformedFileError
from wvmonitor.files.safetensors import SafetensorsFile
from wvmonitor.vectors.update import DenseUpdate, LowRankUpdate, Update

TRANSPOSED = "transposed"
"""The metadata's key for the parameters that are stored (in, out), one a line."""


def as_tensors(
    updates: Iterable[tuple[str, Update]],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of (name, update) pairs by key, and what the file's metadata must say of them."""
    tensors: dict[str, torch.Tensor] = {}
    transposed = []
    for name, update in updates:
        if update.transposed:
            transposed.append(name)
        if isinstance(update, LowRankUpdate):
            tensors[f"{name}.left"] = update.left.detach().contiguous()
            tensors[f"{name}.right"] = update.right.detach().contiguous()
        else:
            tensors[f"{name}.delta"] = update.delta.detach().contiguous()
    return tensors, {TRANSPOSED: "\n".join(transposed)}


def read_updates(file: SafetensorsFile, again: str) -> dict[str, Update]:
    """Every update of a file, in memory.

    Args:
        file: written from `as_tensors`.
        again: what to do about a broken file, for the error.

    Raises:
        MalformedFileError: a parameter is there twice, or half.
    """
    updates: dict[str, Update] = {}
    transposed = set((file.metadata.get(TRANSPOSED) or "").split("\n"))
    for key in file.tensors:
        name, _, part = key.rpartition(".")
        if part == "right" and isinstance(updates.get(name), LowRankUpdate):
            continue  # read with its .left
        if name in updates:
            raise MalformedFileError(
                f"{file.where} holds {name!r} twice, dense and low-rank: {again}"
            )
        if part == "delta":
            updates[name] = DenseUpdate(file.read(key), name in transposed)
        elif part == "left" and f"{name}.right" in file.tensors:
            updates[name] = LowRankUpdate(
                file.read(key), file.read(f"{name}.right"), name in transposed
            )
        elif part != "right" or f"{name}.left" not in file.tensors:
            raise MalformedFileError(
                f"{file.where} holds {key!r}, which is neither a .delta nor one of a .left/.right "
                f"pair: {again}"
            )
    return updates
