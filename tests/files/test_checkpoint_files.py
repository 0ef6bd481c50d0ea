"""A checkpoint folder is one set of tensors, or an error that says why it is not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from wvmonitor.errors import (
    InputError,
    KeyMismatchError,
    MalformedFileError,
    MissingPathError,
    UnsafeFileError,
)
from wvmonitor.files.checkpoint_files import MAX_OPEN_FILES, CheckpointFiles, open_checkpoint
from wvmonitor.files.safetensors import write_safetensors

TENSORS = {f"layers.{i}.weight": torch.arange(12.0).reshape(4, 3) + 100 * i for i in range(12)}
INDEX = "model.safetensors.index.json"


def shard_name(number: int, count: int) -> str:
    """The usual name of a shard."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def write_sharded(folder: Path, count: int = 3) -> dict[str, str]:
    """Write `TENSORS` over `count` shards with an index; returns the weight map."""
    folder.mkdir(parents=True, exist_ok=True)
    mapped = {n: shard_name(1 + i % count, count) for i, n in enumerate(TENSORS)}
    for shard in set(mapped.values()):
        write_safetensors(folder / shard, {n: TENSORS[n] for n in TENSORS if mapped[n] == shard})
    write_index(folder, mapped)
    return mapped


def write_index(folder: Path, mapped: object) -> None:
    """Write an index with this weight map."""
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": mapped}))


def assert_whole(checkpoint: CheckpointFiles) -> None:
    """The checkpoint holds exactly `TENSORS`."""
    assert checkpoint.names() == tuple(sorted(TENSORS))
    for name, tensor in TENSORS.items():
        assert checkpoint.info(name).shape == (4, 3)
        assert torch.equal(checkpoint.read(name), tensor)
        assert torch.equal(checkpoint.read_rows(name, 1, 3), tensor[1:3])


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder of three shards and their index."""
    write_sharded(tmp_path / "sharded")
    return tmp_path / "sharded"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A folder of one weight file, beside what trainers leave there."""
    folder = tmp_path / "single"
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", TENSORS, {"format": "pt"})
    for name in ("config.json", "training_args.bin", "optimizer.pt", "pytorch_model.bin"):
        (folder / name).write_bytes(b"{}")
    return folder


def test_one_file_a_folder_and_shards_are_the_same(single: Path, sharded: Path) -> None:
    """The same tensors come from a file, from its folder, and from shards."""
    for path in (single, single / "model.safetensors", sharded, str(single), str(sharded)):
        with open_checkpoint(path) as checkpoint:
            assert_whole(checkpoint)
    with open_checkpoint(single) as checkpoint:
        assert checkpoint.metadata() == {"model.safetensors": {"format": "pt"}}


def test_an_adapter_is_opened_by_its_stem(tmp_path: Path) -> None:
    """An adapter's own file is found by its stem, and a model's is not taken for it."""
    write_safetensors(tmp_path / "adapter_model.safetensors", TENSORS)
    with open_checkpoint(tmp_path, stem="adapter_model") as checkpoint:
        assert_whole(checkpoint)
    with pytest.raises(MissingPathError, match=r"no model\.safetensors.*adapter_model"):
        open_checkpoint(tmp_path)


def test_its_files_are_named(sharded: Path) -> None:
    """A checkpoint says which files it consists of, index included."""
    with open_checkpoint(sharded) as checkpoint:
        assert checkpoint.files == tuple(sorted(entry.name for entry in sharded.iterdir()))


def test_an_unknown_tensor_is_named(sharded: Path) -> None:
    """Asking for a tensor the checkpoint does not hold names both."""
    with open_checkpoint(sharded) as checkpoint:
        for ask in (checkpoint.info, checkpoint.read):
            with pytest.raises(KeyMismatchError, match=r"sharded.*'nope'"):
                ask("nope")


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_few_files_are_open_at_once(tmp_path: Path) -> None:
    """However many shards there are, a handful of descriptors is open, and none afterwards."""
    write_sharded(tmp_path, count=12)
    before = open_descriptors()
    with open_checkpoint(tmp_path) as checkpoint:
        assert open_descriptors() == before
        for _ in range(2):
            assert_whole(checkpoint)
            assert open_descriptors() <= before + MAX_OPEN_FILES
    assert open_descriptors() == before


def test_a_shard_swapped_during_a_scan_is_noticed(sharded: Path) -> None:
    """A shard replaced after its header was checked is an error, not wrong numbers."""
    with open_checkpoint(sharded) as checkpoint:
        shutil.copy(sharded / shard_name(1, 3), sharded / "copy")
        (sharded / "copy").replace(sharded / shard_name(1, 3))
        with pytest.raises(MalformedFileError, match="changed"):
            checkpoint.read("layers.0.weight")


def hub_cache(root: Path, source: Path) -> Path:
    """Lay out `source` as huggingface_hub caches it; returns the snapshot."""
    blobs = root / "models--org--name" / "blobs"
    snapshot = root / "models--org--name" / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for entry in source.iterdir():
        digest = hashlib.sha256(entry.read_bytes()).hexdigest()
        shutil.copy(entry, blobs / digest)
        (snapshot / entry.name).symlink_to(f"../../blobs/{digest}")
    return snapshot


def test_hub_cache_snapshots_are_followed(tmp_path: Path, sharded: Path, single: Path) -> None:
    """A Hugging Face cache snapshot, all links into its own blobs, is read like a folder."""
    for source in (sharded, single):
        snapshot = hub_cache(tmp_path / f"cache-{source.name}", source)
        link = tmp_path / f"link-to-{source.name}"
        link.symlink_to(snapshot)
        for path in (snapshot, link):
            with open_checkpoint(path) as checkpoint:
                assert_whole(checkpoint)
    with open_checkpoint(snapshot / "model.safetensors") as checkpoint:
        assert_whole(checkpoint)


def test_hub_cache_links_elsewhere_are_refused(tmp_path: Path, single: Path) -> None:
    """In a cache snapshot too, a link to anything but its repository's blobs is refused."""
    snapshot = hub_cache(tmp_path / "cache", single)
    other = hub_cache(tmp_path / "other", single)
    for target in (other / "model.safetensors", single / "model.safetensors"):
        (snapshot / "model.safetensors").unlink()
        (snapshot / "model.safetensors").symlink_to(target)
        with pytest.raises(UnsafeFileError, match="leads out of its folder"):
            open_checkpoint(snapshot)


@pytest.mark.parametrize(
    "name",
    [
        "../single/model.safetensors",
        "..",
        "/etc/model.safetensors",
        "a/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        "a\0.safetensors",
        "a\n.safetensors",
        "\x1b[2J.safetensors",
        "",
        "config.json",
        "..safetensors",
    ],
    ids=ascii,
)
def test_shard_names_are_plain(sharded: Path, single: Path, name: str) -> None:
    """An index that names anything but a plain weight file beside it is refused."""
    write_index(sharded, {"layers.0.weight": name})
    with pytest.raises(UnsafeFileError, match=r"index\.json.*'layers\.0\.weight'") as caught:
        open_checkpoint(sharded)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("[]", "got list"),
        ("{", "bracket open"),
        ("{}", "weight_map"),
        ('{"weight_map": {}}', "weight_map"),
        ('{"weight_map": ["a"]}', "weight_map"),
        ('{"weight_map": {"a": 1}}', "'a' no shard name but int"),
        ('{"weight_map": {"a": null}}', "'a' no shard name but NoneType"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' twice"),
    ],
)
def test_a_broken_index_is_refused(sharded: Path, index: str, expected: str) -> None:
    """An index that is no map from tensor to shard is refused by name."""
    (sharded / INDEX).write_text(index)
    with pytest.raises(MalformedFileError, match=expected) as caught:
        open_checkpoint(sharded)
    assert INDEX in str(caught.value)


def missing_shard(folder: Path) -> None:
    """A shard is not there."""
    (folder / shard_name(2, 3)).unlink()


def truncated_shard(folder: Path) -> None:
    """A shard is cut short."""
    os.truncate(folder / shard_name(2, 3), 300)


def tensor_missing(folder: Path) -> None:
    """The index names a tensor that no shard holds."""
    write_index(folder, {**map_of(folder), "extra.weight": shard_name(1, 3)})


def tensor_unmapped(folder: Path) -> None:
    """A shard holds a tensor that the index does not name."""
    mapped = map_of(folder)
    del mapped["layers.4.weight"]
    write_index(folder, mapped)


def tensor_doubled(folder: Path) -> None:
    """One tensor lies in two shards."""
    names = [n for n, s in map_of(folder).items() if s == shard_name(1, 3)]
    both = {n: TENSORS[n] for n in [*names, "layers.1.weight"]}
    write_safetensors(folder / shard_name(1, 3), both)


def shard_doubled(folder: Path) -> None:
    """One shard stands in for another."""
    shutil.copy(folder / shard_name(1, 3), folder / shard_name(2, 3))


def left_over_shard(folder: Path) -> None:
    """A shard of another save lies beside the right ones."""
    write_safetensors(folder / shard_name(7, 7), {"w": torch.ones(1)})


def both_kinds(folder: Path) -> None:
    """A single file lies beside the shards and their index."""
    write_safetensors(folder / "model.safetensors", TENSORS)


def both_without_index(folder: Path) -> None:
    """A single file lies beside shards without an index."""
    both_kinds(folder)
    (folder / INDEX).unlink()


def no_index(folder: Path) -> None:
    """The shards have no index."""
    (folder / INDEX).unlink()


def shard_links_out(folder: Path) -> None:
    """A shard is a link out of the folder."""
    shard = folder / shard_name(2, 3)
    shard.rename(folder.parent / "outside.safetensors")
    shard.symlink_to("../outside.safetensors")


def index_links_out(folder: Path) -> None:
    """The index is a link out of the folder."""
    (folder / INDEX).rename(folder.parent / "outside.json")
    (folder / INDEX).symlink_to("../outside.json")


def shard_is_fifo(folder: Path) -> None:
    """A shard is a FIFO."""
    (folder / shard_name(2, 3)).unlink()
    os.mkfifo(folder / shard_name(2, 3))


def shard_is_folder(folder: Path) -> None:
    """A shard is a folder."""
    (folder / shard_name(2, 3)).unlink()
    (folder / shard_name(2, 3)).mkdir()


def shard_is_pickle(folder: Path) -> None:
    """The index names a pickle."""
    write_index(folder, dict.fromkeys(TENSORS, "pytorch_model-00001-of-00001.bin"))


def map_of(folder: Path) -> dict[str, str]:
    """The weight map of a folder's index."""
    return dict(json.loads((folder / INDEX).read_text())["weight_map"])


@pytest.mark.parametrize(
    ("spoil", "error", "expected"),
    [
        (missing_shard, MissingPathError, "model-00002-of-00003"),
        (truncated_shard, MalformedFileError, "model-00002-of-00003"),
        (tensor_missing, MalformedFileError, "'extra.weight' into .*does not hold"),
        (tensor_unmapped, MalformedFileError, "00002.*'layers.4.weight'.*does not name"),
        (tensor_doubled, MalformedFileError, "'layers.1.weight' is in .*00001.* and in .*00002"),
        (shard_doubled, MalformedFileError, "00002"),
        (left_over_shard, MalformedFileError, "model-00007-of-00007.*left over"),
        (both_kinds, MalformedFileError, r"both model\.safetensors and .*index"),
        (both_without_index, MalformedFileError, r"both model\.safetensors and .*00001"),
        (no_index, MissingPathError, "fetch the index"),
        (shard_links_out, UnsafeFileError, "00002.*leads out"),
        (index_links_out, UnsafeFileError, "index.json.*leads out"),
        (shard_is_fifo, UnsafeFileError, "00002.*FIFO"),
        (shard_is_folder, UnsafeFileError, "00002.*folder"),
        (shard_is_pickle, UnsafeFileError, r"pytorch_model-00001-of-00001\.bin.*pickle"),
    ],
)
def test_a_contradictory_folder_is_refused(
    sharded: Path, spoil: Callable[[Path], None], error: type[InputError], expected: str
) -> None:
    """Missing, doubled, truncated, left-over or ambiguous weights are each refused by name."""
    spoil(sharded)
    with pytest.raises(error, match=expected) as caught:
        open_checkpoint(sharded)
    assert type(caught.value) is error
    assert str(caught.value).isprintable()


@pytest.fixture
def remote(sharded: Path, single: Path) -> Iterator[str]:
    """Both folders in fsspec's memory filesystem."""
    files = fsspec.filesystem("memory")
    for folder in (sharded, single):
        for entry in folder.iterdir():
            files.pipe(f"/wvmonitor-ckpt/{folder.name}/{entry.name}", entry.read_bytes())
    files.pipe("/wvmonitor-ckpt/pickled/pytorch_model.bin", b"x")
    yield "memory://wvmonitor-ckpt"
    files.rm("/wvmonitor-ckpt", recursive=True)


def test_a_remote_folder_reads_as_a_local_one(remote: str, sharded: Path) -> None:
    """A checkpoint behind an fsspec URL holds the same tensors in files of the same names."""
    for path in ("single", "single/", "single/model.safetensors", "sharded"):
        with open_checkpoint(f"{remote}/{path}") as checkpoint:
            assert_whole(checkpoint)
    with open_checkpoint(sharded) as local:
        assert checkpoint.files == local.files
    with pytest.raises(MissingPathError):
        open_checkpoint(f"{remote}/nope")
    for path in ("pickled", "pickled/pytorch_model.bin"):
        with pytest.raises(UnsafeFileError, match=r"pytorch_model\.bin.*pickle"):
            open_checkpoint(f"{remote}/{path}")
