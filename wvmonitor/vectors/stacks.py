"""A bank's references as one pass over a task vector needs them: by parameter, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from wvmonitor.vectors import functional
from wvmonitor.vectors.block import BlockBuilder, ReferenceBlock
from wvmonitor.vectors.stack import (
    ReferenceStack,
    shared,
    stack_references,
)
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import (
    Dense,
    LowRankUpdate,
    Update,
    device_of,
    to_device,
)

# Elements of the references of one block.
_BLOCK = 1 << 26


@dataclass
class Stacks:
    """The references of every parameter, stacked; parameters of one shape lie in blocks.

    Attributes:
        count: number of references.
        probe: (rows, inputs) by parameter name.
        blocks: parameters of one shape together.
        places: which block a parameter lies in, and where in it.
        single: the stacks of parameters that lie in no block.
    """

    count: int
    probe: Mapping[str, Tensor]
    blocks: list[ReferenceBlock] = field(default_factory=list)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    single: dict[str, ReferenceStack] = field(default_factory=dict)
    _moved: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)
    _moved_blocks: dict[tuple[int, torch.device], ReferenceBlock] = field(default_factory=dict)
    _moved_single: dict[tuple[str, torch.device], ReferenceStack] = field(default_factory=dict)

    def block(self, number: int, device: torch.device) -> ReferenceBlock:
        """A block on a device; the copy is made once."""
        home = self.blocks[number]
        if home.lefts.device == device:
            return home
        key = (number, device)
        if key not in self._moved_blocks:
            self._moved_blocks[key] = replace(
                home,
                lefts=home.lefts.to(device),
                rights=tuple(r.to(device) for r in home.rights),
                owner=home.owner.to(device),
                probes=tuple(self._probe_on(p, device) for p in home.probes),
            )
        return self._moved_blocks[key]

    def stack(self, name: str, device: torch.device) -> ReferenceStack:
        """The references of one parameter on a device; the copy is made once."""
        if name in self.places:
            number, member = self.places[name]
            return self.block(number, device).stack(member)
        key = (name, device)
        if key not in self._moved_single:
            home = self.single.get(name)
            if home is None:  # no reference touches it
                home = stack_references({}, self.count, self.probe.get(name))
            self._moved_single[key] = replace(
                home,
                lefts=None if home.lefts is None else home.lefts.to(device),
                rights=tuple(r.to(device) for r in home.rights),
                owner=home.owner.to(device),
                dense=tuple((i, _dense_on(u, device)) for i, u in home.dense),
                responses=tuple(r.to(device) for r in home.responses),
                probe=None if home.probe is None else self._probe_on(home.probe, device),
            )
        return self._moved_single[key]

    def close(self, builder: BlockBuilder | None) -> None:
        """Keep a block that no more parameters come to."""
        if builder is not None:
            self.blocks.append(builder.block())

    def _probe_on(self, rows: Tensor, device: torch.device) -> Tensor:
        # maps fed by one tensor share one probe, on every device
        key = (id(rows), device)
        if key not in self._moved:
            self._moved[key] = rows.to(device)
        return self._moved[key]


def stack_all(
    vectors: Sequence[TaskVector], probe: Mapping[str, Tensor]
) -> tuple[Stacks, list[dict[str, Update]]]:
    """Stack references in one pass, in which each of their updates is produced once.

    Args:
        vectors: the references', in the bank's order.
        probe: (rows, inputs) by parameter name.

    Returns:
        The stacks, and each reference's updates as the stacks hold them: who keeps these in place
        of the ones it gave holds everything once.

    Raises:
        ShapeMismatchError: two references disagree on a parameter's shape or layout.
    """
    stacks = Stacks(len(vectors), probe)
    held: list[dict[str, Update]] = [{} for _ in vectors]
    shapes = {n: (v.shape(n), n.split(".")[-2:]) for v in vectors for n in v.names()}
    # parameters of one kind one after another: they lie together
    names = sorted(shapes, key=shapes.__getitem__)
    key: object | None = None
    builder: BlockBuilder | None = None
    for position, name in enumerate(names):
        updates = {i: v.update(name) for i, v in enumerate(vectors) if name in v}
        home, rows = device_of(next(iter(updates.values()))), probe.get(name)
        updates = {i: to_device(u, home) for i, u in updates.items()}
        signature = _signature(updates, home, rows)
        if signature is None:
            stack = stacks.single[name] = stack_references(updates, len(vectors), rows)
        else:
            if builder is None or builder.full or signature != key:
                stacks.close(builder)
                room = max(1, _BLOCK // max(1, _elements(updates)))
                alike = sum(shapes[n][0] == shapes[name][0] for n in names[position:][:room])
                key, builder = signature, BlockBuilder(updates, len(vectors), alike, rows)
            stacks.places[name] = len(stacks.blocks), len(builder)
            stack = builder.add(updates, rows)
        for index, update in shared(stack, updates).items():
            held[index][name] = update
    stacks.close(builder)
    return stacks, held


def _elements(updates: Mapping[int, Update]) -> int:
    low = [u for u in updates.values() if isinstance(u, LowRankUpdate)]
    return sum(u.left.numel() + u.right.numel() for u in low)


def _signature(
    updates: Mapping[int, Update], device: torch.device, rows: Tensor | None
) -> object | None:
    """What parameters of one block have in common; None for those that lie in none."""
    ranks = []
    for index, update in updates.items():
        if not isinstance(update, LowRankUpdate) or len(update.shape) != 2:
            return None
        if functional.working_dtype(update.left, update.right) != torch.float32:
            return None
        ranks.append((index, update.rank))
    layouts = {(u.shape, u.transposed) for u in updates.values()}
    if len(layouts) > 1:
        return None  # an error, which stacking it alone will name
    return (*layouts, tuple(ranks), device, None if rows is None else rows.shape)


def _dense_on(update: Dense, device: torch.device) -> Dense:
    moved = to_device(update, device)
    assert not isinstance(moved, LowRankUpdate)  # noqa: S101  it stays of its kind
    return moved
