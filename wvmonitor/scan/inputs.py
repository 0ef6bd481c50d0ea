"""Which paths to scan: given, matched by a pattern, listed in a file, or on standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import TextIO

from wvmonitor.errors import InputError, MissingPathError, WVMonitorError
from wvmonitor.files.storage import is_url, open_storage, read_bytes, remote_files, shown
from wvmonitor.outputs.scan_record import failure_of
from wvmonitor.scan.targets import Target, find_targets

STANDARD_INPUT = "-"


def gather(
    paths: Sequence[str],
    *,
    patterns: Sequence[str] = (),
    lists: Sequence[str] = (),
    stdin: TextIO | None = None,
    since_step: int | None = None,
) -> list[Target]:
    """Everything to scan.

    A pattern that matches nothing, a folder that a pattern cannot look into, or a list that cannot
    be read becomes a target with an error: what was asked for was not judged.

    Args:
        paths: as `find_targets` takes them; "-" stands for a list on `stdin`.
        patterns: glob patterns, local or fsspec URLs; `**` matches any number of folders.
        lists: files with one path a line (or NUL-separated); empty lines are skipped.
        stdin: standard input.
        since_step: leaves out checkpoints of earlier steps; those whose step is not known stay.
    """
    targets: list[Target] = []
    for source in (
        _given(paths, stdin),
        *(_matches(pattern) for pattern in patterns),
        *(_listed(file) for file in lists),
    ):
        targets += source
    first: dict[tuple[str, str | None], Target] = {}
    for target in targets:  # once each, though a checkpoint may count by itself and in its run
        first.setdefault((target.path, target.run), target)
    distinct = list(first.values())
    if since_step is not None and distinct:
        distinct = _since(distinct, since_step)
    return distinct


def _since(targets: Sequence[Target], step: int) -> list[Target]:
    """Those of a step and later; an error where none is left, for then nothing was judged."""
    left = [t for t in targets if t.step is None or t.step >= step]
    if left:
        return left
    last = max(t.step for t in targets if t.step is not None)
    problem = MissingPathError(
        f"none of the {len(targets)} checkpoints is of step {step} or later (the last one is of "
        f"step {last}): nothing is left to judge"
    )
    return [Target(targets[-1].run or targets[-1].path, error=failure_of(problem))]


def _given(paths: Iterable[str], stdin: TextIO | None) -> Iterator[Target]:
    for path in paths:
        if path == STANDARD_INPUT and stdin is not None:
            yield from _of_list(stdin.read(), STANDARD_INPUT, "standard input")
        else:
            yield from find_targets([path])


def _matches(pattern: str) -> list[Target]:
    try:
        matches = _remote_glob(pattern) if is_url(pattern) else _local_glob(pattern)
        closed = [] if is_url(pattern) else _closed_folders(pattern)
    except (WVMonitorError, OSError, ValueError, ImportError) as error:
        return [Target(pattern, error=failure_of(error))]
    unseen = [Target(p, error=failure_of(_closed_error(p))) for p in closed]
    if not matches and not unseen:
        problem = MissingPathError(f"nothing matches {shown(pattern)}: check the pattern")
        return [Target(pattern, error=failure_of(problem))]
    return find_targets(sorted(matches)) + unseen


def _local_glob(pattern: str) -> list[str]:
    return glob.glob(pattern, recursive=True)  # noqa: PTH207  pathlib takes no absolute patterns


def _closed_folders(pattern: str) -> list[str]:
    """Folders that a pattern looks into and this user may not: glob says nothing of them."""
    parts = pattern.split("/")
    above = ["/".join(parts[:depth]) + "/" for depth in range(1, len(parts))]
    folders = {f for a in above if glob.has_magic(a) for f in _local_glob(a)}
    return sorted(f for f in folders if not os.access(f, os.R_OK | os.X_OK))


def _closed_error(folder: str) -> InputError:
    return InputError(
        f"{shown(folder)} cannot be looked into, so what the pattern matches in it was not judged: "
        "check its permissions"
    )


def _remote_glob(pattern: str) -> list[str]:
    files, path = remote_files(pattern)
    return [str(files.unstrip_protocol(p)) for p in files.glob(path)]


def _listed(file: str) -> list[Target]:
    try:
        with closing(open_storage(file)) as storage:
            text = bytes(read_bytes(storage, 0, storage.size))
    except (WVMonitorError, OSError) as error:
        return [Target(file, error=failure_of(error))]
    return _of_list(os.fsdecode(text), file, shown(file))


def _of_list(text: str, path: str, where: str) -> list[Target]:
    """What a list names; an error where it names nothing: what was to be judged was not."""
    entries = _entries(text)
    if entries:
        return find_targets(entries)
    problem = MissingPathError(f"{where} names nothing to scan: write one path a line")
    return [Target(path, error=failure_of(problem))]


def _entries(text: str) -> list[str]:
    separated = text.split("\0") if "\0" in text else text.splitlines()
    return [line.strip("\r\n") for line in separated if line.strip()]
