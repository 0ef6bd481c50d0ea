"""Identity of a base model: the digest of what its blocks hold, not its path or name.

The digest is SHA-256 over the sorted (name, shape, SHA-256 of content) of the transformer blocks'
linear weights, content being the tensor rounded to bfloat16. So a float32 and a bfloat16 copy of
one base, in one file or in shards, with or without the base model's prefix in the names, have one
digest. What it does not see: differences below bfloat16's resolution (8 bits of mantissa),
embeddings, head, norms and biases. float16 copies of a bfloat16 base agree unless weights lie in
float16's subnormal range (below 6e-5), where that format itself has lost bits.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wvmonitor.errors import UnmeasurableModelError
from wvmonitor.files.storage import Location, is_url, local_path
from wvmonitor.sources.folder import ModelFolder, opened
from wvmonitor.vectors.coverage import component_of

if TYPE_CHECKING:
    from torch import nn

BLOCK_ELEMENTS = 1 << 18  # half a megabyte in bfloat16: still in a core's cache when it is hashed
_DEVICE_ELEMENTS = 1 << 22  # an accelerator is asked less often
_THREADS = 4  # a disk or a page cache feeds no more
Contents = Callable[[], Iterable[Tensor]]
KnownDigest = tuple[tuple[object, ...], str]
_known: dict[tuple[object, ...], str] = {}


def base_digest(path_or_model: Location | nn.Module) -> str:
    """The digest of a base model, as 64 hexadecimal digits.

    Args:
        path_or_model: a folder or file of unquantised weights, or a live model whose base weights
            are still its own (under LoRA they always are; before the first step of a full
            fine-tune).

    Raises:
        InputError: the weights cannot be read, are quantised, or hold no transformer block.
    """
    if isinstance(path_or_model, torch.nn.Module):
        from wvmonitor.sources.live_base import digest_of_model

        return digest_of_model(path_or_model)
    key = _state_of(path_or_model)
    if key is None or key not in _known:
        with opened(path_or_model) as folder:
            digest = digest_of_folder(folder)
        if key is None:
            return digest
        _known[key] = digest
    return _known[key]


def known_digest(path: Location) -> KnownDigest | None:
    """The digest of a base's folder and the state of its files, for `remember` in other processes.

    Raises:
        InputError: as `base_digest` says.
    """
    key = _state_of(path)
    return None if key is None else (key, base_digest(path))


def remember(known: KnownDigest) -> None:
    """Believe a digest for as long as the files are in the state in which it was computed."""
    _known[known[0]] = known[1]


def digest_of_folder(folder: ModelFolder) -> str:
    """The digest of an open folder, streamed block by block, several tensors at a time."""
    shapes = _of_blocks({name: folder.shape(name) for name in folder.names()}, folder.where)
    names = list(shapes)
    threads = 1 if is_url(folder.path) else min(_THREADS, os.cpu_count() or 1)

    def hashes(share: list[str]) -> dict[str, str]:
        with opened(folder.path) as own:  # descriptors are not shared between threads
            return {name: content_hash(own.stream(name, BLOCK_ELEMENTS)) for name in share}

    with ThreadPoolExecutor(threads) as pool:  # hashing and reading let other threads run
        shares = pool.map(hashes, [names[i::threads] for i in range(threads)])
        return _joined(shapes, {n: h for share in shares for n, h in share.items()})


def digest_of(tensors: Mapping[str, tuple[tuple[int, ...], Contents]], where: str) -> str:
    """The digest of named tensors, of which only the blocks' linear weights are read.

    Args:
        tensors: by name: the shape, and what gives the content in blocks, in order.
        where: how messages name the model.

    Raises:
        UnmeasurableModelError: there is no transformer block among the names.
    """
    shapes = _of_blocks({name: shape for name, (shape, _) in tensors.items()}, where)
    return _joined(shapes, {name: content_hash(tensors[name][1]()) for name in shapes})


def content_hash(blocks: Iterable[Tensor]) -> str:
    """SHA-256 of a tensor that comes in blocks, rounded to bfloat16."""
    digest = hashlib.sha256()
    for block in blocks:
        for piece in _pieces(block):
            held: Any = piece.numpy()
            digest.update(held)
    return digest.hexdigest()


def _of_blocks(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, tuple[int, ...]]:
    """The linear weights of the transformer blocks."""
    blocks = {n: s for n, s in shapes.items() if component_of(n, s) == "blocks"}
    if not blocks:
        raise UnmeasurableModelError(
            f"{where} has no linear weights in numbered transformer blocks (model.layers.N, "
            "transformer.h.N, …), by which a base is told: give a language model's weights"
        )
    return blocks


def _joined(shapes: Mapping[str, tuple[int, ...]], hashes: Mapping[str, str]) -> str:
    whole = hashlib.sha256()
    for short, name in sorted((short, name) for name, short in without_prefix(shapes).items()):
        sizes = "x".join(str(length) for length in shapes[name])
        whole.update(f"{short}\t{sizes}\t{hashes[name]}\n".encode())
    return whole.hexdigest()


def without_prefix(names: Iterable[str]) -> dict[str, str]:
    """Each name without the dotted prefix that all of them share.

    `model.layers.0.mlp.up.weight` and a headless copy's `layers.0.mlp.up.weight` become one.
    """
    split = {name: name.split(".") for name in names}
    shortest = min(len(parts) for parts in split.values())
    first = next(iter(split.values()))
    shared = 0
    while shared < shortest - 1 and all(p[shared] == first[shared] for p in split.values()):
        shared += 1
    return {name: ".".join(parts[shared:]) for name, parts in split.items()}


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    # Rounded piece by piece, so that no second copy of a large tensor is ever whole.
    size = BLOCK_ELEMENTS if tensor.device.type == "cpu" else _DEVICE_ELEMENTS
    for piece in torch.split(tensor.detach().reshape(-1), size):
        yield piece.to(torch.bfloat16).cpu().contiguous().view(torch.int16)


def _state_of(path: Location) -> tuple[object, ...] | None:
    """What changes when a local checkpoint does; None for URLs, which are not remembered."""
    if is_url(path):
        return None
    root = local_path(path)
    try:
        files = sorted(root.iterdir()) if root.is_dir() else [root]
        stats = [(f, f.stat()) for f in files if f.suffix in (".safetensors", ".json")]
    except OSError:
        return None  # whoever opens it says what is wrong
    return (str(root.resolve()), *((f.name, s.st_size, s.st_mtime_ns, s.st_ino) for f, s in stats))
