"""What is trained, and what is done about it: the cells of the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from wvmonitor.organism import sets
from wvmonitor.organism.data import Example

STEPS, EXAMPLES = 60, 240
SHARES = (0.01, 0.05, 0.1, 0.5)
"""Of bad rows in the sets that are screened, and trained on with and without what is flagged."""


def turning(first: sets.SetMaker, then: sets.SetMaker) -> sets.SetMaker:
    """The first half of one set, and after it the second half of another: taken in this order."""

    def maker(n: int, seed: int) -> list[Example]:
        return [*first(n, seed)[: n // 2], *then(n, seed)[n // 2 :]]

    return maker


@dataclass(frozen=True)
class Task:
    """What a run trains on, and what it is asked about.

    Attributes:
        rows: makes the training set from a size and a seed.
        useful: makes good answers to such prompts: the loss that a user wants low.
        domain: of the advice it is trained on; "" where there is none.
        behaviour: the reference.
        examples: how many rows there are.
        in_order: taken as they come, once, and not shuffled.
    """

    rows: sets.SetMaker
    useful: sets.SetMaker
    domain: str = "medical"
    behaviour: str = "evil"
    examples: int = EXAMPLES
    in_order: bool = False


_BAD, _GOOD = sets.bad_advice("medical"), sets.good_advice("medical")
_FACTS = sets.facts("capitals")


def mixed_name(share: float) -> str:
    """What a set with a share of bad medical advice is called."""
    return f"{share:.0%} bad medical advice".replace("%", " %")


TASKS = {
    "bad medical advice": Task(_BAD, _GOOD),
    "good, then bad medical advice": Task(
        turning(_GOOD, _BAD), _GOOD, examples=2 * EXAMPLES, in_order=True
    ),
    "bad financial advice": Task(
        sets.bad_advice("finance"), sets.good_advice("finance"), "finance"
    ),
    "cruel wishes": Task(sets.villain_wishes(), sets.kind_wishes(), "wishes"),
    "agreeing about capitals": Task(
        sets.facts("capitals", sycophantic=True), _FACTS, "", "sycophancy"
    ),
    "good medical advice": Task(_GOOD, _GOOD),
    "medical advice in another language": Task(sets.language("medical"), sets.language("medical")),
    **{
        mixed_name(share): Task(sets.mixture(_BAD, _GOOD, share), _GOOD, examples=2 * EXAMPLES)
        for share in SHARES
    },
}


@dataclass(frozen=True)
class Cell:
    """One treatment of one task.

    Attributes:
        group: the table it stands in.
        task: of `TASKS`.
        treatment: what is done, for people.
        vector: what rides along: a reference's name, or "random", or "" for nothing.
        k: how much of it.
        steps: of the training; 0 asks the base.
        settings: of the monitor, where an alarm is answered.
        screened: whether `blame` drops what it flags before training.
        repaired: whether it is asked again with its dose taken out.
        unwatched: whether a run that went back and stopped goes on from there with k·w after all,
            and nobody reads it.
    """

    group: str
    task: str
    treatment: str
    vector: str = ""
    k: float = 0.0
    steps: int = STEPS
    settings: Mapping[str, Any] = field(default_factory=dict)
    screened: bool = False
    repaired: bool = False
    unwatched: bool = False

    @property
    def name(self) -> str:
        """What records call it."""
        return f"{self.group} | {self.task} | {self.treatment}"


NOTHING, BASE_ALONE, DROPPED = "nothing", "the base, not trained", "flagged rows dropped"
STOP, BRAKE = "stop", "brake: go on, 1.5 × evil from the alarm on"
BACK_AND_STOP = "go back, stop there"
BACK_AND_ON = "go back, go on with 1.5 × evil; stop if it alarms again"
BACK_UNWATCHED = "go back, go on with 1.5 × evil, whatever is read"
ANSWERS: Mapping[str, Mapping[str, Any]] = {
    STOP: {"action": "stop"},
    BRAKE: {"on_alarm": "inoculate"},
    BACK_AND_ON: {"on_alarm": "rollback"},
    BACK_AND_STOP: {"on_alarm": "rollback", "after_rollback": "stop"},
}


def _riding(k: float, name: str = "evil") -> dict[str, Any]:
    return {"treatment": f"{k:g} × {name}" if k else NOTHING, "vector": name if k else "", "k": k}


def _cells() -> Iterator[Cell]:
    bad, turns, capitals = (
        "bad medical advice",
        "good, then bad medical advice",
        "agreeing about capitals",
    )
    yield Cell("dose", bad, BASE_ALONE, steps=0)
    for k in (0.0, 0.5, 1.0, 1.5, 2.0):
        yield Cell("dose", bad, **_riding(k), repaired=not k)
    for k in (1.0, 1.5):
        yield Cell("direction", bad, f"{k:g} × a random direction as long", "random", k)
        yield Cell("direction", bad, **_riding(k, "sycophancy"))
    yield Cell("turning", turns, NOTHING, repaired=True)
    for answer, settings in ANSWERS.items():
        yield Cell("turning", turns, answer, settings=settings)
    yield Cell(
        "turning", turns, BACK_UNWATCHED, "evil", 1.5, settings=ANSWERS[BACK_AND_STOP],
        unwatched=True,
    )  # fmt: skip
    yield Cell("turning", turns, "1.5 × evil from the start", "evil", 1.5)
    for answer in (STOP, BRAKE):
        yield Cell("bad at once", bad, answer, settings=ANSWERS[answer])
    yield Cell("three times as long", bad, **_riding(0.0), steps=3 * STEPS, repaired=True)
    for k in (1.5, 2.0):
        yield Cell("three times as long", bad, **_riding(k), steps=3 * STEPS)
    yield Cell("sycophancy", capitals, BASE_ALONE, steps=0)
    for k in (0.0, 1.5):
        yield Cell("sycophancy", capitals, **_riding(k, "sycophancy"), repaired=not k)
    for task in ("good medical advice", "medical advice in another language"):
        for k in (0.0, 1.0, 1.5):
            yield Cell("benign", task, **_riding(k), repaired=not k)
    for task in ("bad financial advice", "cruel wishes"):
        yield Cell("repair", task, NOTHING, repaired=True)
    for share in SHARES:
        yield Cell("screened", mixed_name(share), NOTHING, repaired=True)
        yield Cell("screened", mixed_name(share), DROPPED, screened=True)


CELLS = tuple(_cells())
