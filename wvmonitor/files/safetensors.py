"""One safetensors file: checked, read tensor by tensor, written whole or not at all.

Peak memory is one tensor, or one range of rows of it: bytes go from the file straight into the
tensor that is returned.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from wvmonitor.errors import InputError, KeyMismatchError, MalformedFileError
from wvmonitor.files.atomic import replacing, write_all
from wvmonitor.files.header import (
    CODES,
    MAX_HEADER_BYTES,
    MAX_RANK,
    MAX_TENSORS,
    METADATA_KEY,
    Header,
    TensorInfo,
    check_name,
    encode_header,
    read_header,
    tensor_in,
)
from wvmonitor.files.storage import Location, open_storage, shown

_MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


class SafetensorsFile:
    """An open weight file whose header has been checked in full.

    Example:
        ```python
        with SafetensorsFile("model.safetensors") as weights:
            for name in weights.tensors:
                tensor = weights.read(name)
        ```

    Args:
        where: a local path, a `file://` URL, or any other fsspec URL.
        root: for a local file, the folder a link may not lead out of; its own if not given.

    Raises:
        MissingPathError: there is no such file.
        UnsafeFileError: it is no regular file, or a link out of its folder. Links from a Hugging
            Face cache snapshot into the same repository's blobs are followed.
        MalformedFileError: the file breaks the format anywhere in its header or length.
        QuantizedWeightsError: a tensor has elements of less than a byte.
    """

    def __init__(self, where: Location, root: Location | None = None) -> None:
        self._storage = open_storage(where, root)
        self.where = self._storage.where
        try:
            header: Header = read_header(self._storage)
        except BaseException:
            self._storage.close()
            raise
        self._data_start = header.data_start
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(header.tensors))
        self.metadata: Mapping[str, str] = MappingProxyType(dict(header.metadata))

    def info(self, name: str) -> TensorInfo:
        """What the header says of one tensor.

        Raises:
            KeyMismatchError: the file holds no tensor of that name.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise KeyMismatchError(
                f"{self.where} holds no tensor named {shown(name)}:"
                " check that it belongs to this model"
            ) from None

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor, on the CPU, in memory of its own.

        Raises:
            KeyMismatchError: the file holds no tensor of that name.
            MalformedFileError: the file changed since it was opened, or holds booleans other than
                0 and 1.
            InputError: the tensor is larger than this machine's memory.
        """
        info = self.info(name)
        return self._fill(name, info.dtype, info.shape, info.start)

    def read_run(self, name: str, most: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The tensor and those of its dtype that lie behind it, in one read.

        Args:
            name: the first.
            most: bytes of all of them together, where it is not one alone and larger reads are not
                cheaper.

        Returns:
            Their elements, flat, and by name the views of it that they are. What has 16 bits comes
            in float32, which holds each of its values.

        Raises:
            KeyMismatchError: the file holds no tensor of that name.
            MalformedFileError: as `read` says.
            InputError: as `read` says.
        """
        first, most = self.info(name), max(most, self._storage.least)
        run = {name: first}
        for place in range(self._places[name] + 1, len(self._in_order)):
            info = self.tensors[self._in_order[place]]
            if info.dtype != first.dtype or info.stop - first.start > most:
                break
            run[self._in_order[place]] = info
        sizes = [info.size // first.dtype.itemsize for info in run.values()]
        flat = self._fill(name, first.dtype, (sum(sizes),), first.start)
        if first.dtype in (torch.bfloat16, torch.float16):
            flat = flat.to(torch.float32)
        parts = zip(run.items(), torch.split(flat, sizes), strict=True)
        return flat, {each: part.view(info.shape) for (each, info), part in parts}

    def follows(self, name: str, other: str | None) -> bool:
        """Whether a tensor lies right behind another one."""
        return other in self._places and self._places[name] == self._places[other] + 1

    @functools.cached_property
    def _in_order(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self._in_order)}

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) along the first dimension: (stop - start, *shape[1:]).

        Only these rows' bytes are read and held.

        Raises:
            ValueError: the range does not lie within the tensor, or the tensor is a scalar.
            KeyMismatchError: the file holds no tensor of that name.
            MalformedFileError: as `read` says.
            InputError: as `read` says.
        """
        info = self.info(name)
        if not info.shape or not 0 <= start <= stop <= info.shape[0]:
            raise ValueError(
                f"rows {start} to {stop} of the tensor {shown(name)} in {self.where} do not lie"
                f" within its shape {info.shape}: ask for rows that it has"
            )
        row = info.size // info.shape[0] if info.shape[0] else 0
        shape = (stop - start, *info.shape[1:])
        return self._fill(name, info.dtype, shape, info.start + start * row)

    def stream(self, name: str, elements: int, count: int | None = None) -> Iterator[torch.Tensor]:
        """A tensor's first `count` elements (all, if not given), flat and in order.

        They come in blocks of `elements`, the last one shorter, all in one buffer: a block holds
        until the next is asked for. What is cheaper to fetch in larger pieces is fetched so.

        Raises:
            KeyMismatchError: the file holds no tensor of that name.
            MalformedFileError: the file changed since it was opened.
            InputError: as `read` says.
        """
        info = self.info(name)
        width = info.dtype.itemsize
        total = math.prod(info.shape) if count is None else count
        step = elements * max(1, self._storage.least // (elements * width))
        part = _empty((min(total, step),), _raw(info.dtype), name, self.where)
        memory = _bytes_of(part)
        for start in range(0, total, step):
            if total - start < step:  # the last one
                part, memory = part[: total - start], memory[: (total - start) * width]
            self._storage.read_into(memory, self._data_start + info.start + start * width)
            checked = self._checked(name, part, info.dtype) if info.dtype == torch.bool else part
            if step == elements:
                yield checked
            else:
                yield from torch.split(checked, elements)

    def close(self) -> None:
        """Let go of the descriptor; a later read opens it again if it is still the same file."""
        self._storage.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fill(
        self, name: str, dtype: torch.dtype, shape: tuple[int, ...], start: int
    ) -> torch.Tensor:
        tensor = _empty(shape, _raw(dtype), name, self.where)
        if tensor.numel():
            self._storage.read_into(_bytes_of(tensor), self._data_start + start)
        return self._checked(name, tensor, dtype)

    def _checked(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if dtype != torch.bool:
            return tensor
        if tensor.numel() and int(tensor.max()) > 1:
            raise MalformedFileError(
                f"{tensor_in(name, self.where)} is BOOL but holds bytes other than 0 and 1:"
                " save the file again"
            )
        return tensor.view(torch.bool)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that is made only when its turn to be written has come.

    Attributes:
        make: called once.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]


Writable = torch.Tensor | PlannedTensor


def write_safetensors(
    path: Location,
    tensors: Mapping[str, Writable] | Iterable[tuple[str, Writable]],
    metadata: Mapping[str, str] | None = None,
    mode: int = 0o666,
) -> None:
    """Write a weight file atomically; the same content gives the same bytes.

    Tensors lie by width of their elements (widest first, so that each is aligned), then by name.
    Plans are made one at a time, so with `PlannedTensor`s the peak is one tensor. A tensor given
    under two names is written twice: the format knows no sharing.

    Args:
        path: the local file to make or replace.
        tensors: by name; pairs are accepted too, and collected before anything is written.
        metadata: the file's own notes, text to text.
        mode: permissions, less the umask; 0o600 for private files.

    Raises:
        InputError: a name is given twice or cannot be written, the metadata is not text, a tensor
            has a kind the format does not know, or a plan made something else than it said.
        MissingPathError: the folder does not exist.
        OSError: the system refuses to write.
    """
    where = shown(path)
    planned = _unique(tensors, where)
    notes = dict(metadata or {})
    for key, value in notes.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise InputError(
                f"metadata for {where} must map text to text, but {shown(key)} is"
                f" {type(value).__name__}: convert it"
            )
    layout: dict[str, TensorInfo] = {}
    end = 0
    for name, plan in sorted(planned.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        _check_writable(name, plan, where)
        shape = tuple(plan.shape)
        size = math.prod(shape) * plan.dtype.itemsize
        layout[name] = TensorInfo(plan.dtype, shape, end, end + size)
        end += size
    head = _encoded(layout, notes, where)
    with replacing(path, mode) as descriptor:
        write_all(descriptor, head)
        for name, info in layout.items():
            _write_tensor(descriptor, name, info, planned[name], where)


def _unique(
    tensors: Mapping[str, Writable] | Iterable[tuple[str, Writable]], where: str
) -> dict[str, Writable]:
    planned: dict[str, Writable] = {}
    for name, plan in tensors.items() if isinstance(tensors, Mapping) else tensors:
        if name in planned:
            raise InputError(f"the tensor {shown(name)} is given twice for {where}: drop one")
        planned[name] = plan
    if len(planned) > MAX_TENSORS:
        raise InputError(
            f"{where} would hold {len(planned)} tensors, more than {MAX_TENSORS}: write shards"
        )
    return planned


def _check_writable(name: str, plan: Writable, where: str) -> None:
    check_name(name, where)
    which = f"the tensor {shown(name)} for {where}"
    if name == METADATA_KEY:
        raise InputError(f"{which} has the name the format keeps for metadata: rename it")
    if plan.dtype not in CODES:
        raise InputError(f"{which} is {plan.dtype}, which safetensors cannot hold: convert it")
    if len(plan.shape) > MAX_RANK or min(plan.shape, default=0) < 0:
        raise InputError(
            f"{which} has the shape {tuple(plan.shape)}: give at most {MAX_RANK} sizes, none"
            " negative"
        )
    if isinstance(plan, torch.Tensor) and (plan.layout != torch.strided or plan.is_meta):
        raise InputError(f"{which} holds no dense values (sparse, or on 'meta'): make it dense")


def _encoded(layout: Mapping[str, TensorInfo], notes: Mapping[str, str], where: str) -> bytes:
    try:
        head = encode_header(layout, notes)
    except UnicodeEncodeError as error:
        raise InputError(f"metadata for {where} is not valid Unicode: clean it first") from error
    if len(head) - 8 > MAX_HEADER_BYTES:
        raise InputError(
            f"the header of {where} would be {len(head) - 8} bytes, more than {MAX_HEADER_BYTES}:"
            " shorten the metadata, or write shards"
        )
    return head


def _write_tensor(descriptor: int, name: str, info: TensorInfo, plan: Writable, where: str) -> None:
    tensor = plan.make() if isinstance(plan, PlannedTensor) else plan
    if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
        raise InputError(
            f"the tensor {shown(name)} for {where} came out as {tensor.dtype}"
            f" {tuple(tensor.shape)} where {info.dtype} {info.shape} was planned: correct the plan"
        )
    if tensor.numel():
        dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        write_all(descriptor, _bytes_of(dense))


def _raw(dtype: torch.dtype) -> torch.dtype:
    # Raw bytes are no valid booleans until they were seen to be 0 or 1.
    return torch.uint8 if dtype == torch.bool else dtype


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as bytes, writable and shared with it."""
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, name: str, where: str) -> torch.Tensor:
    size = math.prod(shape) * dtype.itemsize
    try:
        # Linux hands out memory it does not have and kills the process when it is touched.
        if size <= memory_of_machine():
            return torch.empty(shape, dtype=dtype)
    except (RuntimeError, MemoryError) as error:
        raise InputError(
            f"{tensor_in(name, where)} has {size} bytes, which could not be allocated:"
            " use a larger machine"
        ) from error
    raise InputError(
        f"{tensor_in(name, where)} has {size} bytes, more than this machine's memory:"
        " use a larger machine"
    )


@functools.cache  # read for every tensor, and the limits of a process do not move
def memory_of_machine() -> int:
    """Bytes of memory that this process may use at most: the machine's, or its container's."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _MEMORY_LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # no such controller, or "max"
            continue
    return min(limits)
