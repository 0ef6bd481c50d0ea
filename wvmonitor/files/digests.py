"""What changes with a file's content: its SHA-256, or its store's own word for it."""

from __future__ import annotations

import hashlib
from contextlib import closing

from wvmonitor.files.storage import Location, is_url, open_storage, remote_facts

_PIECE = 1 << 19  # bytes that are still in a core's cache when they are hashed


def sha256_file(path: Location) -> str:
    """The SHA-256 of a file's bytes as 64 hexadecimal digits, read piece by piece.

    Raises:
        InputError: the file is missing, irregular, or changes while it is being read.
    """
    digest = hashlib.sha256()
    with closing(open_storage(path)) as storage:
        step = max(storage.least, _PIECE)
        buffer = memoryview(bytearray(min(step, storage.size)))
        for offset in range(0, storage.size, step):
            part = buffer[: min(step, storage.size - offset)]
            storage.read_into(part, offset)
            digest.update(part)
    return digest.hexdigest()


def content_digest(path: Location) -> str:
    """What changes with a file's content: its SHA-256, or its store's own word for its content.

    The Hub keeps the SHA-256 of large files and Git's id of small ones, so that nothing is fetched.

    Raises:
        InputError: as `sha256_file` says.
    """
    if is_url(path):
        facts = remote_facts(str(path))
        large, small = facts.get("lfs"), facts.get("blob_id")
        digest = large.get("sha256") if isinstance(large, dict) else getattr(large, "sha256", None)
        if isinstance(digest, str):
            return digest
        if isinstance(small, str):
            return f"git:{small}"
    return sha256_file(path)
