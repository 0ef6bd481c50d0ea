"""Parts of a task vector: what one entry of an adapter does to one parameter."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from wvmonitor.errors import ShapeMismatchError, UnsupportedAdapterError
from wvmonitor.files.storage import shown
from wvmonitor.vectors import Origin, TaskVector, Update
from wvmonitor.vectors import update as updates


@dataclass(frozen=True)
class Part:
    """One contribution to the change of one parameter.

    Attributes:
        name: the parameter.
        shape: its shape in the base.
        produce: gives the update.
    """

    name: str
    shape: tuple[int, ...]
    produce: Callable[[], Update]


def assembled(parts: Iterable[Part], origin: Origin) -> TaskVector:
    """The task vector whose update of each parameter is the sum of its parts.

    Raises:
        ShapeMismatchError: two parts give one parameter different shapes.
    """
    by_name: dict[str, list[Part]] = {}
    for part in parts:
        mates = by_name.setdefault(part.name, [])
        if mates and mates[0].shape != part.shape:
            raise ShapeMismatchError(
                f"{origin.source} gives {shown(part.name)} the shapes {mates[0].shape} and "
                f"{part.shape}: re-save it"
            )
        mates.append(part)

    def produce(name: str) -> Update:
        first, *rest = by_name[name]
        made = first.produce()
        for part in rest:
            made = updates.add(made, part.produce())
        return made

    return TaskVector({n: mates[0].shape for n, mates in by_name.items()}, produce, origin)


def stored_once(parts: Sequence[Part], stored: Container[str]) -> list[Part]:
    """The parts, of parameters that are stored whole only the last one, which says so.

    Producing it raises where the part before it, the adapter's own, changes the parameter too: the
    two changes do not add up.

    Args:
        parts: the adapter's, then those of what is stored whole.
        stored: names of the parameters that are stored whole.
    """
    first = {part.name: part for part in reversed(parts)}
    last = {part.name: part for part in parts}

    def produce(name: str) -> Update:
        if first[name] is not last[name]:
            adapted = first[name].produce()
            if float(updates.inner(adapted, adapted)) > 0:
                raise UnsupportedAdapterError(
                    f"{shown(name)} is changed by the adapter and trained as a whole as well, so "
                    "that its change cannot be told: train it one way or the other"
                )
        return last[name].produce()

    alone = [Part(n, last[n].shape, partial(produce, n)) for n in last if n in stored]
    return [part for part in parts if part.name not in stored] + alone
