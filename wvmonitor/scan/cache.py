"""What was measured before: an append-only file that lets an interrupted scan go on.

An entry is found by content, not by path: SHA-256 over the checkpoint's and the base's files, the
bank's fingerprint and what was asked for. Scores are kept and verdicts are not, so a new
calibration judges old measurements again without reading a checkpoint. A cache is as trustworthy
as whoever can write to it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wvmonitor._version import __version__
from wvmonitor.errors import SettingsError
from wvmonitor.files.digests import content_digest
from wvmonitor.files.storage import Location, joined, list_folder, shown
from wvmonitor.scan.results import Measured

_HEADER = {"wvmonitor_scan_cache": 1}
_LAYOUT = 4
"""Of an entry; one of another layout is not found, and left in the file."""
_CONFIGS = frozenset({"adapter_config.json", "config.json"})
_WEIGHTS = (".safetensors", ".safetensors.index.json")


@dataclass(frozen=True)
class CacheView:
    """What a worker must know of the cache: where it is, and which scan asks.

    Attributes:
        path: of the cache; a worker that cannot see it measures again.
        scan: a name of this scan, so that a worker reads the file once for each.
    """

    path: str
    scan: str

    def __contains__(self, key: object) -> bool:
        return key in _keys(self.path, self.scan)


class ScanCache:
    """The cache of one scan, to which this process alone appends."""

    def __init__(self, path: str | Path) -> None:
        """Open a cache, or make one.

        Raises:
            SettingsError: the file is something else, or cannot be written.
        """
        self._path = Path(path)
        self._entries: dict[str, Measured] = {}
        self._adapter = TypeAdapter(Measured)
        try:
            exists = self._path.exists() and self._path.stat().st_size > 0
            if exists:
                self._check_header()
                self._load()
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise SettingsError(
                f"the cache {shown(self._path)} cannot be used ({error.strerror}): choose another "
                "file"
            ) from error
        if not exists:
            self._append(_HEADER)
        elif not self._ends_a_line():
            os.write(self._file, b"\n")  # what was cut off in the middle stays a line of its own

    def view(self) -> CacheView:
        """What workers need of it."""
        return CacheView(str(self._path.resolve()), os.urandom(8).hex())

    def get(self, key: str) -> Measured | None:
        """What was measured under a key."""
        return self._entries.get(key)

    def put(self, measured: Measured) -> None:
        """Keep a measurement; it survives whatever happens to the scan afterwards."""
        if measured.key is None or measured.key in self._entries:
            return
        self._entries[measured.key] = measured
        value = self._adapter.dump_python(measured, mode="json")
        try:
            self._append({"key": measured.key, "measured": value})
        except ValueError:  # not finite: measured again the next time, which says so again
            return

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def __enter__(self) -> ScanCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, line: dict[str, Any]) -> None:
        data = (json.dumps(line, allow_nan=False) + "\n").encode()
        os.write(self._file, data)

    def _check_header(self) -> None:
        with self._path.open("rb") as file:
            first = file.readline(200)
        if first != (json.dumps(_HEADER) + "\n").encode():
            raise SettingsError(
                f"{shown(self._path)} is not a cache of scans, and is left as it is: choose "
                "another file"
            )

    def _load(self) -> None:
        for entry in _lines(str(self._path)):
            try:
                measured = self._adapter.validate_python(entry["measured"])
            except (ValidationError, KeyError):
                continue
            self._entries[entry["key"]] = measured

    def _ends_a_line(self) -> bool:
        size = os.fstat(self._file).st_size
        return os.pread(self._file, 1, size - 1) == b"\n"


def content_key(target: Location, base: Location | None, *asked: object) -> str:
    """The key of a measurement: every byte it depends on, and what was asked for.

    Args:
        target: the adapter or checkpoint.
        base: the base's folder, where it is known.
        asked: JSON-ready values: the bank's fingerprint, components, …

    Raises:
        InputError: a file cannot be read.
    """
    parts = [_files(target), _base_files(str(base)) if base is not None else None, *asked]
    text = json.dumps([_HEADER, __version__, _LAYOUT, parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _files(where: Location) -> dict[str, str]:
    entries = list_folder(where)
    if entries is None:
        return {"": content_digest(where)}
    names = sorted(e for e in entries if e in _CONFIGS or e.endswith(_WEIGHTS))
    return {name: content_digest(joined(where, name)) for name in names}


@functools.lru_cache(maxsize=8)
def _base_files(where: str) -> dict[str, str]:
    # Once for each process: a base that changes in the middle of a scan spoils more than a cache.
    return _files(where)


@functools.lru_cache(maxsize=2)
def _keys(path: str, _scan: str) -> frozenset[str]:
    try:
        return frozenset(entry["key"] for entry in _lines(path))
    except OSError:
        return frozenset()


def _lines(path: str) -> Iterator[dict[str, Any]]:
    """Every entry that is whole; a line that was cut off is none."""
    with Path(path).open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("key"), str):
                yield entry
