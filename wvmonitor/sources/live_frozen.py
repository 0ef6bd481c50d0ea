"""Weights that nobody trains now, and that are not the base's all the same, or not any longer.

A model whose SFT was merged into it and that a LoRA then aligns has a base in memory that is not
the base it is measured against: what was trained into it before is part of θ_t − θ_0. So is what
ReLoRA (arXiv 2307.05695) merges into the base during the run, each time that it begins anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from wvmonitor.files.storage import shown
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
    compared = {name: p for name, p in own if name not in trained and _is_whole(p)}
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


class FrozenWeights:
    """The weights of a live model that nobody trains, beside those that it should start from.

    Attributes:
        unlike: those that are not the base's, by name; what was trained into them counts as well.
        notes: what a reader must know of them, in words.
        unmeasurable: why a part of the change is not known, None where all of it is.
    """

    def __init__(
        self,
        own: Iterable[tuple[str, Tensor]],
        trained: Callable[[], Mapping[str, Tensor]],
        folder: ModelFolder | None,
        layers: Sequence[nn.Module],
        hashes: TensorHashes | None,
    ) -> None:
        """Compare them with the base's files, and keep a sample of them.

        Args:
            own: as for `unlike_base`.
            trained: gives, at any time, the parameters that are trained themselves.
            folder: of the base, where frozen weights should be what its files hold.
            layers: those under the adapters, whose weights must stay as they are.
            hashes: as for `unlike_base`.
        """
        self._own, self._trained, self._folder = list(own), trained, folder
        self._layers = [x for x in layers if _is_plain(getattr(x, "weight", None))]
        self.notes: list[str] = []
        self.unmeasurable: str | None = None
        self.unlike = self._compare(hashes)

    def look(self) -> bool:
        """See whether weights under the adapters have changed since the last look.

        A few elements are looked at, which takes less than half a millisecond: an adapter that is
        merged changes all of them.
        """
        if self.unmeasurable:
            return False
        now = _sample(self._layers)
        if now is None or not _differ(self._sampled, now):
            return False
        if self._folder is None:
            self.unmeasurable = (
                "weights under the adapters have changed during the run, as when an adapter is "
                "merged into them and begun anew (ReLoRA): that part of the change is not seen; "
                "give base=FOLDER of the base, or measure what was saved with `wvmonitor scan`"
            )
        self.unlike = self._compare(None)
        return True

    def _compare(self, hashes: TensorHashes | None) -> dict[str, Tensor]:
        self._sampled = _sample(self._layers)
        if self._folder is None:
            return {}
        unlike = unlike_base(self._own, self._trained(), self._folder, hashes)
        self.notes = [
            f"{len(unlike)} weights of the model in memory are not those of {self._folder.where} "
            f"({shown(name)}, …): what was trained into them counts as well"
            for name in list(unlike)[:1]
        ]
        return unlike


_LAYERS, _ELEMENTS = 32, 16
"""How many layers are sampled, and about how many elements of each."""


def _sample(layers: Sequence[nn.Module]) -> Tensor | None:
    """Elements of some layers' weights; None where there are none, or they are trained by now."""
    weights = [layer.weight for layer in layers[:: math.ceil(len(layers) / _LAYERS) or 1]]
    few = [
        flat[:: math.ceil(len(flat) / _ELEMENTS)]
        for flat in (w.detach().reshape(-1) for w in weights if _is_plain(w))
    ]
    if not few or len(few) < len(weights):
        return None
    return torch.cat([f.to(few[0].device) for f in few]).cpu()


def _differ(before: Tensor | None, now: Tensor) -> bool:
    """Whether a sample has changed beyond the rounding of a cast, or of a merge that was undone."""
    if before is None:
        return False
    resolution = max(torch.finfo(x.dtype).eps for x in (before, now))
    as_now = before.to(now.dtype).double()
    return bool((now.double() - as_now).norm() > resolution * as_now.norm())


def _is_plain(weight: object) -> TypeGuard[Tensor]:
    """Whether a weight is frozen, in memory and not quantised."""
    return (
        isinstance(weight, Tensor)
        and not weight.requires_grad
        and _is_whole(weight)
        and weight.numel() > 0
    )


def _is_whole(weight: Tensor) -> bool:
    """Whether a weight's values are here to be read: in memory, and not quantised."""
    return weight.is_floating_point() and weight.element_size() > 1 and not weight.is_meta


def _same(before: Tensor, now: Tensor) -> bool:
    """Whether two blocks hold the same values, most of which have the same bits.

    torch compares halves one by one, numpy whole numbers many at a time.
    """
    flat = [block.contiguous() for block in (before, now)]
    wide = all((b.nbytes | b.data_ptr()) % 8 == 0 and b.storage_offset() % 8 == 0 for b in flat)
    one, other = (b.view(torch.int64 if wide else torch.int16).numpy() for b in flat)
    return np.array_equal(one, other) or torch.equal(before, now)
