"""The work folder: what each stage made, kept under the digest of what it was made from.

A stage whose inputs are the same finds its artefact and does nothing; one whose inputs changed
writes a new one beside it. Artefacts take their name when they are whole, so an interrupted build
goes on where it stopped. Later stages depend on the content of earlier artefacts: whoever edits one
(to take a bad example out) changes all that follows from it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from wvmonitor.errors import InputError
from wvmonitor.files.atomic import replacing, write_all
from wvmonitor.files.documents import decode_json
from wvmonitor.files.storage import shown
from wvmonitor.steering.folders import publishing

FORMAT = 1
_LONGEST_NAME = 180
"""Bytes of a stage's name that its artefact bears: a file's name ends at 255, and people's data has
long names."""
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

    Under `accelerate launch` the first process makes what is not made together, and the others
    wait for it.

    Attributes:
        folder: where the artefacts are.
        main: whether this is the first process, or the only one.
    """

    def __init__(self, folder: Path, *, private: bool = False) -> None:
        """Open or make the folder; True for `private` lets nobody but the owner into it."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if private:
            folder.chmod(0o700)
        self._state = _processes()
        self.main = self._state is None or bool(self._state.is_main_process)

    def path(self, stage: str, inputs: Mapping[str, Any], suffix: str = "") -> Path:
        """Where a stage's artefact is, or will be."""
        name = stage.encode()[:_LONGEST_NAME].decode(errors="ignore")
        return self.folder / f"{name}-{digest_of(dict(inputs))[:16]}{suffix}"

    def rows(
        self, stage: str, inputs: Mapping[str, Any], make: Callable[[], Iterable[Row]]
    ) -> Rows:
        """The records of a stage: read if they are there, made and kept if not."""
        path = self.path(stage, inputs, ".jsonl")
        with self.first():
            if not path.is_file():
                lines = [json.dumps(r, sort_keys=True, ensure_ascii=False) + "\n" for r in make()]
                with replacing(path) as descriptor:
                    write_all(descriptor, "".join(lines).encode())
        return read_rows(path)

    def tree(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path], object],
        *,
        together: bool = False,
    ) -> Path:
        """The folder of a stage: there already, or filled by `make` and then given its name.

        Args:
            stage: its name.
            inputs: what the artefact depends on.
            make: fills an empty folder.
            together: every process calls `make`; the first one's folder is kept.
        """
        path = self.path(stage, inputs)
        if not together:
            with self.first():
                self._fill(path, make)
            return path
        there = path.is_dir()
        self._wait()  # nobody looks once somebody may have written
        if not there and self.main:
            self._fill(path, make)
        elif not there:
            with self.scratch() as unused:
                make(unused)
        self._wait()
        return path

    @contextmanager
    def first(self) -> Iterator[None]:
        """The first process runs the block before the others do."""
        if not self.main:
            self._wait()
        yield
        if self.main:
            self._wait()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder that goes when the block ends."""
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=self.folder) as name:
            yield Path(name)

    def _fill(self, path: Path, make: Callable[[Path], object]) -> None:
        if path.is_dir():
            return
        try:
            with publishing(path) as hidden:
                make(hidden)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not path.is_dir():
                raise
            # Another process has made the same meanwhile, of the same inputs: it is kept.

    def _wait(self) -> None:
        if self._state is not None:
            self._state.wait_for_everyone()


def _processes() -> Any:
    """The state of `accelerate launch`, None in a process by itself."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    import torch
    from accelerate import PartialState  # type: ignore[import-untyped]

    return PartialState(cpu=not torch.cuda.is_available())


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
