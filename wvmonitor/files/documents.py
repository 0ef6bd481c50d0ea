"""Strict JSON: one meaning or an error.

Python's own parser lets duplicate keys shadow each other, reads `NaN`, and takes 25 times the
document's size in memory on hostile input; nothing reaches it here before its size, depth and
number of values are known to be bounded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import closing
from typing import Any, NoReturn

from wvmonitor.errors import InputError, MalformedFileError
from wvmonitor.files.atomic import replacing, write_all
from wvmonitor.files.storage import Location, open_storage, read_bytes, shown

MAX_DOCUMENT_BYTES = 10_000_000
MAX_DEPTH = 64
MAX_VALUES = 2_000_000
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(b for b in range(256) if b not in b"[]{}")


def decode_json(raw: bytes | bytearray, what: str, depth: int = MAX_DEPTH) -> dict[str, Any]:
    """The JSON object that `raw` spells, with no duplicate key at any level.

    Args:
        raw: UTF-8 without byte order mark.
        what: how messages name the document, already safe to print.
        depth: how deeply objects and arrays may nest.

    Raises:
        MalformedFileError: not UTF-8, not JSON, not an object, a key given twice, a number beyond
            float64, nested too deeply, or more than two million values.
    """
    if raw[:3] == b"\xef\xbb\xbf":
        raise MalformedFileError(f"{what} begins with a byte order mark: save it as plain UTF-8")
    _check_bounds(bytes(raw), what, depth)
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique_pairs,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except UnicodeDecodeError as error:
        raise MalformedFileError(
            f"{what} is not UTF-8 (byte {error.start}): save it again, or fetch a whole copy"
        ) from error
    except _RepeatedKeyError as error:
        raise MalformedFileError(
            f"{what} gives the key {shown(error.args[0])} twice: remove one of the two"
        ) from error
    except (ValueError, RecursionError) as error:
        raise MalformedFileError(
            f"{what} is not valid JSON ({error}): save it again, or fetch a whole copy"
        ) from error
    if not isinstance(value, dict):
        raise MalformedFileError(
            f"{what} must be a JSON object, got {type(value).__name__}: save it again"
        )
    return value


def read_json(path: Location, limit: int = MAX_DOCUMENT_BYTES) -> dict[str, Any]:
    """The JSON object in a file or behind an fsspec URL, of `limit` bytes at the most.

    Raises:
        MissingPathError: there is no such file.
        UnsafeFileError: it is no regular file, or a link out of its folder.
        MalformedFileError: it is too large, or as `decode_json` says.
    """
    with closing(open_storage(path)) as storage:
        if storage.size > limit:
            raise MalformedFileError(
                f"{storage.where} has {storage.size} bytes, more than the {limit} allowed for a"
                " JSON document: check that it is the right file"
            )
        raw = read_bytes(storage, 0, storage.size)
    return decode_json(raw, storage.where)


def write_json(path: Location, value: Mapping[str, Any], mode: int = 0o666) -> None:
    """Write a JSON object atomically; equal objects give equal bytes (sorted keys, two spaces).

    Numbers must be finite. The mode is less the umask: 0o600 for private files.

    Raises:
        InputError: a number is not finite, or a string is not valid Unicode.
        OSError: the system refuses to write.
    """
    try:
        text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        data = f"{text}\n".encode()
    except ValueError as error:
        raise InputError(
            f"{shown(path)} cannot be written as JSON ({shown(error)}): replace that value"
        ) from error
    with replacing(path, mode) as descriptor:
        write_all(descriptor, data)


class _RepeatedKeyError(ValueError):
    """A key stands twice in one object."""


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKeyError(key)
            seen.add(key)
    return unique


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is beyond float64")
    return value


def _check_bounds(raw: bytes, what: str, depth: int) -> None:
    """Bound the number of values and the depth before a parser runs.

    Dropping escape pairs and then every second piece between quotes leaves what stands outside
    strings. A backslash outside a string upsets this only behind the point where parsing stops.
    """
    # Pairs go from the left, so that the quote in `\\"` (an escaped backslash) still closes.
    plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = plain.count(b'"')
    outside = b"".join(plain.split(b'"')[::2]) if quotes <= 2 * MAX_VALUES else b""
    values = outside.count(b",") + outside.count(b"[") + outside.count(b"{")
    if max(values, quotes // 2) > MAX_VALUES:
        raise MalformedFileError(
            f"{what} holds more than {MAX_VALUES} values: check that it is the right file"
        )
    brackets = outside.translate(_ONE_KIND, _NOT_BRACKETS)
    for _ in range(depth):  # each round takes the innermost level away
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise MalformedFileError(
            f"{what} nests deeper than {depth} levels, or leaves a bracket open:"
            " save it again, or fetch a whole copy"
        )


def json_line(value: Any) -> str:
    """The value as JSON on one line, in which nothing a terminal would obey stands as it is.

    JSON escapes the first 32 control characters; those from 0x7f on, and the marks that turn the
    direction of text, are escaped here too.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
