"""Where journals are: every one at or below a folder of runs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from wvmonitor.errors import JournalError
from wvmonitor.journal.schema import FILE_NAME

LINKED_DEPTH = 2
"""How far down behind a link a look goes: it may lead to a disk full of data."""

_NAMED = 3


def find_journals(folder: str | Path, unseen: list[str] | None = None) -> list[Path]:
    """Every journal at or below `folder`, each once, in the order of their paths.

    Links are followed too, a little way: a run's folder may lie on another disk.

    Args:
        folder: of runs; or a journal's file.
        unseen: takes up which folders could not be looked into, and why.

    Raises:
        JournalError: there is no such folder, or no journal in it.
    """
    root = Path(folder)
    if root.is_file():
        return [root]
    if not root.exists():
        raise JournalError(f"'{root}' does not exist: name a folder of watched runs")
    unseen = [] if unseen is None else unseen
    found = sorted(place / FILE_NAME for place, files in _walk(root, unseen) if FILE_NAME in files)
    if not found:
        closed = f" ({unseen[0]})" if unseen else ""
        raise JournalError(
            f"no journal at or below '{root}'{closed}: name a folder of watched runs"
        )
    return found


def _walk(root: Path, unseen: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Each folder at or below `root` once, with its files; what lies behind links comes last."""
    known: set[tuple[int, int]] = set()
    waiting: deque[tuple[Path, int | None]] = deque([(root, None)])

    def closed(error: OSError) -> None:
        unseen.append(f"'{error.filename}' cannot be looked into: {error.strerror}")

    while waiting:
        top, depth = waiting.popleft()
        for name, inside, files in os.walk(top, onerror=closed):
            place = Path(name)
            try:
                status = place.stat()
            except OSError as error:  # gone meanwhile
                closed(error)
                continue
            here = (status.st_dev, status.st_ino)
            far = depth is not None and len(place.relative_to(top).parts) >= depth
            if here in known or far:
                inside.clear()
            if here in known:
                continue
            known.add(here)
            yield place, files
            links = (place / n for n in sorted(inside) if (place / n).is_symlink())
            waiting += ((link, LINKED_DEPTH) for link in links)


def no_journal(path: Path) -> JournalError:
    """What to raise where a journal is looked for and is not, naming those below its folder."""
    try:
        below = find_journals(path.parent) if path.parent.is_dir() else []
    except JournalError:
        below = []
    named = ", ".join(f"'{found}'" for found in below[:_NAMED])
    more = f" and {len(below) - _NAMED} more" if len(below) > _NAMED else ""
    there = f", as one of those below it: {named}{more}" if below else ""
    return JournalError(
        f"no journal at '{path}': name a folder that holds {FILE_NAME}, or the file{there}"
    )
