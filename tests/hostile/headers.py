"""Headers that lie: the eight bytes of length, and the JSON behind them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.hostile.corpus import BODY, GOOD, Case, Place, described, packed
from wvmonitor.errors import MalformedFileError

SOUND = b'{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'


def weights(make: Callable[[], bytes]) -> Callable[[Place], Path]:
    """An adapter with these bytes for weights; they are made when the case is built."""
    return lambda place: place.adapter_with(make())


def sparse(place: Place) -> Path:
    """A header of more than 100 MB, without a hundred megabytes on disk."""
    folder = place.adapter_with(packed(b"{", b"", length=100_000_001))
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(100_000_100)
    return folder


def million_tensors() -> bytes:
    entry = '"{0}":{{"dtype":"U8","shape":[],"data_offsets":[{0},{1}]}}'
    text = ",".join(entry.format(i, i + 1) for i in range(1_000_000))
    return packed(f"{{{text}}}".encode(), bytes(1_000_000))


def many_small_tensors() -> bytes:
    """As many as fit into a header that is not refused for its length."""
    entry = '"{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    return packed(f"{{{','.join(entry.format(i) for i in range(400_000))}}}".encode(), b"")


MAKERS: dict[str, Callable[[], bytes]] = {
    "empty file": lambda: b"",
    "seven bytes": lambda: b"\x10" + bytes(6),
    "length 0": lambda: packed(SOUND, length=0),
    "length 2^64 - 1": lambda: packed(SOUND, length=2**64 - 1),
    "length 2^63": lambda: packed(SOUND, length=2**63),
    "length beyond the file": lambda: packed(SOUND, length=len(SOUND) + 17),
    "not UTF-8": lambda: packed(SOUND.replace(b'"w"', b'"\xff\xfe"')),
    "byte order mark": lambda: packed(b"\xef\xbb\xbf" + SOUND),
    "UTF-16": lambda: packed(SOUND.decode().encode("utf-16-le")),
    "NUL tail": lambda: packed(SOUND + bytes(8)),
    "text behind the JSON": lambda: packed(SOUND + b"{}"),
    "JSON 100,000 deep": lambda: packed(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "JSON half open, a million deep": lambda: packed(b'{"w":' * 1_000_000),
    "the same entry twice": lambda: packed(SOUND[:-1] + b"," + SOUND[1:]),
    "an entry that shadows another": lambda: packed(
        SOUND[:-1] + b"," + SOUND[1:].replace(b"[2,2]", b"[4,1]")
    ),
    "a field given twice": lambda: packed(SOUND.replace(b"F32", b'F32","dtype":"I32')),
    "metadata of numbers": lambda: described({"__metadata__": {"step": 3}, "w": GOOD}),
    "metadata nested": lambda: described({"__metadata__": {"a": {"b": "c"}}, "w": GOOD}),
    "99 MB of metadata": lambda: packed(b'{"__metadata__":{"a":"' + b"x" * 99_000_000 + b'"}}'),
    "24 MB of escapes": lambda: packed(b'{"a":"' + b"\\u0041" * 4_000_000 + b'"}'),
    "a million tensors": million_tensors,
    "as many tensors as fit": many_small_tensors,
    "a number of a million digits": lambda: packed(
        SOUND.replace(b"[0,16]", b"[0," + b"1" * 1_000_000 + b"]")
    ),
    "NaN for an offset": lambda: packed(SOUND.replace(b"16]", b"NaN]")),
    "negative offsets": lambda: described({"w": {**GOOD, "data_offsets": [-16, 0]}}),
    "reversed offsets": lambda: described({"w": {**GOOD, "data_offsets": [16, 0]}}),
    "an array for a header": lambda: packed(b"[" + SOUND + b"]", BODY),
}

CASES = (
    *(Case(name, "headers", weights(make), MalformedFileError) for name, make in MAKERS.items()),
    Case("length over 100 MB", "headers", sparse, MalformedFileError),
)
