"""Each way a weight file can lie about itself is refused before any tensor is read."""

from __future__ import annotations

import json
import re
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from wvmonitor.errors import InputError, MalformedFileError, QuantizedWeightsError
from wvmonitor.files.header import MAX_HEADER_BYTES
from wvmonitor.files.safetensors import SafetensorsFile

BODY = bytes(range(16))
GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def packed(header: bytes, body: bytes = BODY) -> bytes:
    """A file whose length field tells the truth about `header`."""
    return struct.pack("<Q", len(header)) + header + body


def described(fields: dict[str, Any], body: bytes = BODY) -> bytes:
    """A file with these fields in its header."""
    return packed(json.dumps(fields).encode(), body)


def one(**changes: Any) -> bytes:
    """A file of one tensor `w`, right but for `changes`."""
    return described({"w": {**GOOD, **changes}})


def refusal(tmp_path: Path, data: bytes) -> InputError:
    """The error that opening `data` raises, which names the file on one safe line."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        SafetensorsFile(path)
    message = str(caught.value)
    assert "model.safetensors" in message
    assert message.isprintable(), "one line, nothing that a terminal would obey"
    return caught.value


ENTRY = json.dumps(GOOD)
EMPTY = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
HEADERS = {
    "empty file": (b"", "too few"),
    "seven bytes": (b"1234567", "too few"),
    "length 0": (struct.pack("<Q", 0) + BODY, "gives its header 0"),
    "length 2^64-1": (struct.pack("<Q", 2**64 - 1) + BODY, "gives its header"),
    "length over the file": (struct.pack("<Q", 25) + BODY, "only 24 in all"),
    "length over 100 MB": (struct.pack("<Q", 100_000_001) + BODY, "expected 2 to"),
    "a pickle inside": (b"\x80\x04\x95" + b"0" * 64, "expected 2 to"),
    "a zip inside": (b"PK\x03\x04" + b"\0" * 64, "expected 2 to"),
    "not UTF-8": (packed(b'{"\xff": {}}'), "not UTF-8"),
    "UTF-16": (packed('{"w": {}}'.encode("utf-16-le")), "JSON|bracket"),
    "byte order mark": (packed(b"\xef\xbb\xbf{}"), "begin with"),
    "space in front": (packed(b" {}", b""), "begin with"),
    "NUL tail": (packed(b"{}\0\0\0", b""), "not valid JSON"),
    "two documents": (packed(b"{}{}", b""), "not valid JSON"),
    "cut short": (packed(b'{"w": {"dtype": "F32"'), "bracket open"),
    "open text": (packed(b'{"w'), "JSON|bracket"),
    "an array": (packed(b"[]", b""), "begin with"),
    "deep arrays": (packed(b'{"w":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nests deeper"),
    "deep objects": (packed(b'{"w":' * 100_000 + b"1" + b"}" * 100_000), "nests deeper"),
    "only brackets": (packed(b"{" + b"[" * 900_000), "nests deeper"),
    "duplicate tensor": (packed(f'{{"w":{ENTRY},"w":{ENTRY}}}'.encode()), "'w' twice"),
    "duplicate by escape": (packed(f'{{"w":{ENTRY},"\\u0077":{ENTRY}}}'.encode()), "'w' twice"),
    "duplicate field": (packed(f'{{"w":{ENTRY[:-1]},"dtype":"F16"}}}}'.encode()), "'dtype' twice"),
    "duplicate metadata": (packed(b'{"__metadata__":{},"__metadata__":{}}', b""), "twice"),
    "duplicate note": (packed(b'{"__metadata__":{"a":"1","a":"2"}}', b""), "'a' twice"),
    "NaN": (packed(b'{"w": NaN}'), "NaN is no JSON number"),
    "number of 5,000 digits": (one(shape=[2, 2]).replace(b"16]", b"1" * 5000 + b"]"), "JSON|brac"),
    "metadata is text": (described({"__metadata__": "x"}, b""), "must be an object"),
    "metadata of numbers": (described({"__metadata__": {"step": 3}}, b""), "'step' is int"),
    "metadata nested": (described({"__metadata__": {"a": {"b": "c"}}}, b""), "'a' is dict"),
    "metadata half a pair": (packed(b'{"__metadata__":{"a":"\\ud800"}}', b""), "invalid Unicode"),
    "entry is text": (described({"w": "x"}), "exactly dtype"),
    "entry is null": (described({"w": None}), "exactly dtype"),
    "field missing": (described({"w": {"dtype": "F32", "shape": [4]}}), "exactly dtype"),
    "field too many": (one(strides=[1]), "exactly dtype"),
    "unknown dtype": (one(dtype="F128"), "dtype 'F128'"),
    "lower-case dtype": (one(dtype="f32"), "dtype 'f32'"),
    "dtype is a list": (one(dtype=["F32"]), "has the dtype"),
    "dtype is a number": (one(dtype=4), "has the dtype"),
    "shape is text": (one(shape="22"), "shape of the tensor 'w'"),
    "shape is a number": (one(shape=4), "shape of the tensor 'w'"),
    "shape negative": (one(shape=[-2, -2]), "shape of the tensor 'w'"),
    "shape of floats": (one(shape=[2.0, 2.0]), "shape of the tensor 'w'"),
    "shape of booleans": (one(shape=[True, 4]), "shape of the tensor 'w'"),
    "rank 17": (one(shape=[2, 2] + [1] * 15), "at most 16"),
    "rank 10,000": (one(shape=[1] * 10_000), "at most 16"),
    "dimension 2^63": (one(shape=[2**63]), "2\\^63"),
    "shape overflow": (one(shape=[2**62, 2**62]), "2\\^63 bytes"),
    "shape that wraps to right": (one(shape=[2**62 + 4]), "2\\^63 bytes"),
    "overflow behind a zero": (one(shape=[0, 2**62, 2**62], data_offsets=[0, 0]), "2\\^63 bytes"),
    "offsets are text": (one(data_offsets="0,16"), "data_offsets of the tensor 'w'"),
    "offsets of three": (one(data_offsets=[0, 8, 16]), "data_offsets"),
    "offsets of one": (one(data_offsets=[16]), "data_offsets"),
    "offsets negative": (one(data_offsets=[-16, 0]), "data_offsets"),
    "offsets reversed": (one(data_offsets=[16, 0]), "data_offsets"),
    "offsets of booleans": (one(data_offsets=[False, 16]), "data_offsets"),
    "offsets of floats": (one(data_offsets=[0.0, 16.0]), "data_offsets"),
    "size too small": (one(data_offsets=[0, 12]), "needs 16 bytes"),
    "size too large": (one(shape=[2]), "needs 8 bytes"),
    "body too short": (described({"w": GOOD}, BODY[:-1]), "has 15 bytes of tensors"),
    "no body": (described({"w": GOOD}, b""), "has 0 bytes of tensors"),
    "trailing bytes": (described({"w": GOOD}, BODY + b"PK\x05\x06" + b"\0" * 18), "22 bytes after"),
    "trailing bytes, no tensor": (packed(b"{}", b"x"), "1 bytes after"),
    "hole in front": (
        described({"w": {**GOOD, "data_offsets": [4, 20]}}, b"\0" * 20),
        "'w' in .* leaves a hole",
    ),
    "hole between": (
        described({"v": GOOD, "w": {**GOOD, "data_offsets": [20, 36]}}, b"\0" * 36),
        "'w' in .* leaves a hole",
    ),
    "overlap": (
        described({"v": GOOD, "w": {**GOOD, "data_offsets": [12, 28]}}, b"\0" * 28),
        "'w' in .* overlaps",
    ),
    "same bytes twice": (described({"v": GOOD, "w": GOOD}), "overlaps"),
    "empty tensor far away": (
        described({"v": GOOD, "w": {**EMPTY, "data_offsets": [99, 99]}}),
        "leaves a hole",
    ),
    "a million values": (packed(b"{" + b'"a":[' + b"1," * 2_500_000 + b"1]}"), "more than 2000000"),
    "a million empty texts": (packed(b'{"a":[' + b'"",' * 2_500_000 + b'""]}'), "more than"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_file_that_breaks_the_format_is_refused_by_name(tmp_path: Path, case: str) -> None:
    """A file that breaks any rule of the format is refused, in one line that says which."""
    data, expected = HEADERS[case]
    error = refusal(tmp_path, data)
    assert type(error) is MalformedFileError
    assert re.search(expected, str(error)), str(error)


@pytest.mark.parametrize("code", ["F4", "F6_E2M3", "F6_E3M2"])
def test_sub_byte_weights_are_named_as_quantised(tmp_path: Path, code: str) -> None:
    """Elements of less than a byte are refused as quantised weights, naming the tensor."""
    error = refusal(tmp_path, one(dtype=code, shape=[32]))
    assert type(error) is QuantizedWeightsError
    assert "'w'" in str(error)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a\0b",
        "a\nb",
        "a\rb",
        "\x1b[31mred\x1b[0m",
        "a\x7fb",
        "a\x9bb",
        "a\u202eb",
        "a\u2066b",
        "a\u200bb",
        "a\ufeffb",
        "a\u2028b",
        "a\u00a0b",
        "\ud800",
        "x" * 1025,
        "../w",
        "a/../../w",
        "..\\w",
        "/etc/passwd",
    ],
    ids=ascii,
)
def test_names_that_deceive_are_refused_and_shown_escaped(tmp_path: Path, name: str) -> None:
    """A name that could deceive a terminal, a log or a path is refused and shown escaped."""
    error = refusal(tmp_path, described({name: GOOD}))
    assert type(error) is MalformedFileError
    assert "tensor name" in str(error)


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.weight", "мир.вес", "重み", "a/b", "a b", "<b>&\"'", "a..b", "x" * 1024],
    ids=ascii,
)
def test_unusual_but_plain_names_are_read(tmp_path: Path, name: str) -> None:
    """A printable name in any script is read as it is."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(described({name: GOOD}))
    with SafetensorsFile(path) as weights:
        assert list(weights.tensors) == [name]


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"{}", b""),
        (b"{}      ", b""),
        (b'{"__metadata__":{"note":"[{,\\"\\\\"}}', b""),
        (json.dumps({"w": GOOD, "e": EMPTY}).encode(), BODY),
        (json.dumps({"w": GOOD, "e": {**EMPTY, "data_offsets": [16, 16]}}).encode(), BODY),
    ],
)
def test_odd_but_valid_files_are_read(tmp_path: Path, header: bytes, body: bytes) -> None:
    """Padding, brackets inside notes and empty tensors are no reason to refuse a file."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(packed(header, body))
    with SafetensorsFile(path) as weights:
        assert {name: weights.read(name).numel() for name in weights.tensors} == (
            {"w": 4, "e": 0} if body else {}
        )


def test_a_file_cut_at_any_byte_is_never_accepted(tmp_path: Path) -> None:
    """A file that is still being written, cut at any byte, is never taken for a whole one."""
    data = described({"__metadata__": {"step": "1"}, "a": GOOD, "e": EMPTY})
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    SafetensorsFile(path).close()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(MalformedFileError):
            SafetensorsFile(path)


def header_bombs() -> dict[str, bytes]:
    """Headers as large as they can be without being refused for a plainer reason first."""
    entries = (
        f'"{i}":{{"dtype":"U8","shape":[],"data_offsets":[{i},{i + 1}]}}' for i in range(1_000_000)
    )
    million = ("{" + ",".join(entries) + "}").encode()
    some = 300_000
    fits = ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(some))
    return {
        "a million tensors": packed(million, b"\0" * 1_000_000),
        "300,000 tensors": packed(b"{" + fits.encode() + b"}", b""),
        "99 MB of metadata": packed(b'{"__metadata__":{"a":"' + b"x" * 99_000_000 + b'"}}', b""),
        "escapes to the limit": packed(b'{"a":"' + b"\\n" * (MAX_HEADER_BYTES // 2 - 8), b""),
        "widest characters": packed(
            b'{"__metadata__":{"a":"'
            + "😀".encode()
            + b"x" * (MAX_HEADER_BYTES - 40)
            + b'"}, "w":1}',
            b"",
        ),
    }


def test_header_bombs_cost_little(tmp_path: Path) -> None:
    """A header made to exhaust memory or time is refused within seconds and half a gigabyte."""
    bombs = header_bombs()
    while bombs:
        case, data = bombs.popitem()
        path = tmp_path / "model.safetensors"
        path.write_bytes(data)
        del data
        began = time.monotonic()
        tracemalloc.start()
        with pytest.raises(MalformedFileError):
            SafetensorsFile(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert time.monotonic() - began < 10, case
        assert peak < 400e6, (case, peak)
