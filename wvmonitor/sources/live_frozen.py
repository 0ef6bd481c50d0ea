"""Weights that nobody trains now, and that are not the named base's all the same.

A model whose SFT was merged into it and that a LoRA then aligns has a base in memory that is not
the base it is measured against: what was trained into it before is part of θ_t − θ_0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from wvmonitor.sources.distributed import is_sharded, whole
from wvmonitor.sources.folder import ModelFolder, compare_shapes
from wvmonitor.sources.identity import (
    BLOCK_ELEMENTS,
    DEVICE_ELEMENTS,
    TensorHashes,
    content_hash,
    shapes_of_blocks,
)
from wvmonitor.sources.threads import for_each_tensor


def unlike_base(
    own: Iterable[tuple[str, Tensor]],
    trained: Mapping[str, Tensor],
    folder: ModelFolder,
    hashes: TensorHashes | None = None,
) -> dict[str, Tensor]:
    """The frozen parameters whose values are not those of a base's files, by name.

    Values are compared as the model holds them: files of another precision were rounded when it
    was loaded. What is quantised cannot be compared, and is taken for the base's. A collective
    where parameters are sharded.

    Args:
        own: the base's own parameters in memory, by name.
        trained: those that are trained themselves, which are compared anyhow.
        folder: of the base.
        hashes: where the hashes of the files' tensors are left, each made of a block while it is in
            the cache for its comparison.

    Raises:
        ShapeMismatchError: a parameter has another shape there, and is no resized vocabulary.
    """
    compared: dict[str, Tensor] = {}
    for name, parameter in own:
        quantised = not parameter.is_floating_point() or parameter.element_size() < 2
        if not (name in trained or quantised or parameter.is_meta):
            compared[name] = parameter
    stored = {name: held for name in compared if (held := folder.stored(name)) is not None}

    of_digest = {} if hashes is None else shapes_of_blocks(folder)

    def differs(mine: ModelFolder, name: str) -> bool:
        now, held = whole(compared[name]).detach(), stored[name]
        resized = compare_shapes(name, mine.shape(held), now.shape, "the live model")
        if resized:
            now = now[: mine.shape(held)[0]]
        flat = now.reshape(-1)
        if not flat.numel():
            return False
        size = BLOCK_ELEMENTS if flat.device.type == "cpu" else DEVICE_ELEMENTS
        files = mine.stream(held, size, flat.numel())
        pairs = zip(files, torch.split(flat, size), strict=True)
        if hashes is None or resized or held not in of_digest:
            return not all(_same(before.to(part.dtype), part.to("cpu")) for before, part in pairs)
        same = True

        def seen() -> Iterator[Tensor]:
            nonlocal same
            for before, part in pairs:
                same = same and _same(before.to(part.dtype), part.to("cpu"))
                yield before

        hashes.of[held] = content_hash(seen())
        return not same

    if any(is_sharded(p) for p in compared.values()):  # each a collective, in one order everywhere
        differing = {name: differs(folder, name) for name in stored}
    else:
        differing = for_each_tensor(folder, stored, differs)
    return {name: compared[name] for name, other in differing.items() if other}


def _same(before: Tensor, now: Tensor) -> bool:
    """Whether two blocks hold the same values, most of which have the same bits.

    torch compares halves one by one, numpy whole numbers many at a time.
    """
    flat = [block.contiguous() for block in (before, now)]
    wide = all((b.nbytes | b.data_ptr()) % 8 == 0 and b.storage_offset() % 8 == 0 for b in flat)
    one, other = (b.view(torch.int64 if wide else torch.int16).numpy() for b in flat)
    return np.array_equal(one, other) or torch.equal(before, now)
