"""Weights come back as they were written, by us or by the official library, or not at all."""

from __future__ import annotations

import json
import os
import stat
import struct
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch as official
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wvmonitor.errors import (
    InputError,
    KeyMismatchError,
    MalformedFileError,
    MissingPathError,
)
from wvmonitor.files import safetensors as ours
from wvmonitor.files.header import DTYPES
from wvmonitor.files.safetensors import PlannedTensor, SafetensorsFile, write_safetensors

SHAPES = [(), (0,), (1,), (3, 5), (2, 0, 3), (2, 3, 4)]


def filled(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Random bits of this dtype: every pattern a file could hold, NaN payloads included."""
    count = int(torch.Size(shape).numel())
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).to(torch.bool)
    bits = torch.randint(0, 256, (count * dtype.itemsize,), generator=generator)
    return bits.to(torch.uint8).view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor, so that NaNs compare too."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit."""
    return left.dtype == right.dtype and left.shape == right.shape and bits(left) == bits(right)


# The official library of this version has no torch dtype for F8_E8M0.
@pytest.mark.parametrize("code", [code for code in DTYPES if code != "F8_E8M0"])
def test_files_of_the_official_library_are_read_bit_for_bit(tmp_path: Path, code: str) -> None:
    """Every dtype and shape that the official library saved is read back bit for bit."""
    tensors = {str(i): filled(DTYPES[code], shape, i) for i, shape in enumerate(SHAPES)}
    path = tmp_path / "model.safetensors"
    official.save_file(tensors, path, {"who": "official"})
    with SafetensorsFile(path) as found:
        assert found.metadata == {"who": "official"}
        assert set(found.tensors) == set(tensors)
        for name, tensor in tensors.items():
            assert found.info(name).dtype == tensor.dtype
            assert found.info(name).shape == tuple(tensor.shape)
            assert same(found.read(name), tensor)


@pytest.mark.parametrize("code", DTYPES)
def test_the_official_library_reads_what_is_written(tmp_path: Path, code: str) -> None:
    """The official library reads every dtype and shape written here, bit for bit."""
    tensors = {str(i): filled(DTYPES[code], shape, i) for i, shape in enumerate(SHAPES)}
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tensors, {"who": "wvmonitor"})
    with SafetensorsFile(path) as own:
        assert all(same(own.read(name), tensor) for name, tensor in tensors.items())
    if code == "F8_E8M0":
        return
    found = official.load_file(path)
    assert found.keys() == tensors.keys()
    assert all(same(found[name], tensor) for name, tensor in tensors.items())


names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=12).filter(
    lambda n: n[0] not in "/\\" and ".." not in n and n != "__metadata__"
)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
plans = st.dictionaries(names, st.tuples(st.sampled_from(sorted(DTYPES)), shapes), max_size=5)


@settings(deadline=None, max_examples=60)
@given(plan=plans, notes=st.dictionaries(names, st.text(st.characters(codec="utf-8")), max_size=3))
def test_anything_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    plan: dict[str, tuple[str, tuple[int, ...]]],
    notes: dict[str, str],
) -> None:
    """Any names, dtypes, shapes and notes come back as written, whatever order they came in."""
    folder = tmp_path_factory.mktemp("round")
    tensors = {n: filled(DTYPES[code], shape, len(n)) for n, (code, shape) in plan.items()}
    write_safetensors(folder / "one", tensors, notes)
    write_safetensors(folder / "two", reversed(tensors.items()), dict(reversed(notes.items())))
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()
    with SafetensorsFile(folder / "one") as found:
        assert found.metadata == notes
        assert {n: bits(found.read(n)) for n in found.tensors} == {
            n: bits(t) for n, t in tensors.items()
        }


@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 2, 3), (6, 0), (0, 4)])
def test_rows_equal_the_same_rows_of_the_whole(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Any range of rows equals that range of the whole tensor."""
    path = tmp_path / "model.safetensors"
    whole = filled(torch.bfloat16, shape)
    write_safetensors(path, {"before": torch.ones(3), "w": whole, "z": torch.ones(1)})
    with SafetensorsFile(path) as found:
        for start in range(shape[0] + 1):
            for stop in range(start, shape[0] + 1):
                assert same(found.read_rows("w", start, stop), whole[start:stop])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.bool])
@pytest.mark.parametrize("shape", [(), (7,), (6, 4), (3, 2, 5), (6, 0)])
def test_a_stream_is_the_tensor_in_pieces(
    tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Blocks of any size are the flat tensor or its beginning, all but the last of that size."""
    path = tmp_path / "model.safetensors"
    whole = filled(dtype, shape)
    write_safetensors(path, {"before": torch.ones(3), "w": whole, "z": torch.ones(1)})
    with SafetensorsFile(path) as found:
        for elements in (1, 4, 1000):
            for count in (None, 0, whole.numel() // 2):
                blocks = [block.clone() for block in found.stream("w", elements, count)]
                assert all(b.numel() == elements for b in blocks[:-1])
                assert same(torch.cat([whole.new_empty(0), *blocks]), whole.reshape(-1)[:count])


def test_a_stream_holds_one_block(tmp_path: Path) -> None:
    """All blocks of a stream lie in one buffer: memory is bounded by what is read at once."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"w": torch.ones(64, 16)})
    with SafetensorsFile(path) as found:
        places = {block.data_ptr() for block in found.stream("w", 128)}
    assert len(places) == 1


@pytest.mark.parametrize(
    ("name", "start", "stop"), [("w", -1, 2), ("w", 3, 2), ("w", 0, 7), ("scalar", 0, 1)]
)
def test_rows_outside_the_tensor_are_refused(
    weights: Path, name: str, start: int, stop: int
) -> None:
    """Rows that a tensor does not have are an error, never another tensor's bytes."""
    with SafetensorsFile(weights) as found, pytest.raises(ValueError, match=name):
        found.read_rows(name, start, stop)


def test_an_unknown_tensor_is_named(weights: Path) -> None:
    """Asking for a tensor the file does not hold names both."""
    with SafetensorsFile(weights) as found:
        for ask in (found.info, found.read, lambda name: found.read_rows(name, 0, 1)):
            with pytest.raises(KeyMismatchError, match=r"model\.safetensors.*'nope'"):
                ask("nope")


def test_tensors_own_their_memory(weights: Path) -> None:
    """A tensor that was read may be changed, and outlives its file."""
    with SafetensorsFile(weights) as found:
        first = found.read("w")
        first.zero_()
        assert found.read("w")[0, 1] == 1
    weights.unlink()
    assert first.sum() == 0


def test_booleans_are_zero_or_one(tmp_path: Path) -> None:
    """A BOOL tensor with any other byte is refused: torch would compute nonsense with it."""
    header = b'{"m":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\x01\x02")
    with SafetensorsFile(path) as found:
        for ask in (found.read, lambda name: next(found.stream(name, 2))):
            with pytest.raises(MalformedFileError, match=r"'m'.*BOOL"):
                ask("m")


def test_a_terabyte_with_nothing_in_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file that claims more than the machine's memory is refused, and rows are read."""
    size = 2**40
    header = json.dumps({"w": {"dtype": "U8", "shape": [2**30, 1024], "data_offsets": [0, size]}})
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    try:
        os.truncate(path, 8 + len(header) + size)
    except OSError:
        pytest.skip("this filesystem has no such files")
    limit = ours.memory_of_machine()
    assert limit > 2**26
    monkeypatch.setattr(ours, "memory_of_machine", lambda: min(limit, size - 1))
    with SafetensorsFile(path) as found:
        with pytest.raises(InputError, match=r"'w'.*more than this machine's memory"):
            found.read("w")
        assert found.read_rows("w", 2**30 - 1, 2**30).sum() == 0


def test_memory_is_bounded_by_the_rows_asked_for(tmp_path: Path) -> None:
    """Reading a few rows of a large tensor needs memory for these rows only."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"w": torch.ones(4096, 1024)})  # 16 MiB
    with SafetensorsFile(path) as found:
        made: list[int] = []
        whole, ours_empty = found.info("w").size, ours._empty

        def counted(
            shape: tuple[int, ...], dtype: torch.dtype, name: str, where: str
        ) -> torch.Tensor:
            tensor = ours_empty(shape, dtype, name, where)
            made.append(tensor.nbytes)
            return tensor

        tracemalloc.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ours, "_empty", counted)
            for start in range(0, 4096, 64):
                found.read_rows("w", start, start + 64)
            found.read("w")
        _, beside = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert made == [whole // 64] * 64 + [whole]
    assert beside < 1e6, "no copy of the bytes beside the tensor itself"


def test_writing_fails_whole(weights: Path) -> None:
    """When making a tensor fails, the old file stays and nothing half-written is left."""
    before = weights.read_bytes()

    def fail() -> torch.Tensor:
        raise RuntimeError("no tensor today")

    broken = PlannedTensor(torch.float32, (2,), fail)
    with pytest.raises(RuntimeError, match="today"):
        write_safetensors(weights, {"a": torch.ones(1000), "b": broken})
    assert weights.read_bytes() == before
    assert [entry.name for entry in weights.parent.iterdir()] == [weights.name]


def test_plans_are_made_one_at_a_time(tmp_path: Path) -> None:
    """Planned tensors are made in turn, each once, and the file equals the one of real tensors."""
    alive: list[str] = []

    def plan(name: str) -> PlannedTensor:
        def make() -> torch.Tensor:
            alive.append(name)
            return torch.full((3,), float(ord(name)))

        return PlannedTensor(torch.float32, (3,), make)

    write_safetensors(tmp_path / "one", [(name, plan(name)) for name in "cab"])
    assert alive == ["a", "b", "c"]
    write_safetensors(tmp_path / "two", {n: torch.full((3,), float(ord(n))) for n in "bca"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_views_are_written_as_they_read(tmp_path: Path) -> None:
    """Transposed, sliced, conjugated, grad-tracking and shared tensors are written by value."""
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "transposed": base.T,
        "sliced": base[:, 1:3],
        "expanded": torch.ones(1, 4).expand(3, 4),
        "conjugated": torch.tensor([1 + 2j]).conj(),
        "parameter": torch.nn.Parameter(base),
        "shared": base,
    }
    write_safetensors(tmp_path / "m", tensors)
    found = official.load_file(tmp_path / "m")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


WRONG = {
    "doubled": ([("w", torch.ones(1)), ("w", torch.ones(1))], "twice"),
    "unknown dtype": ({"w": torch.zeros(1, dtype=torch.complex128)}, "complex128"),
    "sparse": ({"w": torch.eye(2).to_sparse()}, "dense"),
    "meta": ({"w": torch.empty(2, device="meta")}, "dense"),
    "rank 17": ({"w": torch.ones([1] * 17)}, "shape"),
    "negative": ({"w": PlannedTensor(torch.float32, (-1,), torch.ones)}, "shape"),
    "metadata's name": ({"__metadata__": torch.ones(1)}, "metadata"),
    "empty name": ({"": torch.ones(1)}, "empty"),
    "control character": ({"a\nb": torch.ones(1)}, "cannot be shown"),
    "other shape": ({"w": PlannedTensor(torch.float32, (2,), lambda: torch.ones(3))}, "planned"),
    "other dtype": (
        {"w": PlannedTensor(torch.float16, (2,), lambda: torch.ones(2))},
        "planned",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_written_is_refused(tmp_path: Path, case: str) -> None:
    """What the format cannot hold is refused by name, and no file is left."""
    tensors, expected = WRONG[case]
    with pytest.raises(InputError, match=expected) as caught:
        write_safetensors(tmp_path / "m", tensors)
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("notes", [{"step": 3}, {3: "step"}, {"a": "\ud800"}], ids=ascii)
def test_metadata_is_text(tmp_path: Path, notes: dict[str, str]) -> None:
    """Notes that are not text are refused before anything is written."""
    with pytest.raises(InputError, match="metadata"):
        write_safetensors(tmp_path / "m", {}, notes)
    assert list(tmp_path.iterdir()) == []


def test_where_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Private files are private, links are replaced, and impossible targets say why."""
    target = tmp_path / "private"
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    target.symlink_to(outside)
    write_safetensors(target, {"w": torch.ones(1)}, mode=0o600)
    assert stat.S_IMODE(target.lstat().st_mode) == 0o600
    assert not target.is_symlink()
    assert outside.read_text() == "untouched"
    with pytest.raises(MissingPathError, match="folder"):
        write_safetensors(tmp_path / "no" / "m", {})
    with pytest.raises(InputError, match="URL"):
        write_safetensors("memory://m", {})

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_safetensors(tmp_path / "m", {"w": torch.ones(1)})
    assert caught.value.filename == str(tmp_path / "m")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["outside", "private"]
