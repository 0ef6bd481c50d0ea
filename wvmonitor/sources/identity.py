"""Identity of a base model: the digest of what its blocks hold, not its path or name.

The digest is SHA-256 over the sorted (name, shape, SHA-256 of content) of the transformer blocks'
linear weights, content being the tensor rounded to bfloat16. So a float32 and a bfloat16 copy of
one base, in one file or in shards, with or without the base model's prefix in the names, and a
multi-modal model and its language model alone, have one digest. What it does not see: differences
below bfloat16's resolution (8 bits of mantissa), embeddings, head, norms and biases, and a
multi-modal model's vision or audio. float16 copies of a bfloat16 base agree unless weights lie in
float16's subnormal range (below 6e-5), where that format itself has lost bits.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wvmonitor.errors import MissingPathError, UnmeasurableModelError
from wvmonitor.files.storage import Location, is_url, local_path
from wvmonitor.reading import component_of
from wvmonitor.sources import digest_cache
from wvmonitor.sources.digest_cache import FilesState
from wvmonitor.sources.folder import ModelFolder
from wvmonitor.sources.names import beside_the_language_model
from wvmonitor.sources.threads import for_each, for_each_tensor

BLOCK_ELEMENTS = 1 << 18  # half a megabyte in bfloat16: still in a core's cache when it is hashed
DEVICE_ELEMENTS = 1 << 22  # an accelerator is asked less often
Contents = Callable[[], Iterable[Tensor]]
KnownDigest = tuple[FilesState, str]
_known: dict[FilesState, str] = {}


@dataclass(frozen=True)
class TensorHashes:
    """Hashes of a base's tensors, made while they were read for something else.

    Attributes:
        state: of the base's files, before any of them was opened.
        began: when that was, in seconds of the system's clock.
        of: by name, rounded as `content_hash` does; added to.
    """

    state: FilesState
    began: float
    of: dict[str, str] = field(default_factory=dict)


def base_digest(path: Location, made: TensorHashes | None = None) -> str:
    """The digest of a base model, as 64 hexadecimal digits.

    Files are hashed once for as long as nothing about them changes (`digest_cache`).

    Args:
        path: a folder or file of unquantised weights.
        made: hashes that need not be made again, if the files are still what they were then.

    Raises:
        InputError: the weights cannot be read, are quantised, or hold no transformer block.
    """
    key = state_of(path)
    if key is None:
        return _hashed(path, {})
    if key not in _known:
        recalled, began = digest_cache.recalled(key), time.time()
        hashes: Mapping[str, str] = {}
        if made is not None and made.state == key:
            began, hashes = made.began, made.of
        _known[key] = recalled or _hashed(path, hashes)
        if recalled is None and state_of(path) == key:
            digest_cache.keep(key, _known[key], began)
    return _known[key]


def hashes_to_make(path: Location) -> TensorHashes | None:
    """Where whoever reads a base's tensors now may leave their hashes.

    None where its digest is known already, and behind URLs. To be called before the base is opened.
    """
    began, state = time.time(), state_of(path)
    if state is None or state in _known or digest_cache.recalled(state) is not None:
        return None
    return TensorHashes(state, began)


def _hashed(path: Location, made: Mapping[str, str]) -> str:
    folder = open_base(path)
    with closing(folder.files):
        return digest_of_folder(folder, made)


def open_base(path: Location) -> ModelFolder:
    """Open the folder of a base model.

    Raises:
        MissingPathError: it is not there, which is said of the base; a command has other paths too.
        InputError: as `ModelFolder` says.
    """
    try:
        return ModelFolder(path)
    except MissingPathError as error:
        hint = (
            ""
            if is_url(path)
            else "; it has to be a local folder, or in the Hub's cache (`hf download ORG/NAME`)"
        )
        raise MissingPathError(f"the base model cannot be read: {error}{hint}") from None


def known_digest(path: Location) -> KnownDigest | None:
    """The digest of a base's folder and the state of its files, for `remember` in other processes.

    None for URLs, and for files that changed meanwhile.

    Raises:
        InputError: as `base_digest` says.
    """
    state = state_of(path)
    digest = None if state is None else base_digest(path)
    return None if state is None or digest is None or state != state_of(path) else (state, digest)


def remember(known: KnownDigest) -> None:
    """Believe a digest for as long as the files are in the state in which it was computed."""
    _known[known[0]] = known[1]


def digest_of_folder(folder: ModelFolder, made: Mapping[str, str] | None = None) -> str:
    """The digest of an open folder, streamed block by block, several tensors at a time.

    `made` holds hashes of tensors by name, which need not be read for them again.
    """
    shapes, hashes = shapes_of_blocks(folder), dict(made or {})

    def hashed(mine: ModelFolder, name: str) -> str:
        return content_hash(mine.stream(name, BLOCK_ELEMENTS))

    missing = [name for name in shapes if name not in hashes]
    return _joined(shapes, {**hashes, **for_each_tensor(folder, missing, hashed)})


def shapes_of_blocks(folder: ModelFolder) -> dict[str, tuple[int, ...]]:
    """The tensors of a folder that its digest is of, by name, with their shapes.

    Raises:
        UnmeasurableModelError: there is no transformer block among them.
    """
    return _of_blocks({name: folder.shape(name) for name in folder.names()}, folder.where)


def digest_of(
    tensors: Mapping[str, tuple[tuple[int, ...], Contents]], where: str, *, singly: bool = False
) -> str:
    """The digest of named tensors, of which only the blocks' linear weights are read.

    Args:
        tensors: by name: the shape, and what gives the content in blocks, in order.
        where: how messages name the model.
        singly: one tensor after another: what gives the contents is a collective.

    Raises:
        UnmeasurableModelError: there is no transformer block among the names.
    """
    shapes = _of_blocks({name: shape for name, (shape, _) in tensors.items()}, where)

    def hashed(name: str) -> str:
        return content_hash(tensors[name][1]())

    return _joined(shapes, {n: hashed(n) for n in shapes} if singly else for_each(shapes, hashed))


def content_hash(blocks: Iterable[Tensor]) -> str:
    """SHA-256 of a tensor that comes in blocks, rounded to bfloat16."""
    digest = hashlib.sha256()
    for block in blocks:
        for piece in _pieces(block):
            buffer: Any = piece.numpy()
            digest.update(buffer)
    return digest.hexdigest()


def _of_blocks(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, tuple[int, ...]]:
    """The linear weights of the transformer blocks."""
    every = {n: s for n, s in shapes.items() if component_of(n, s) == "blocks"}
    own = {n: s for n, s in every.items() if not beside_the_language_model(n)}
    blocks = own or every
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
    size = BLOCK_ELEMENTS if tensor.device.type == "cpu" else DEVICE_ELEMENTS
    for piece in torch.split(tensor.detach().reshape(-1), size):
        yield piece.to(torch.bfloat16).cpu().contiguous().view(torch.int16)


def state_of(path: Location) -> FilesState | None:
    """What changes when a local checkpoint does; None for URLs and what cannot be read."""
    if is_url(path):
        return None
    root = local_path(path)
    try:
        files = sorted(root.iterdir()) if root.is_dir() else [root]
        stats = [(f, f.stat()) for f in files if f.suffix in (".safetensors", ".json")]
    except OSError:
        return None  # whoever opens it says what is wrong
    return (
        str(root.resolve()),
        *((f.name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for f, s in stats),
    )
