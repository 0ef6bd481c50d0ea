"""A digest of a training set, by which runs of one dataset are found when calibrating.

Only what can be read without running anybody's code counts: the Arrow table of a
`datasets.Dataset`, or a plain list of rows. A dataset with a `__getitem__` of its own may draw
random numbers, and reading it would change the training that is only to be watched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

MOST_ROWS = 4096
"""So many rows are hashed, evenly spaced, and the number of all."""


def data_digest(dataset: Any) -> str | None:
    """SHA-256 of a training set's rows, whatever order a seed has put them in; None if not known.

    Args:
        dataset: as the Trainer was given it.
    """
    if isinstance(dataset, list):
        return _of_rows(dataset)
    table = getattr(getattr(dataset, "data", None), "table", None)
    if table is None:
        return None
    return _of_table(table, getattr(dataset, "_indices", None))


def _of_rows(rows: list[Any]) -> str | None:
    try:
        lines = [json.dumps(_plain(row), sort_keys=True) for row in rows]
    except TypeError:
        return None  # rows of objects that only their owner can read
    return _digest(line.encode() for line in sorted(lines))


def _plain(row: Any) -> Any:
    """A row with its tensors as lists."""
    if isinstance(row, dict):
        return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()}
    return row


def _of_table(table: Any, indices: Any) -> str:
    """The table as it lies on disk, and which of its rows are meant: shuffling changes neither."""
    count = table.num_rows
    spaced = range(0, count, max(count // MOST_ROWS, 1))
    meant: list[int] | None = None
    if indices is not None:
        chosen = sorted(indices.column(0).to_pylist())
        meant = None if chosen == list(range(count)) else chosen
    rows = table.take(list(spaced)).combine_chunks().to_batches()
    columns = [
        buffer.to_pybytes()
        for batch in rows
        for column in batch.columns
        for buffer in column.buffers()
        if buffer is not None
    ]
    return _digest([str(count).encode(), repr(meant).encode(), *columns])


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
