"""JSON documents mean one thing, or are refused."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wvmonitor.errors import InputError, MalformedFileError, MissingPathError, UnsafeFileError
from wvmonitor.files.documents import decode_json, read_json, write_json

BROKEN = {
    "empty": (b"", "not valid JSON"),
    "not JSON": (b"alpha: 3", "not valid JSON"),
    "cut short": (b'{"a": 1', "bracket open"),
    "two": (b"{} {}", "not valid JSON"),
    "an array": (b"[1]", "got list"),
    "text": (b'"a"', "got str"),
    "null": (b"null", "got NoneType"),
    "not UTF-8": (b'{"a": "\xe9"}', "not UTF-8"),
    "byte order mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "duplicate": (b'{"alpha": 1, "alpha": 2}', "'alpha' twice"),
    "duplicate inside": (b'{"a": [{"b": 1, "c": 2, "b": 1}]}', "'b' twice"),
    "duplicate with escapes": (b'{"a\\n": 1, "a\\u000a": 2}', r"'a\\n' twice"),
    "NaN": (b'{"alpha": NaN}', "NaN"),
    "infinity": (b'{"alpha": -Infinity}', "Infinity"),
    "too large a number": (b'{"alpha": 1e999}', "beyond float64"),
    "too many digits": (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "deep": (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "deeper than 64"),
    "deep in both": (b'{"a":[' * 33 + b"]}" * 33, "deeper than 64"),
    "very deep": (b'{"a":' * 500_000, "deeper than 64"),
    "deep behind quotes": (b'{"\\\\":' + b"[" * 100_000, "deeper than 64"),
    "control character": (b'{"a": "\n"}', "not valid JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_document_is_refused_by_name(tmp_path: Path, case: str) -> None:
    """A document with no meaning, or more than one, is refused in one line naming the file."""
    data, expected = BROKEN[case]
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(MalformedFileError, match=expected) as caught:
        read_json(path)
    assert "config.json" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        ' {"a": "[[[{{{,,,"} \n',
        r'{"a": "\\", "b": "\"[", "c": "\\\"{"}',
        '{"a": [[], {}, [{}, [1, 2.5, -3e-7, true, null]]]}',
        '{"a":' + "[" * 40 + "]" * 40 + "}",
    ],
)
def test_a_sound_document_is_read(text: str) -> None:
    """Brackets and quotes inside text, and moderate nesting, are read as any parser reads them."""
    assert decode_json(text.encode(), "it") == json.loads(text)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=12,
)


@settings(deadline=None, max_examples=40)
@given(value=st.dictionaries(st.text(st.characters(codec="utf-8")), values))
def test_documents_come_back(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]
) -> None:
    """Any object comes back equal, and equal objects give equal bytes."""
    folder = tmp_path_factory.mktemp("json")
    write_json(folder / "one", value)
    write_json(folder / "two", dict(reversed(value.items())))
    assert read_json(folder / "one") == value
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()
    plain = json.dumps(value).encode()
    assert decode_json(plain, "it") == value


def test_a_document_over_its_limit_is_not_read(tmp_path: Path) -> None:
    """A document over the limit is refused by its size."""
    path = tmp_path / "card.json"
    write_json(path, {"a": "x" * 100})
    assert read_json(path)["a"] == "x" * 100
    with pytest.raises(MalformedFileError, match=r"card\.json.*more than the 50"):
        read_json(path, limit=50)


def test_documents_are_only_regular_files(tmp_path: Path) -> None:
    """A missing document, a folder and a link out of the folder are told apart."""
    with pytest.raises(MissingPathError):
        read_json(tmp_path / "nope.json")
    with pytest.raises(UnsafeFileError, match="a folder"):
        read_json(tmp_path)
    link = tmp_path / "link.json"
    link.symlink_to("/etc/hostname")
    with pytest.raises(UnsafeFileError, match="leads out"):
        read_json(link)


def test_documents_behind_urls(tmp_path: Path) -> None:
    """A document is read through fsspec as from disk."""
    with fsspec.open("memory://wvmonitor-json/a.json", "wb") as file:
        file.write(b'{"a": 1}')
    assert read_json("memory://wvmonitor-json/a.json") == {"a": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"], ids=ascii)
def test_what_is_no_json_is_not_written(tmp_path: Path, value: object) -> None:
    """A value JSON cannot hold leaves the old document as it was."""
    path = tmp_path / "card.json"
    write_json(path, {"a": 1}, mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(InputError, match=r"card\.json"):
        write_json(path, {"a": value})
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["card.json"]


def test_a_line_of_json_holds_nothing_that_a_terminal_obeys() -> None:
    """Controls and marks of direction are escaped; what can be read stays as it is."""
    import json

    from wvmonitor.files.documents import json_line

    odd = "é 漢 \x1b[31m \x9b31m \u202e \u2028 \x7f \ud800 \U000e0001"
    line = json_line({"name": odd})
    assert line.isprintable()
    assert "é 漢" in line
    assert json.loads(line) == {"name": odd}
