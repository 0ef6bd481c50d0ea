"""Which checkpoints of a growing folder are complete and new: names, sizes and times, no weights.

A checkpoint counts as complete when its files have not changed between two looks, and the Trainer's
last file is there or they have stayed as they are for a while. (What is cut short all the same is
refused by the strict reader, and tried again; so is what is complete and holds no weights that are
read: it must not go by unseen.)
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wvmonitor.scan.targets import ADAPTER_CONFIG
from wvmonitor.scan.trainer_state import TRAINER_STATE

logger = logging.getLogger(__name__)

DEPTH = 6
MOST_FOLDERS = 10_000
"""How far down, and in how many folders, a look goes."""

DEPTH_INSIDE = 1
"""How far down in a checkpoint its files are looked at."""

TRIES = 5
"""How often a checkpoint is handed out that cannot be read; again when its files change."""

_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")
_OTHER_TRAINERS = re.compile(r"(?:global_step|step|iter|iteration|epoch)[-_]?\d{1,12}")
_WEIGHTS = (".safetensors", ".safetensors.index.json")

_Print = tuple[tuple[str, int, int], ...]
"""Name, size and time of change (ns) of each file that says something of the weights."""


@dataclass
class _Seen:
    files: _Print
    since: float
    tries: int = 0
    done: bool = False


class NewCheckpoints:
    """Looks for checkpoints below a folder, and remembers which were dealt with."""

    def __init__(
        self, folder: Path, *, settle: float, measured: Callable[[Path, int], float | None]
    ) -> None:
        """Begin with nothing seen.

        Args:
            folder: where runs are; a run is a folder that holds `checkpoint-STEP` folders.
            settle: seconds that files must stay as they are, where trainer_state.json, which the
                Trainer writes last, is not among them.
            measured: when (seconds since 1970) a run's checkpoint of a step was measured, if the
                caller knows; one whose files are older is not new.
        """
        self._folder = folder
        self._settle = settle
        self._measured = measured
        self._seen: dict[Path, _Seen] = {}
        self._said: set[str] = set()

    def look(self) -> dict[Path, list[tuple[int, Path]]]:
        """The checkpoints that are complete and new, by run, in the order of steps."""
        present = dict(self._checkpoints())
        self._seen = {path: seen for path, seen in self._seen.items() if path in present}
        ready: dict[Path, list[tuple[int, Path]]] = {}
        for path, step in sorted(present.items(), key=lambda item: (item[0].parent, item[1])):
            if self._is_ready(path, step):
                ready.setdefault(path.parent, []).append((step, path))
        return ready

    def unchanged(self, path: Path) -> bool:
        """Whether a checkpoint is still as it was when it was handed out."""
        try:
            return path in self._seen and _files(path) == self._seen[path].files
        except OSError:
            return False

    def done(self, path: Path) -> None:
        """The checkpoint was dealt with: it comes back only if its files change."""
        self._seen[path].done = True

    def failed(self, path: Path) -> bool:
        """The checkpoint could not be read; whether it will be handed out once more."""
        seen = self._seen[path]
        seen.tries = seen.tries + 1 if _holds_weights(seen.files) else TRIES
        return seen.tries < TRIES

    def _is_ready(self, path: Path, step: int) -> bool:
        try:
            files = _files(path)
        except OSError:  # deleted while we look: save_total_limit does that
            return False
        now, seen = time.monotonic(), self._seen.get(path)
        if seen is None or seen.files != files:
            # what an earlier sidecar measured is known by its time; what changed since is new
            measured = self._measured(path.parent, step) if seen is None else None
            newest = max((stamp for *_, stamp in files), default=0) / 1e9
            old = measured is not None and newest <= measured
            self._seen[path] = _Seen(files, now, done=old)
            return False
        if seen.done or seen.tries >= TRIES:
            return False
        if any(name == TRAINER_STATE for name, *_ in files):
            return True
        return now - seen.since >= self._settle and _holds_weights(files)

    def _checkpoints(self) -> Iterator[tuple[Path, int]]:
        for count, (folder, names) in enumerate(self._walk(self._folder, DEPTH)):
            if count >= MOST_FOLDERS:
                self._say(
                    f"'{self._folder}' holds more than {MOST_FOLDERS} folders, and the rest is NOT "
                    "watched: watch a folder further down"
                )
                return
            for name in names:
                if matched := _CHECKPOINT.fullmatch(name):
                    yield folder / name, int(matched[1])
                elif _OTHER_TRAINERS.fullmatch(name) and _has_weights(folder / name):
                    self._say(
                        f"'{folder / name}' and its like are NOT watched: a run is told by folders "
                        "named checkpoint-STEP; judge them with `wvmonitor scan`"
                    )

    def _walk(self, folder: Path, depth: int) -> Iterator[tuple[Path, list[str]]]:
        """Each folder with the names of its sub-folders; hidden ones are left out.

        What else is not looked into is said: links out of the folder that is watched, folders that
        are too far down, and those that this user may not list.
        """
        try:
            with os.scandir(folder) as listing:
                entries = sorted(
                    (e for e in listing if not e.name.startswith(".") and _is_folder(e)),
                    key=lambda entry: entry.name,
                )
                linked = [e.name for e in entries if e.is_symlink()]
        except FileNotFoundError:  # deleted while we look
            return
        except OSError as error:
            self._say(f"'{folder}' cannot be listed, and is NOT watched: {error.strerror}")
            return
        for name in linked:
            self._say_where_it_leads(folder / name)
        names = [e.name for e in entries if e.name not in linked]
        yield folder, names
        below = [name for name in names if not _CHECKPOINT.fullmatch(name)]
        if depth == 1 and below:
            self._say(f"'{folder / below[0]}' is too far down, and is NOT watched: watch it itself")
        for name in below if depth > 1 else ():
            yield from self._walk(folder / name, depth - 1)

    def _say_where_it_leads(self, link: Path) -> None:
        """Say that a link is not followed, unless what it leads to is watched by its own name."""
        try:
            real = link.resolve()
        except (OSError, RuntimeError):
            return
        if not real.is_relative_to(self._folder.resolve()):
            self._say(f"'{link}' is a link, and is NOT watched: watch '{real}' itself")

    def _say(self, text: str) -> None:
        """Log it, once for all looks."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link round in a circle, or into a folder that nobody may see
        return False


def _has_weights(folder: Path) -> bool:
    try:
        return _holds_weights(_files(folder))
    except OSError:
        return False


def _holds_weights(files: _Print) -> bool:
    return any(name.endswith(_WEIGHTS) for name, *_ in files)


def _files(path: Path) -> _Print:
    """The files of a checkpoint, and of the folders in it: an adapter with a name has one."""
    return tuple(sorted(_listed(path, "", DEPTH_INSIDE)))


def _listed(folder: Path, before: str, depth: int) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        for e in entries:
            if e.name.endswith(_WEIGHTS) or e.name in (ADAPTER_CONFIG, TRAINER_STATE):
                status = e.stat()
                yield f"{before}{e.name}", status.st_size, status.st_mtime_ns
            elif depth and e.is_dir(follow_symlinks=False):
                yield from _listed(Path(e.path), f"{before}{e.name}/", depth - 1)
