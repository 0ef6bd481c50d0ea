"""Parts of a task vector: what one entry of an adapter does to one parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from wvmonitor.errors import ShapeMismatchError
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
