"""A model or adapter on disk as one set of named tensors, in one file or in many."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

import torch

from wvmonitor.errors import KeyMismatchError, MalformedFileError, MissingPathError, UnsafeFileError
from wvmonitor.files.documents import read_json
from wvmonitor.files.header import MAX_HEADER_BYTES, TensorInfo
from wvmonitor.files.safetensors import SafetensorsFile
from wvmonitor.files.storage import Location, is_url, joined, list_folder, local_path, shown
from wvmonitor.files.weight_names import SAFETENSORS, is_pickle, pickled_weights, weights_below

MAX_OPEN_FILES = 8
_SUFFIX = SAFETENSORS
# How a folder of sharded training state is told, and what makes weights of it.
_ENGINES = (
    ("zero_to_fp32.py", "DeepSpeed's `python zero_to_fp32.py . OUT --safe_serialization`"),
    ("pytorch_model_fsdp_", "`accelerate merge-weights`"),
)


class CheckpointFiles:
    """The tensors of a checkpoint, read one at a time; use `open_checkpoint` to make one.

    At most eight files are open at once. Not to be shared between threads.

    Attributes:
        where: how messages name the checkpoint, quoted and escaped.
        files: base names of the files it consists of, the index included, sorted.
    """

    def __init__(
        self, where: str, files: Iterable[str], shards: Mapping[str, SafetensorsFile]
    ) -> None:
        self.where = where
        self.files = tuple(sorted(files))
        self._shards = dict(shards)
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._shard_of = {name: s for s, shard in shards.items() for name in shard.tensors}
        self._names = tuple(sorted(self._shard_of))

    def names(self) -> tuple[str, ...]:
        """The names of all tensors, sorted."""
        return self._names

    def __contains__(self, name: object) -> bool:
        return name in self._shard_of

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of one tensor (its offsets count within its own shard).

        Raises:
            KeyMismatchError: the checkpoint holds no tensor of that name.
        """
        return self._shard(name).info(name)

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor, as `SafetensorsFile.read`, with the same errors."""
        return self._opened(name).read(name)

    def read_run(self, name: str, most: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The tensor and those that lie behind it, as `SafetensorsFile.read_run`."""
        return self._opened(name).read_run(name, most)

    def follows(self, name: str, other: str | None) -> bool:
        """Whether a tensor lies right behind another one, in one file."""
        return self._shard(name).follows(name, other)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) along the first dimension, as `SafetensorsFile.read_rows`."""
        return self._opened(name).read_rows(name, start, stop)

    def stream(self, name: str, elements: int, count: int | None = None) -> Iterator[torch.Tensor]:
        """One tensor in flat blocks, as `SafetensorsFile.stream`."""
        return self._opened(name).stream(name, elements, count)

    def metadata(self) -> Mapping[str, Mapping[str, str]]:
        """The notes in each weight file, by the file's base name."""
        return MappingProxyType({shard: self._shards[shard].metadata for shard in self._shards})

    def close(self) -> None:
        """Let go of every descriptor."""
        for shard in self._shards.values():
            shard.close()
        self._recent.clear()

    def __enter__(self) -> CheckpointFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _shard(self, name: str) -> SafetensorsFile:
        if name not in self._shard_of:
            raise KeyMismatchError(
                f"{self.where} holds no tensor named {shown(name)}:"
                " check that it belongs to this model"
            )
        return self._shards[self._shard_of[name]]

    def _opened(self, name: str) -> SafetensorsFile:
        shard = self._shard(name)
        which = self._shard_of[name]
        self._recent[which] = None
        self._recent.move_to_end(which)
        if len(self._recent) > MAX_OPEN_FILES:
            oldest, _ = self._recent.popitem(last=False)
            self._shards[oldest].close()
        return shard


def open_checkpoint(path: Location, stem: str = "model") -> CheckpointFiles:
    """Open a weight file, or a folder of them; every header is checked, no tensor is read.

    Args:
        path: a `.safetensors` file, or a folder with `<stem>.safetensors` or with
            `<stem>.safetensors.index.json` and its shards; local or an fsspec URL.
        stem: "model", or "adapter_model" for PEFT adapters.

    Raises:
        MissingPathError: the path, the weights in it, or a shard is not there.
        UnsafeFileError: the weights are pickles (named, never opened), no regular files, links
            out of the folder, or the index names files elsewhere.
        MalformedFileError: a file breaks its format, index and shards contradict each other, or
            single and sharded weights lie side by side.
        QuantizedWeightsError: a tensor has elements of less than a byte.
    """
    where = shown(path)
    entries = None if _looks_like_file(path) else list_folder(path)
    if entries is None:
        name = str(path).rstrip("/").rsplit("/", 1)[-1]
        if is_pickle(name):
            raise _pickle_error(where)
        return _single(where, name, path)
    single, index = f"{stem}{_SUFFIX}", f"{stem}{_SUFFIX}.index.json"
    numbered = re.compile(rf"{re.escape(stem)}-\d+-of-\d+{re.escape(_SUFFIX)}")
    loose = sorted(entry for entry in entries if numbered.fullmatch(entry))
    if single in entries and (index in entries or loose):
        other = index if index in entries else loose[0]
        raise MalformedFileError(
            f"{where} holds both {single} and {shown(other)}, which may be different weights:"
            " give the path of the single file, or remove what is left over"
        )
    if single in entries:
        return _single(where, single, joined(path, single))
    if index in entries:
        return _open_sharded(path, index, loose)
    raise _no_weights(where, single, entries, loose, weights_below(path))


def _open_sharded(path: Location, index: str, loose: list[str]) -> CheckpointFiles:
    location = joined(path, index)
    mapped = _weight_map(location)
    where_index = shown(location)
    expected: dict[str, set[str]] = {}
    for name, shard in mapped.items():
        expected.setdefault(shard, set()).add(name)
    extra = [name for name in loose if name not in expected]
    if extra:
        raise MalformedFileError(
            f"{shown(joined(path, extra[0]))} is not in {where_index}:"
            " remove it if it is left over from another save, or fetch the right index"
        )
    shards: dict[str, SafetensorsFile] = {}
    for shard, names in sorted(expected.items()):
        with SafetensorsFile(joined(path, shard)) as shards[shard]:
            _check_shard(shards[shard], names, mapped, shard, where_index)
    return CheckpointFiles(shown(path), [index, *shards], shards)


def _check_shard(
    opened: SafetensorsFile, names: set[str], mapped: Mapping[str, str], shard: str, index: str
) -> None:
    for name in sorted(names - opened.tensors.keys()):
        raise MalformedFileError(
            f"{index} puts the tensor {shown(name)} into {shown(shard)}, which does not hold it:"
            " fetch that shard and the index again"
        )
    for name in sorted(opened.tensors.keys() - names):
        if name in mapped:
            raise MalformedFileError(
                f"the tensor {shown(name)} is in {opened.where} and in {shown(mapped[name])}:"
                " keep one, and save the checkpoint again"
            )
        raise MalformedFileError(
            f"{opened.where} holds the tensor {shown(name)}, which {index} does not name:"
            " fetch that shard and the index again"
        )


def _weight_map(location: Location) -> dict[str, str]:
    where = shown(location)
    index = read_json(location, limit=MAX_HEADER_BYTES)
    mapped = index.get("weight_map")
    if not isinstance(mapped, dict) or not mapped:
        raise MalformedFileError(
            f"weight_map in {where} must be an object that names every tensor's shard:"
            " fetch the index again"
        )
    for name, shard in mapped.items():
        if not isinstance(shard, str):
            raise MalformedFileError(
                f"weight_map in {where} gives the tensor {shown(name)} no shard name but"
                f" {type(shard).__name__}: fetch the index again"
            )
        if is_pickle(shard):
            raise _pickle_error(f"{shown(shard)}, which {where} names")
        plain = shard.isprintable() and not set(shard) & set("/\\:") and not shard.startswith("..")
        if not plain or not shard.endswith(_SUFFIX):
            raise UnsafeFileError(
                f"weight_map in {where} puts the tensor {shown(name)} into {shown(shard)}, which"
                f" is no plain {_SUFFIX} file name: do not trust this checkpoint"
            )
    return mapped


def _single(where: str, name: str, location: Location) -> CheckpointFiles:
    with SafetensorsFile(location) as file:  # its descriptor is opened again when it is read
        return CheckpointFiles(where, [name], {name: file})


def _looks_like_file(path: Location) -> bool:
    # Spares URLs a listing, and lets a FIFO or a broken link meet the checks of the file itself.
    if is_url(path):
        return str(path).endswith(_SUFFIX)
    try:
        return not local_path(path).is_dir()
    except OSError:  # opening it as a file says what is wrong
        return True


def _pickle_error(which: str) -> UnsafeFileError:
    return UnsafeFileError(
        f"{which} is a pickle, which can run code when it is opened, and is refused: convert it"
        " where it is trusted, with `save_pretrained(...)` of transformers or PEFT (for a"
        " distributed checkpoint first `python -m torch.distributed.checkpoint.format_utils"
        " dcp_to_torch`), and give the .safetensors files"
    )


def _no_weights(
    where: str,
    single: str,
    entries: frozenset[str],
    loose: list[str],
    below: list[str],
) -> MissingPathError | UnsafeFileError:
    if loose:
        return MissingPathError(
            f"{where} holds {shown(loose[0])} but no {single}.index.json to say what belongs"
            " together: fetch the index, or wait until the checkpoint is written"
        )
    pickles = pickled_weights(entries)
    if pickles:
        return _pickle_error(f"{shown(pickles[0])} in {where}")
    if below:
        return MissingPathError(
            f"{where} holds no {single}, but the folders below it do"
            f" ({shown(', '.join(below[:5]))}): give one of them"
        )
    engine = next((how for sign, how in _ENGINES if any(e.startswith(sign) for e in entries)), None)
    if engine:
        return MissingPathError(
            f"{where} holds no {single}, but a training engine's own state: where it is trusted, "
            f"{engine} makes weights of it"
        )
    others = sorted(entry for entry in entries if entry.endswith(_SUFFIX))
    hint = f" (it holds {shown(', '.join(others))})" if others else ""
    return MissingPathError(
        f"{where} holds no {single}{hint}: give the folder or file that holds the weights"
    )
