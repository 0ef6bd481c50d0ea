"""The header of a safetensors file, believed only after every rule of the format was checked.

The official parser accepts duplicate keys (the last one wins), so two readers of one file could
see different tensors; here each file has one meaning or none.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from wvmonitor.errors import MalformedFileError, QuantizedWeightsError
from wvmonitor.files.documents import decode_json
from wvmonitor.files.storage import Storage, read_bytes, shown

# The format allows 100 MB. A quarter of that describes 200,000 tensors in one file, more than any
# model has, and keeps the memory a hostile header can cost well under half a gigabyte.
MAX_HEADER_BYTES = 25_000_000
MAX_TENSORS = 200_000
MAX_RANK = 16
MAX_NAME_LENGTH = 1024
METADATA_KEY = "__metadata__"
_MAX_BYTES = 2**63 - 1
_FIELDS = frozenset({"dtype", "shape", "data_offsets"})

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
if hasattr(torch, "float8_e8m0fnu"):  # since torch 2.7
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu
CODES: dict[torch.dtype, str] = {dtype: code for code, dtype in DTYPES.items()}
_SUB_BYTE = frozenset({"F4", "F6_E2M3", "F6_E3M2"})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor.

    Attributes:
        start: first byte, counted from the end of the header.
        stop: one past the last byte.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes of the whole tensor."""
        return self.stop - self.start

    @property
    def count(self) -> int:
        """Elements of the whole tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes:
        tensors: by name, in the order of their bytes.
        metadata: the file's own notes; empty where it has none.
        data_start: where in the file the tensors' bytes begin.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int


_LFS_POINTER = b"version "  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md


def read_header(storage: Storage) -> Header:
    """Read and check the header of an open file; no tensor's bytes are touched.

    Raises:
        MalformedFileError: any rule of the format is broken, or a limit of this module is passed.
        QuantizedWeightsError: a tensor has elements of less than a byte.
    """
    where = storage.where
    if storage.size < 8:
        raise MalformedFileError(
            f"{where} has {storage.size} bytes, too few for a safetensors file:"
            " fetch a whole copy, or wait until it is written"
        )
    length = int.from_bytes(read_bytes(storage, 0, 8), "little")
    if length.to_bytes(8, "little") == _LFS_POINTER:
        raise MalformedFileError(
            f"{where} is a Git LFS pointer, not the weights it points to: run `git lfs pull` in "
            "its repository, or fetch the file with `hf download`"
        )
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise MalformedFileError(
            f"{where} gives its header {length} bytes, expected 2 to {MAX_HEADER_BYTES}:"
            " it is no safetensors file, or damaged; fetch a whole copy, or save it in shards"
        )
    if length > storage.size - 8:
        raise MalformedFileError(
            f"{where} gives its header {length} bytes but has only {storage.size} in all:"
            " fetch a whole copy, or wait until it is written"
        )
    raw = read_bytes(storage, 8, length)
    if raw[:1] != b"{":
        raise MalformedFileError(
            f"the header of {where} does not begin with '{{': fetch a whole copy"
        )
    return parse_header(raw, storage.size - 8 - length, where, data_start=8 + length)


def parse_header(raw: bytes | bytearray, body: int, where: str, data_start: int = 0) -> Header:
    """Check the JSON of a header against the `body` bytes that follow it.

    Args:
        raw: the header's JSON, without its length.
        body: bytes of the file behind the header.
        where: how messages name the file, already safe to print.
        data_start: where in the file the body begins.

    Raises:
        MalformedFileError: as `read_header` says.
        QuantizedWeightsError: as `read_header` says.
    """
    fields = decode_json(raw, f"the header of {where}", depth=3)
    metadata = _checked_metadata(fields.pop(METADATA_KEY, {}), where)
    if len(fields) > MAX_TENSORS:
        raise MalformedFileError(
            f"{where} names {len(fields)} tensors, more than {MAX_TENSORS}: save it in shards"
        )
    tensors = {}
    for name, entry in fields.items():
        check_name(name, where)
        tensors[name] = _checked_entry(name, entry, where)
    ordered = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop))
    _check_layout(ordered, body, where)
    return Header(dict(ordered), metadata, data_start)


def encode_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """The header's bytes with its length in front, padded so that the data is 8-aligned."""
    fields: dict[str, Any] = {METADATA_KEY: dict(sorted(metadata.items()))} if metadata else {}
    for name, info in tensors.items():
        fields[name] = {
            "dtype": CODES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [info.start, info.stop],
        }
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def check_name(name: str, where: str) -> None:
    """Refuse a tensor name that could deceive a terminal, a log, or a tool that makes it a path.

    Raises:
        MalformedFileError: the name is empty, over 1,024 characters, holds control or invisible
            characters (line breaks, ANSI escapes, direction overrides), or climbs like a path.
    """
    if not name:
        problem = "is empty"
    elif len(name) > MAX_NAME_LENGTH:
        problem = f"has {len(name)} characters, more than {MAX_NAME_LENGTH}"
    elif not name.isprintable():
        problem = "holds characters that cannot be shown"
    elif name[0] in "/\\" or (".." in name and ".." in name.replace("\\", "/").split("/")):
        problem = "looks like a path out of its folder"
    else:
        return
    raise MalformedFileError(
        f"the tensor name {shown(name, 80)} in {where} {problem}:"
        " do not trust this file, or save it again under plain names"
    )


def _checked_metadata(metadata: Any, where: str) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise MalformedFileError(
            f"{METADATA_KEY} in {where} must be an object, got {type(metadata).__name__}:"
            " save the file again"
        )
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise MalformedFileError(
                f"{METADATA_KEY} in {where} must map text to text, but {shown(key, 80)} is"
                f" {type(value).__name__}: save the file again"
            )
        if not (_encodable(key) and _encodable(value)):
            raise MalformedFileError(
                f"{METADATA_KEY} in {where} holds invalid Unicode at {shown(key, 80)}:"
                " save the file again"
            )
    return metadata


def tensor_in(name: str, where: str) -> str:
    """How messages call a tensor; escaping takes time, so only errors ask for it."""
    return f"the tensor {shown(name)} in {where}"


def _checked_entry(name: str, entry: Any, where: str) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise MalformedFileError(
            f"{tensor_in(name, where)} must have exactly dtype, shape and data_offsets:"
            " save the file again"
        )
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if isinstance(code, str) and code in _SUB_BYTE:
        raise QuantizedWeightsError(
            f"{tensor_in(name, where)} has elements of less than a byte ({code}):"
            " give the unquantised weights"
        )
    if not isinstance(code, str) or code not in DTYPES:
        raise MalformedFileError(
            f"{tensor_in(name, where)} has the dtype {shown(code, 40)}, not one of"
            f" {', '.join(DTYPES)}: save it again in one of these"
        )
    if not _sizes(shape) or len(shape) > MAX_RANK:
        raise MalformedFileError(
            f"the shape of {tensor_in(name, where)} must be at most {MAX_RANK} whole numbers from"
            f" 0 to 2^63 - 1, got {shown(shape, 80)}: save the file again"
        )
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise MalformedFileError(
            f"data_offsets of {tensor_in(name, where)} must be two whole numbers, begin and end,"
            f" got {shown(offsets, 80)}: save the file again"
        )
    dtype = DTYPES[code]
    elements = math.prod(shape)
    # A zero dimension must not hide others whose product no machine can index.
    if (elements or math.prod(filter(None, shape))) * dtype.itemsize > _MAX_BYTES:
        raise MalformedFileError(
            f"{tensor_in(name, where)} has the shape {shown(shape, 80)}, more than 2^63 bytes:"
            " save the file again"
        )
    size, (start, stop) = elements * dtype.itemsize, offsets
    if size != stop - start:
        raise MalformedFileError(
            f"{tensor_in(name, where)} needs {size} bytes for {code}"
            f" {shown(shape, 80)} but data_offsets give it {stop - start}: save the file again"
        )
    return TensorInfo(dtype, tuple(shape), start, stop)


def _check_layout(ordered: list[tuple[str, TensorInfo]], body: int, where: str) -> None:
    end = 0
    for name, info in ordered:
        if info.start != end:
            what = "overlaps the tensor before it" if info.start < end else "leaves a hole"
            raise MalformedFileError(
                f"{tensor_in(name, where)} {what} (begins at {info.start}, expected"
                f" {end}): save the file again"
            )
        end = info.stop
    if end > body:
        raise MalformedFileError(
            f"{where} has {body} bytes of tensors where its header describes {end}:"
            " fetch a whole copy, or wait until it is written"
        )
    if end < body:
        raise MalformedFileError(
            f"{where} has {body - end} bytes after its last tensor, which no header describes:"
            " do not trust this file, or save it again"
        )


def _sizes(value: Any) -> bool:
    # `type` and not isinstance: True is an int to Python.
    if not isinstance(value, list):
        return False
    for number in value:  # noqa: SIM110  `all` takes three times as long, for every tensor twice
        if type(number) is not int or not 0 <= number <= _MAX_BYTES:
            return False
    return True


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
