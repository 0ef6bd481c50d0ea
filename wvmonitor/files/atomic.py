"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wvmonitor.errors import InputError, MissingPathError
from wvmonitor.files.storage import Location, is_url, local_path, shown

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def replacing(path: Location, mode: int = 0o666) -> Iterator[int]:
    """A descriptor to write to; what was written becomes `path` only when the block ends well.

    The bytes go to a hidden file in the same folder, reach the disk, and then take the name in one
    step: a reader sees the old file or the new one. On any error the hidden file is removed.

    A device or a pipe (`/dev/stdout`, `/dev/null`, a FIFO) is written to as it is: to replace it
    would take it from everybody else.

    Args:
        path: the file to make or replace; a link at that name is replaced, not followed.
        mode: permissions, less the process's umask; 0o600 for private files.

    Raises:
        MissingPathError: the folder does not exist.
        InputError: `path` is a URL, or a folder.
        OSError: the system refuses (disk full, read-only folder), with `filename` set to `path`.
    """
    target = _target(path)
    if _is_device(target):
        descriptor = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        return
    hidden = target.parent / f".wvmonitor-{secrets.token_hex(8)}.tmp"
    try:
        descriptor = os.open(hidden, _FLAGS, mode)
        try:
            try:
                yield descriptor
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            hidden.replace(target)
        except BaseException:
            with suppress(OSError):
                hidden.unlink()
            raise
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(hidden)):
            raise  # not about this file
        raise OSError(error.errno, error.strerror, str(target)) from error


def write_text(path: Location, text: str, mode: int = 0o666) -> None:
    """Write a file of text, as UTF-8 and through `replacing`."""
    with replacing(path, mode) as descriptor:
        write_all(descriptor, text.encode())


def check_writable(path: Location) -> None:
    """Refuse a path that `replacing` will not be able to write, before the work that it is for.

    Raises:
        MissingPathError: the folder does not exist.
        InputError: `path` is a URL or a folder, or nothing may be written into its folder.
    """
    target = _target(path)
    needed = (target, os.W_OK) if _is_device(target) else (target.parent, os.W_OK | os.X_OK)
    if not os.access(*needed):
        raise InputError(f"{shown(needed[0])} cannot be written to: choose another place")


def _is_device(target: Path) -> bool:
    """Whether a path is no file of its own: a device, a pipe, another name of a descriptor."""
    try:
        mode = target.stat().st_mode
    except OSError:  # nothing is there yet
        return False
    folder = str(target.parent.absolute())
    return not stat.S_ISREG(mode) or folder in ("/dev", "/dev/fd") or folder.startswith("/proc/")


def _target(path: Location) -> Path:
    if is_url(path):
        raise InputError(f"{shown(path)} is a URL: write to a local path, then upload the file")
    target = local_path(path)
    if not target.parent.is_dir():
        raise MissingPathError(f"the folder of {shown(path)} does not exist: make it first")
    if target.is_dir():
        raise InputError(f"{shown(path)} is a folder: name a file in it")
    return target


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte of `data`, in as many system calls as it takes."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: os.PathLike[str]) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
    try:
        # Some network filesystems cannot sync a folder; the file itself is already safe there.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
