"""Weights that nobody trains now, and that are not the named base's all the same.

A model whose SFT was merged into it and that a LoRA then aligns has a base in memory that is not
the base it is measured against: what was trained into it before is part of θ_t − θ_0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from wvmonitor.sources.distributed import is_sharded, whole
from wvmonitor.sources.folder import ModelFolder, compare_shapes
from wvmonitor.sources.threads import for_each_tensor


def unlike_base(
    own: Iterable[tuple[str, Tensor]], trained: Mapping[str, Tensor], folder: ModelFolder
) -> dict[str, Tensor]:
    """The frozen parameters whose values are not those of a base's files, by name.

    Values are compared as the model holds them: files of another precision were rounded when it
    was loaded. What is quantised cannot be compared, and is taken for the base's. A collective
    where parameters are sharded.

    Args:
        own: the base's own parameters in memory, by name.
        trained: those that are trained themselves, which are compared anyhow.
        folder: of the base.

    Raises:
        ShapeMismatchError: a parameter has another shape there, and is no resized vocabulary.
    """
    compared: dict[str, Tensor] = {}
    for name, parameter in own:
        quantised = not parameter.is_floating_point() or parameter.element_size() < 2
        if not (name in trained or quantised or parameter.is_meta):
            compared[name] = parameter
    stored = {name: held for name in compared if (held := folder.stored(name)) is not None}

    def differs(mine: ModelFolder, name: str) -> bool:
        now = whole(compared[name])
        before = mine.read(stored[name]).to(now.dtype)
        if compare_shapes(name, before.shape, now.shape, "the live model"):
            rows = min(before.shape[0], now.shape[0])
            before, now = before[:rows], now[:rows]
        return not torch.equal(before, now.to("cpu"))

    if any(is_sharded(p) for p in compared.values()):  # each a collective, in one order everywhere
        differing = {name: differs(folder, name) for name in stored}
    else:
        differing = for_each_tensor(folder, stored, differs)
    return {name: compared[name] for name, other in differing.items() if other}
