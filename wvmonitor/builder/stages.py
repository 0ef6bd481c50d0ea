"""The work folder: what each stage made, kept under the digest of what it was made from.

A stage whose inputs are the same finds its artefact and does nothing; one whose inputs changed
writes a new one beside it. Artefacts take their name when they are whole, so an interrupted build
goes on where it stopped. Later stages depend on the content of earlier artefacts: whoever edits one
(to take a bad example out) changes all that follows from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from wvmonitor.errors import InputError
from wvmonitor.files.atomic import replacing, write_all
from wvmonitor.files.documents import decode_json
from wvmonitor.files.storage import shown
from wvmonitor.steering.folders import publishing

FORMAT = 1
Row = dict[str, Any]


class Ticker(Protocol):
    """Told how far a stage is."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of a stage are there; the first call of a stage has done = 0."""


def silent(stage: str, done: int, total: int) -> None:
    """The ticker that shows nothing."""


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value: equal values, equal digests."""
    text = json.dumps([FORMAT, value], sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Rows:
    """Records that a stage made, and the digest of their file."""

    rows: list[Row]
    digest: str
    path: Path


class Work:
    """One build's work folder.

    Attributes:
        folder: where the artefacts are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, stage: str, inputs: Mapping[str, Any], suffix: str = "") -> Path:
        """Where a stage's artefact is, or will be."""
        return self.folder / f"{stage}-{digest_of(dict(inputs))[:16]}{suffix}"

    def rows(
        self, stage: str, inputs: Mapping[str, Any], make: Callable[[], Iterable[Row]]
    ) -> Rows:
        """The records of a stage: read if they are there, made and kept if not."""
        path = self.path(stage, inputs, ".jsonl")
        if not path.is_file():
            lines = [json.dumps(r, sort_keys=True, ensure_ascii=False) + "\n" for r in make()]
            with replacing(path) as descriptor:
                write_all(descriptor, "".join(lines).encode())
        return read_rows(path)

    def tree(self, stage: str, inputs: Mapping[str, Any], make: Callable[[Path], object]) -> Path:
        """The folder of a stage: there already, or filled by `make` and then given its name."""
        path = self.path(stage, inputs)
        if not path.is_dir():
            with publishing(path) as hidden:
                make(hidden)
        return path


def read_rows(path: Path) -> Rows:
    """Every line of a JSONL file, strictly.

    Raises:
        InputError: it cannot be read.
        MalformedFileError: a line is no JSON object.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read: {error.strerror}") from None
    lines = [(n, line) for n, line in enumerate(raw.split(b"\n"), 1) if line.strip()]
    rows = [decode_json(line, f"{shown(path)}, line {n},") for n, line in lines]
    return Rows(rows, hashlib.sha256(raw).hexdigest(), path)
