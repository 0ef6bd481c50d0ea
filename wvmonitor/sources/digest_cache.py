"""Digests of bases that were hashed before, kept between processes.

One small file a base lies in `~/.cache/wvmonitor/digests` (`XDG_CACHE_HOME` moves it):
`WVMONITOR_DIGEST_CACHE` names another folder, or is `off`. An entry holds the state of every weight
and configuration file (device, inode, size, modification and change time in nanoseconds); when
anything of it differs, the base is hashed again. A file that was touched in the last seconds is not
kept, since a change within the same tick of the clock would not show.

Who can write an entry can have one base taken for another, so an entry counts only if it belongs to
this user and no one else may read or write it (0600), in a folder that no one else may write. Who
can write there as this user, or as root, can change the bases and the verdicts themselves. What is
damaged, of another version or not to be trusted is as if it were not there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import stat
from pathlib import Path

from wvmonitor._version import __version__
from wvmonitor.errors import InputError
from wvmonitor.files.atomic import write_text
from wvmonitor.files.documents import decode_json

VARIABLE = "WVMONITOR_DIGEST_CACHE"
"""The environment variable that names the folder, or says `off`."""

SETTLED_SECONDS = 2.0
"""How long ago files must have changed last: the coarsest clock of a file system (FAT) ticks so."""

FilesState = tuple[object, ...]
"""The resolved path, and (name, device, inode, size, mtime_ns, ctime_ns) of each file."""

_LAYOUT = 1
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 1 << 20
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_log = logging.getLogger(__name__)


def recalled(state: FilesState) -> str | None:
    """The digest that was kept for files in this state; None where there is none to be trusted."""
    folder = _folder()
    if folder is None or not _is_ours(folder):
        return None
    try:
        entry = decode_json(_read(folder / _name(state)), "a kept digest")
    except (OSError, InputError):
        return None
    digest = entry.get("digest")
    if entry.get("of") != _key(state) or not isinstance(digest, str):
        return None
    return digest if _DIGEST.fullmatch(digest) else None


def keep(state: FilesState, digest: str, since: float) -> None:
    """Keep a digest for the next process, if the files have long been what they are.

    A cache that cannot be written costs the next process its time, and nothing else.

    The state is of the files before and after they were hashed; `since` is when hashing began, in
    seconds of the system's clock.
    """
    folder = _folder()
    if folder is None or _last_change(state) > since - SETTLED_SECONDS:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_ours(folder):
            entry = {"of": _key(state), "digest": digest}
            write_text(folder / _name(state), json.dumps(entry), 0o600)
    except (OSError, InputError, ValueError) as error:
        _log.debug("the digest of a base is not kept: %s", error)


def _folder() -> Path | None:
    named = os.environ.get(VARIABLE, "")
    if named == "off" or not hasattr(os, "geteuid"):
        return None
    if named:
        return Path(named).expanduser()
    try:
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(root).expanduser() / "wvmonitor" / "digests"
    except RuntimeError:  # no home
        return None


def _is_ours(folder: Path) -> bool:
    try:
        state = folder.lstat()
    except OSError:
        return False
    if stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid() and not state.st_mode & 0o022:
        return True
    _log.warning(
        "%s is not used: it must be a folder of this user's that no one else may write", folder
    )
    return False


def _read(path: Path) -> bytes:
    descriptor = os.open(path, _FLAGS)
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o077:
            raise InputError(f"{path} is not a private file of this user's")
        if state.st_size > _MOST_BYTES:
            raise InputError(f"{path} is too large for a digest")
        return os.read(descriptor, _MOST_BYTES)
    finally:
        os.close(descriptor)


def _name(state: FilesState) -> str:
    """A file for each base's place: a base that changes there takes its entry over."""
    return f"{hashlib.sha256(os.fsencode(str(state[0]))).hexdigest()[:32]}.json"


def _key(state: FilesState) -> str:
    text = repr((_LAYOUT, __version__, _transformers(), state))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _transformers() -> str:
    """Its version: it says which parameters fused tensors make."""
    try:
        found = importlib.util.find_spec("transformers")
    except ValueError:  # something else stands in its place
        return ""
    if found is None or found.origin is None:
        return ""
    installed = sorted(Path(found.origin).parents[1].glob("transformers-*.dist-info"))
    if len(installed) == 1:  # as an installer leaves it: its name says the version
        return installed[0].name
    from importlib.metadata import PackageNotFoundError, version  # as slow as the rest together

    try:
        return version("transformers")
    except PackageNotFoundError:
        return ""


def _last_change(state: FilesState) -> float:
    """Seconds of the system's clock; infinite where that is not known."""
    times = [max(f[4], f[5]) for f in state[1:] if isinstance(f, tuple)]
    return max(times) / 1e9 if times else float("inf")
