"""Only regular files and plain objects are read, and what changes meanwhile is noticed."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from wvmonitor.errors import InputError, MalformedFileError, MissingPathError, UnsafeFileError
from wvmonitor.files.digests import sha256_file
from wvmonitor.files.safetensors import SafetensorsFile, write_safetensors


def test_a_file_that_shrinks_is_an_error_not_a_crash(weights: Path) -> None:
    """A file cut off while it is open gives a typed error and no SIGBUS."""
    with SafetensorsFile(weights) as found:
        os.truncate(weights, weights.stat().st_size - 40)
        with pytest.raises(MalformedFileError, match=r"model\.safetensors"):
            found.read("w")


@pytest.mark.parametrize("closed", [False, True])
def test_a_file_rewritten_in_place_is_noticed(weights: Path, closed: bool) -> None:
    """A file rewritten between two reads is an error, never a mixture of old and new."""
    with SafetensorsFile(weights) as found:
        found.read("w")
        if closed:
            found.close()
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        os.utime(weights, ns=(1, 1))
        with pytest.raises(MalformedFileError, match="changed while"):
            found.read("w")


def test_a_replaced_file_is_noticed_after_closing(weights: Path) -> None:
    """While open, the old file stays readable; reopened, its replacement is not mistaken for it."""
    with SafetensorsFile(weights) as found:
        write_safetensors(weights, {"w": torch.zeros(6, 4)})
        assert found.read("w").sum() == 276
        found.close()
        with pytest.raises(MalformedFileError, match="changed while"):
            found.read("w")
        weights.unlink()
        with pytest.raises(MissingPathError):
            found.read("w")


def make_fifo(path: Path) -> None:
    """A FIFO nobody writes to: opening it plainly would wait for ever."""
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    """A listening socket."""
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)


IRREGULAR = {
    "FIFO": make_fifo,
    "socket": make_socket,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link out": lambda path: path.symlink_to("/etc/passwd"),
    "link up": lambda path: path.symlink_to("../elsewhere/model.safetensors"),
    "link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("kind", IRREGULAR)
def test_irregular_files_are_refused_without_waiting(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO, device, socket, folder or link out of the folder is refused at once."""
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_safetensors(elsewhere / "model.safetensors", {"w": torch.ones(2)})
    path = tmp_path / "here" / "model.safetensors"
    path.parent.mkdir()
    IRREGULAR[kind](path)
    found: list[BaseException] = []

    def attempt() -> None:
        for ask in (SafetensorsFile, sha256_file):
            try:
                ask(path)
            except InputError as error:
                found.append(error)

    waiting = threading.Thread(target=attempt, daemon=True)
    waiting.start()
    waiting.join(10)
    assert [type(error) for error in found] == [UnsafeFileError] * 2


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device")
def test_a_device_named_outright_is_refused() -> None:
    """A device is refused by its own path too."""
    with pytest.raises(UnsafeFileError, match="a device"):
        SafetensorsFile("/dev/zero")


def test_links_that_stay_inside_are_followed(weights: Path) -> None:
    """A link to a file of the same folder is followed."""
    link = weights.with_name("latest.safetensors")
    link.symlink_to(weights.name)
    with SafetensorsFile(link) as found:
        assert found.read("scalar") == 2.5


@pytest.mark.parametrize(
    "name", ["nope.safetensors", "a/b/c", "model.safetensors/x", "nul\0", "\n"]
)
def test_a_missing_path_is_a_missing_path(weights: Path, name: str) -> None:
    """A path that is not there is named, escaped, as missing."""
    with pytest.raises(MissingPathError, match="check the path") as caught:
        SafetensorsFile(weights.parent / name)
    assert str(caught.value).isprintable()


@pytest.fixture
def remote(weights: Path) -> Iterator[str]:
    """The same file in fsspec's memory filesystem."""
    url = "memory://wvmonitor-tests/model.safetensors"
    with fsspec.open(url, "wb") as file:
        file.write(weights.read_bytes())
    yield url
    fsspec.filesystem("memory").rm("/wvmonitor-tests", recursive=True)


def test_a_url_reads_as_the_file(
    weights: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind an fsspec URL only the ranges asked for are fetched, and equal the local file."""
    asked: list[int] = []
    fetch = type(fsspec.filesystem("memory")).cat_file

    def counted(self: object, path: str, start: int, end: int) -> bytes:
        asked.append(end - start)
        return bytes(fetch(self, path, start=start, end=end))

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", counted)
    with SafetensorsFile(remote) as found, SafetensorsFile(f"file://{weights}") as local:
        assert found.tensors == local.tensors
        asked.clear()
        assert torch.equal(found.read_rows("w", 2, 4), local.read("w")[2:4])
        assert asked == [32]
        asked.clear()
        streamed = [block.clone() for block in found.stream("w", 1)]
        assert torch.equal(torch.cat(streamed), local.read("w").reshape(-1))
        assert asked == [local.info("w").size]  # not a request for each block
        assert all(torch.equal(found.read(name), local.read(name)) for name in local.tensors)
    assert sha256_file(remote) == sha256_file(weights)


def test_many_small_tensors_behind_a_url_take_few_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors read in file order share requests; one alone, or a header, fetches no more."""
    tensors = {f"t{i:03}": torch.full((40, 100), float(i)) for i in range(300)}
    write_safetensors(tmp_path / "many.safetensors", tensors)
    url, memory = "memory://wvmonitor-many/many.safetensors", fsspec.filesystem("memory")
    with fsspec.open(url, "wb") as file:
        file.write((tmp_path / "many.safetensors").read_bytes())
    asked: list[int] = []
    fetch = type(memory).cat_file

    def counted(self: object, path: str, start: int, end: int) -> bytes:
        asked.append(end - start)
        return bytes(fetch(self, path, start=start, end=end))

    monkeypatch.setattr(type(memory), "cat_file", counted)
    with SafetensorsFile(url) as found:
        assert sum(asked) < 40_000
        asked.clear()
        assert torch.equal(found.read("t250"), tensors["t250"])
        assert asked == [16_000]
        asked.clear()
        for name in sorted(tensors):
            assert torch.equal(found.read(name), tensors[name])
        assert len(asked) < 6
        assert sum(asked) <= 300 * 16_000
    memory.rm("/wvmonitor-many", recursive=True)


def test_a_url_that_fails_is_typed(remote: str) -> None:
    """A missing object, a folder, an unknown protocol and a chained URL are each told apart."""
    with pytest.raises(MissingPathError):
        SafetensorsFile("memory://wvmonitor-tests/nope.safetensors")
    with pytest.raises(UnsafeFileError, match="not a file"):
        SafetensorsFile("memory://wvmonitor-tests")
    with pytest.raises(UnsafeFileError, match="chained"):
        SafetensorsFile(f"simplecache::{remote}")
    with pytest.raises(InputError, match="install"):
        SafetensorsFile("nosuchprotocol://bucket/model.safetensors")


def test_messages_hide_credentials() -> None:
    """A message names a URL without the password or the signature in it."""
    with pytest.raises(InputError) as caught:
        SafetensorsFile("nosuchprotocol://user:hunter2@host/m.safetensors?signature=s3cret")
    assert "host/m.safetensors" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_backend_that_fails_is_typed(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a storage backend raises comes out as one typed sentence."""

    def fail(*_: object, **__: object) -> bytes:
        raise RuntimeError("connection\nreset")

    with SafetensorsFile(remote) as found:
        monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", fail)
        with pytest.raises(InputError, match="reset") as caught:
            found.read("w")
    assert str(caught.value).isprintable()


def test_a_remote_object_that_changes_is_noticed(remote: str) -> None:
    """An object that got shorter since it was opened is an error."""
    with SafetensorsFile(remote) as found:
        with fsspec.open(remote, "wb") as file:
            file.write(b"short")
        with pytest.raises(MalformedFileError, match="asked for"):
            found.read("w")
