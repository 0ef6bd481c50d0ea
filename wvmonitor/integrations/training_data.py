"""A digest of a training set, by which runs of one dataset are found when calibrating.

Only what can be read without running anybody's code counts: the Arrow table of a
`datasets.Dataset`, or a plain list of rows. A dataset with a `__getitem__` of its own may draw
random numbers, and reading it would change the training that is only to be watched.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MOST_NAMED = 1_000_000
"""Of a larger selection the rows are not written out."""

MOST_ROWS = 4096
"""So many rows of a table are hashed, evenly spaced, and the number of all."""

MOST_BYTES = 100_000_000
"""A list of rows that is longer than this as JSON has no digest: training must not wait for it."""


def data_digest(dataset: Any) -> str | None:
    """SHA-256 of a training set's rows, in whatever order they are put; None if not known."""
    try:
        return _digest_of(dataset)
    except Exception as error:  # noqa: BLE001  what only groups runs costs no run its monitor
        logger.warning("which data this run trains on cannot be told: %s", error)
        return None


def _digest_of(dataset: Any) -> str | None:
    if isinstance(dataset, list):
        return _of_rows(dataset)
    table = getattr(getattr(dataset, "data", None), "table", None)
    if table is None:
        return None
    return _of_table(table, getattr(dataset, "_indices", None))


def _of_rows(rows: list[Any]) -> str | None:
    lines: list[str] = []
    left = MOST_BYTES
    for row in rows:
        try:
            lines.append(json.dumps(_plain(row), sort_keys=True))
        except TypeError:
            return None  # rows of objects that only their owner can read
        left -= len(lines[-1])
        if left < 0:
            return None
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
    meant = b"None" if indices is None else _meant(indices.column(0).to_numpy(), count)
    return _digest([str(count).encode(), meant, *_contents(table, spaced)])


def _meant(indices: NDArray[Any], count: int) -> bytes:
    """Which rows are meant: none by name where it is all of them, in whatever order."""
    chosen = np.sort(indices)
    if len(chosen) == count and bool((chosen == np.arange(count)).all()):
        return b"None"
    return chosen.tobytes() if len(chosen) > MOST_NAMED else repr(chosen.tolist()).encode()


def _contents(table: Any, places: Iterable[int]) -> Iterable[bytes]:
    """The bytes of some rows of a table."""
    try:
        rows = table.take(list(places)).combine_chunks().to_batches()
    except ValueError:  # Arrow joins a column's chunks first, which it cannot beyond 2 GiB of text
        return (repr(table.slice(place, 1).to_pylist()).encode() for place in places)
    return [
        buffer.to_pybytes()
        for batch in rows
        for column in batch.columns
        for buffer in column.buffers()
        if buffer is not None
    ]


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
