"""What a Trainer's record in a checkpoint says of its run: how far it had come, and its plan."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from wvmonitor.errors import MalformedFileError
from wvmonitor.files.documents import read_json
from wvmonitor.files.storage import Location, open_storage, read_bytes

TRAINER_STATE = "trainer_state.json"
TRAINER_STATE_BYTES = 200_000_000
_FIELD = re.compile(rb'^  "(global_step|max_steps)": (\d{1,12}),?$', re.MULTILINE)


@dataclass(frozen=True)
class TrainerState:
    """What is taken from it; None where it does not say.

    Attributes:
        step: the optimiser step that the checkpoint was saved at.
        peak_learning_rate: the largest one logged so far.
    """

    step: int | None
    planned_steps: int | None
    peak_learning_rate: float | None


def read_trainer_state(where: Location) -> TrainerState:
    """Read a checkpoint's `trainer_state.json`.

    Raises:
        MalformedFileError: it is no such file, or larger than any.
        UnsafeFileError: it is no regular file, or a link out of its folder.
    """
    fields = _fields(where)
    return TrainerState(
        _count(fields.get("global_step")),
        _count(fields.get("max_steps")) or None,
        max(_rates(fields.get("log_history")), default=None),
    )


def _fields(where: Location) -> dict[str, Any]:
    try:
        return read_json(where, limit=TRAINER_STATE_BYTES)
    except MalformedFileError:
        # A NaN among the logged values, which is no JSON, is common (a gradient norm in mixed
        # precision); transformers writes each field of the state on a line of its own.
        with closing(open_storage(where)) as storage:
            raw = bytes(read_bytes(storage, 0, min(storage.size, TRAINER_STATE_BYTES)))
        fields = {m[1].decode(): int(m[2]) for m in _FIELD.finditer(raw)}
        if "max_steps" not in fields:
            raise
        return fields


def _count(value: Any) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if good else None


def _rates(history: Any) -> Iterator[float]:
    for row in history if isinstance(history, list) else ():
        rate = row.get("learning_rate") if isinstance(row, dict) else None
        if isinstance(rate, (int, float)) and not isinstance(rate, bool) and rate > 0:
            yield float(rate)
