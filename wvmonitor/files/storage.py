"""Bytes at a place: a local regular file, or an object behind an fsspec URL.

Reads are positional and never mapped into memory: a mapped file that shrinks kills the process
with SIGBUS, a positional read just comes back short and becomes a `MalformedFileError`.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import stat
from pathlib import Path
from typing import Any, Protocol

from wvmonitor.errors import InputError, MalformedFileError, MissingPathError, UnsafeFileError

Location = str | os.PathLike[str]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(//|:.*://)")  # plain, or chained with `::`
_LOCAL_URL = re.compile(r"(file|local)://", re.IGNORECASE)
_USER = re.compile(r"://[^/\s@]*@")
_QUERY = re.compile(r"(://[^\s?]*)\?[^\s'\"]*")
_CHUNK = 8 << 20  # bytes asked for at once, where a read needs a buffer of its own
_SMALL = 1 << 20  # bytes; what is larger is worth a request of its own
_FEW = 2  # reads that follow one another, the two of a header, before more is asked for at once
_FLAGS = (
    os.O_RDONLY
    | os.O_CLOEXEC
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
)
_Identity = tuple[int, int, int, int]


def shown(text: object, longest: int = 200) -> str:
    """`text` in quotes and on one line, safe to print on a terminal, cut at `longest` characters.

    Control characters, ANSI escapes and right-to-left overrides come out as backslash escapes, and
    credentials in URLs (user information, query) as `***`.
    """
    whole = _QUERY.sub(r"\1?***", _USER.sub("://***@", str(text)))
    cut = repr(whole[:longest])
    return cut if len(whole) <= longest else f"{cut}... ({len(whole)} characters)"


def is_url(where: Location) -> bool:
    """Whether `where` is to be read through fsspec; `file://` URLs are local paths."""
    return isinstance(where, str) and bool(_URL.match(where)) and not _LOCAL_URL.match(where)


def local_path(where: Location) -> Path:
    """The local path that `where` (a path or a `file://` URL) stands for."""
    return Path(_LOCAL_URL.sub("", os.fspath(where), count=1))


def joined(folder: Location, name: str) -> Location:
    """The location of `name` inside `folder`, for paths and URLs alike."""
    if is_url(folder):
        return f"{str(folder).rstrip('/')}/{name}"
    return local_path(folder) / name


class Storage(Protocol):
    """An open thing of known size whose bytes can be read from any position.

    Attributes:
        where: how messages name it, quoted and escaped.
        size: bytes, as they were when it was opened.
        least: bytes worth asking for at once, where it does not matter how many.
    """

    where: str
    size: int
    least: int

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` (writable bytes) from `offset`, or raise; never partly in silence."""

    def close(self) -> None:
        """Let go of the descriptor; a later read opens it again and checks it is the same file."""


class LocalStorage:
    """A regular local file. The descriptor opens at once, and again on a read after `close`.

    A link may not lead out of `root`, the file's own folder if not given.

    Raises:
        MissingPathError: there is no such file.
        UnsafeFileError: it is a FIFO, a device, a socket, a folder, or a link out of the root.
        InputError: the system does not let it be opened.
    """

    least = 1

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.where = shown(path)
        # the same file later, wherever the process has gone to meanwhile
        self._path = _real_path(path, path.parent if root is None else root).absolute()
        self._file: io.FileIO | None = None  # closes itself if it is forgotten
        self._identity: _Identity | None = None
        self._open()
        assert self._identity is not None  # noqa: S101 -- _open sets it or raises
        self.size = self._identity[2]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset` with positional reads straight into its memory.

        Raises:
            MalformedFileError: the file shrank or changed since it was opened.
            InputError: the system reports a read error.
        """
        descriptor = self._open()
        done = 0
        try:
            while done < len(buffer):
                got = os.preadv(descriptor, [buffer[done:]], offset + done)
                if got == 0:
                    raise MalformedFileError(
                        f"{self.where} ended at byte {offset + done} while it was being read:"
                        " wait until it is fully written, then try again"
                    )
                done += got
            self._check_same(os.fstat(descriptor))
        except OSError as error:
            raise InputError(
                f"{self.where} cannot be read ({error.strerror}): check the disk, then try again"
            ) from error

    def close(self) -> None:
        """Close the descriptor, if one is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> int:
        if self._file is not None:
            return self._file.fileno()
        try:
            # Looking before opening: opening some devices has effects of its own.
            _refuse_irregular(os.lstat(self._path), self.where)
            file = io.FileIO(os.open(self._path, _FLAGS))
        except (OSError, ValueError) as error:
            raise _open_error(error, self.where) from error
        try:
            state = os.fstat(file.fileno())
            _refuse_irregular(state, self.where)
            self._check_same(state)
        except BaseException:
            file.close()
            raise
        self._file = file
        return file.fileno()

    def _check_same(self, state: os.stat_result) -> None:
        identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if self._identity is None:
            self._identity = identity
        elif identity != self._identity:
            raise MalformedFileError(
                f"{self.where} changed while it was being read:"
                " wait until it is fully written, then try again"
            )


class RemoteStorage:
    """An object behind an fsspec URL, of which only the ranges asked for are fetched.

    Small reads that follow one another are served from one larger request: an adapter has hundreds
    of tensors, and a request takes longer than most of them.

    Raises:
        MissingPathError: there is no such object.
        UnsafeFileError: it is not a plain object, or the URL is chained.
        InputError: fsspec, or its package for this protocol, is missing or fails.
    """

    least = _CHUNK  # a request costs more than the bytes

    def __init__(self, url: str) -> None:
        self.where = shown(url)
        self._files, self._path = remote_files(url)
        facts = _ask(self._files.info, self._path, self.where)
        if facts.get("type") != "file":
            raise UnsafeFileError(f"{self.where} is not a file: give the URL of a weight file")
        size = facts.get("size")
        if not isinstance(size, int):
            raise InputError(
                f"{self.where} does not say its size, so it cannot be checked: download it first"
            )
        self.size = size
        self._next, self._in_order = 0, 0  # where the last read ended; how many followed another
        self._ahead_from, self._ahead = 0, b""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset` by ranged requests of at most 8 MiB each.

        Raises:
            MalformedFileError: the server answered with fewer or more bytes than were asked for.
            InputError: the request failed.
        """
        self._in_order = self._in_order + 1 if offset == self._next else 0
        self._next = offset + len(buffer)
        done = self._held(buffer, offset)
        rest = len(buffer) - done
        if rest and self._in_order > _FEW and len(buffer) <= _SMALL:
            self._ahead = b""  # never both at once
            start = offset + done
            self._ahead = self._fetched(start, min(start + _CHUNK, self.size))
            self._ahead_from = start
            done += self._held(buffer[done:], start)
        for begin in range(done, len(buffer), _CHUNK):
            part = buffer[begin : begin + _CHUNK]
            part[:] = self._fetched(offset + begin, offset + begin + len(part))

    def _held(self, buffer: memoryview, offset: int) -> int:
        """Fill as much of the buffer's beginning as was read ahead; gives how much."""
        start = offset - self._ahead_from
        have = self._ahead[start : start + len(buffer)] if start >= 0 else b""
        buffer[: len(have)] = have
        return len(have)

    def close(self) -> None:
        """Nothing is held open; what was read ahead is let go."""
        self._in_order, self._ahead = 0, b""

    def _fetched(self, start: int, end: int) -> bytes:
        got = _ask(self._files.cat_file, self._path, self.where, start=start, end=end)
        if len(got) != end - start:
            raise MalformedFileError(
                f"{self.where} gave {len(got)} bytes at {start} where {end - start} were asked"
                " for: it changed, or its server ignores ranges; download it first"
            )
        return bytes(got)


def open_storage(where: Location, root: Location | None = None) -> Storage:
    """Open a local path, a `file://` URL (read as a path) or an fsspec URL for positional reads.

    Raises:
        InputError: as `LocalStorage` and `RemoteStorage` say.
    """
    if is_url(where):
        return RemoteStorage(str(where))
    return LocalStorage(local_path(where), None if root is None else local_path(root))


def read_bytes(storage: Storage, offset: int, count: int) -> bytearray:
    """`count` bytes from `offset`, in a buffer of their own."""
    buffer = bytearray(count)
    storage.read_into(memoryview(buffer), offset)
    return buffer


def list_folder(folder: Location) -> frozenset[str] | None:
    """The base names of a folder's entries, or None where `folder` is a file.

    Raises:
        MissingPathError: there is nothing there.
        InputError: the folder cannot be listed.
    """
    if is_url(folder):
        files, path = remote_files(str(folder))
        where = shown(folder)
        if _ask(files.info, path, where).get("type") == "file":
            return None
        listing = _ask(files.ls, path, where, detail=False)
        return frozenset(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in listing)
    path_here = local_path(folder)
    try:
        return frozenset(entry.name for entry in path_here.iterdir())
    except NotADirectoryError:
        return None
    except (OSError, ValueError) as error:
        raise _open_error(error, shown(folder)) from error


def list_subfolders(folder: Location) -> frozenset[str]:
    """The base names of the folders in a folder, links to folders among them.

    What a folder is called says nothing of what it is: `qwen2.5-7b-sft` has no ending.

    Raises:
        MissingPathError: there is nothing there.
        InputError: the folder cannot be listed.
    """
    if is_url(folder):
        files, path = remote_files(str(folder))
        listing = _ask(files.ls, path, shown(folder), detail=True)
        inside = (entry["name"] for entry in listing if entry.get("type") == "directory")
        return frozenset(str(name).rstrip("/").rsplit("/", 1)[-1] for name in inside)
    try:
        # a link that leads nowhere, or round in a circle, is no folder
        return frozenset(entry.name for entry in local_path(folder).iterdir() if entry.is_dir())
    except (OSError, ValueError) as error:
        raise _open_error(error, shown(folder)) from error


def remote_files(url: str) -> tuple[Any, str]:
    """The fsspec filesystem and the path in it that `url` stands for.

    Raises:
        UnsafeFileError: the URL is chained (`simplecache::s3://...`), which may write files.
        InputError: fsspec, or the package for this protocol, is not installed.
    """
    if "::" in url:
        raise UnsafeFileError(f"{shown(url)} is a chained URL: give the plain URL of the files")
    try:
        files, path = importlib.import_module("fsspec.core").url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        protocol = url.split("://", 1)[0]
        raise InputError(
            f"{shown(url)} cannot be opened ({shown(error)}): install fsspec's package for"
            f" {shown(protocol)}, or download the files first"
        ) from error
    return files, str(path)


def remote_facts(url: str) -> dict[str, Any]:
    """What a store says of an object: its size and, often, what changes with its content.

    Raises:
        InputError: as `remote_files` says, or the request failed.
    """
    files, path = remote_files(url)
    facts: dict[str, Any] = _ask(files.info, path, shown(url))
    return facts


def _ask(method: Any, path: str, where: str, **options: Any) -> Any:
    try:
        return method(path, **options)
    except FileNotFoundError as error:
        raise MissingPathError(f"{where} does not exist: check the URL") from error
    except Exception as error:  # each backend has kinds of its own
        raise InputError(
            f"{where} cannot be read ({shown(error)}): check access to it, or download it first"
        ) from error


def _real_path(path: Path, root: Path) -> Path:
    """Where `path` really lies, refused where its last part is a link that leaves `root`."""
    where = shown(path)
    try:
        if not path.is_symlink():
            return path
        real, inside = path.resolve(strict=True), root.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise _open_error(error, where) from error
    if real.is_relative_to(inside) or real.parent == _hub_blobs(inside):
        return real
    raise UnsafeFileError(
        f"{where} is a link that leads out of its folder, to {shown(real)}:"
        " give the real folder, or copy the file there"
    )


def _hub_blobs(folder: Path) -> Path | None:
    """The blobs folder of the Hugging Face cache repository that `folder` is a snapshot of."""
    for snapshots in folder.parents:
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            return snapshots.parent / "blobs"
    return None


def _refuse_irregular(state: os.stat_result, where: str) -> None:
    if stat.S_ISREG(state.st_mode):
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a link",
    }
    kind = kinds.get(stat.S_IFMT(state.st_mode), "something else")
    raise UnsafeFileError(f"{where} is {kind}, not a regular file: give the path of a real file")


def _open_error(error: Exception, where: str) -> InputError:
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return UnsafeFileError(f"{where} is a link that cannot be followed: give the real path")
    if isinstance(error, RuntimeError):  # pathlib's word for a loop of links before Python 3.13
        return UnsafeFileError(f"{where} is a loop of links: give the real path")
    if isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError)):
        return MissingPathError(f"{where} does not exist: check the path")
    reason = error.strerror if isinstance(error, OSError) else shown(error)
    return InputError(f"{where} cannot be opened ({reason}): check its permissions")
