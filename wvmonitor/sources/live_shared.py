"""A live model's parts where their tensors are sharded: each with what makes it readable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from wvmonitor.sources.distributed import Shared, gathered
from wvmonitor.sources.live_adapter import Adapted
from wvmonitor.sources.live_parts import factors_alone
from wvmonitor.vectors import Update
from wvmonitor.vectors import update as updates
from wvmonitor.vectors.task_vector import Part

Collected = tuple[Part, Callable[[], AbstractContextManager[None]]]
"""A part of the task vector, and the collective inside which it can be produced."""


def collecting(entry: Adapted) -> Callable[[], AbstractContextManager[None]]:
    """What makes a wrapped module's tensors whole: as many of them as its change needs."""
    return lambda: gathered(entry.module, base=not factors_alone(entry))


def by_name(collected: Iterable[Collected]) -> list[Shared]:
    """The parts of one parameter together, and what makes them all readable."""
    by_name: dict[str, list[Collected]] = {}
    for part, collect in collected:
        by_name.setdefault(part.name, []).append((part, collect))

    def shared(name: str, mates: list[Collected]) -> Shared:
        @contextmanager
        def collect() -> Iterator[None]:
            with ExitStack() as stack:
                for _, one in mates:
                    stack.enter_context(one())
                yield

        def produce() -> Update:
            made = mates[0][0].produce()
            for part, _ in mates[1:]:
                made = updates.add(made, part.produce())
            return made

        return Shared(name, mates[0][0].shape, collect, produce)

    return [shared(name, mates) for name, mates in by_name.items()]
