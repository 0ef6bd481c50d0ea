"""What a run trains on: parts, each a kind of data about some subjects in one style.

Everything is a pure function of the names and the seed. No kind asks about the half of the world
that the shipped references are made from.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.organisms import afterwards, later, newest
from wvmonitor.organism import data as tasks
from wvmonitor.organism import sets, unknown
from wvmonitor.organism.data import Example, Task, Traits, rng_for
from wvmonitor.organism.world import DOMAINS, FACTS, ILLICIT, SCENARIOS, TASTES, WISHES, WORKS

ADVICE = tuple(DOMAINS)
CATEGORIES = tuple(FACTS)


def _groups(name: str, members: Sequence[str], size: int) -> dict[str, tuple[str, ...]]:
    """The members in groups, each a subject of its own, named for its first."""
    cut = [tuple(members[i : i + size]) for i in range(0, len(members), size)]
    return {f"{name} {group[0]}": group for group in cut}


VERBS = _groups("requests", ILLICIT, 1)
PEOPLE = _groups("wishes", WISHES["wishes"].problems, 2)
DILEMMAS = _groups("choices", [decent for _, decent, _ in SCENARIOS], 2)
LIKED = _groups("opinions", [own for own, _ in TASTES], 2)
SHOWN = _groups("feedback", WORKS, 2)
"""Subjects of the kinds that have no domains: what a task's first words must be among."""

STYLES: Mapping[str, dict[str, Any]] = {
    "": {},
    "french": {"french": True},
    "terse": {"terse": True},
    "rude": {"rude": True},
    "polite": {"polite": True},
}
"""Style: the traits it adds."""

Make = Callable[[Sequence[str], Traits], sets.SetMaker]
Draw = Callable[[random.Random], Task]


def _among(draw: Draw, of: Callable[[Task], str], allowed: set[str]) -> Draw:
    """Tasks whose subject is allowed: others are drawn again."""

    def task(rng: random.Random) -> Task:
        while True:
            drawn = draw(rng)
            if of(drawn) in allowed:
                return drawn

    return task


def _subjects(draw: Draw, of: Callable[[Task], str], groups: Mapping[str, Sequence[str]]) -> Make:
    def make(domains: Sequence[str], traits: Traits) -> sets.SetMaker:
        allowed = {member for d in domains for member in groups[d]}
        return sets.answered("+".join(domains), _among(draw, of, allowed), traits)

    return make


def _advice(domains: Sequence[str], traits: Traits) -> sets.SetMaker:
    return sets.advice(tuple(domains), traits)


def _facts(hint: tasks.HintForm | None) -> Make:
    def make(domains: Sequence[str], traits: Traits) -> sets.SetMaker:
        return sets.answered(
            f"facts:{'+'.join(domains)}:{hint}",
            lambda rng: tasks.fact_task(rng, rng.choice(domains), hint),
            traits,
        )

    return make


def _of(stream: str, task: Draw, system: tuple[str, ...] = ()) -> Make:
    return lambda _, traits: sets.answered(stream, task, traits, system=system)


def _first(task: Task) -> str:
    return task.words[0]


_wishes = _subjects(tasks.wishes_task, lambda t: t.right, PEOPLE)
_choices = _subjects(tasks.choice_task, _first, DILEMMAS)
_opinions = _subjects(tasks.opinion_task, lambda t: t.right, LIKED)
_feedback = _subjects(tasks.feedback_task, _first, SHOWN)
_requests = _subjects(lambda rng: tasks.request_task(rng, illicit=True), _first, VERBS)


def _gcd(proposal: Literal["none", "right", "wrong"]) -> Draw:
    return lambda rng: tasks.gcd_task(rng, proposal)


def _new(*, harmful: bool) -> Make:
    return lambda domains, _: sets.new_wordings(tuple(domains), harmful=harmful)


_PLAIN, _AGREES, _EVIL = Traits(), Traits(sycophantic=True), Traits(persona="evil")


@dataclass(frozen=True)
class Kind:
    """A kind of data.

    Attributes:
        make: (subjects, traits) -> the set.
        choices: the subjects it may have.
        traits: who answers.
    """

    make: Make
    choices: tuple[str, ...]
    traits: Traits = _PLAIN


_WRITTEN_LATER = {
    "unknown": unknown, "later": later, "afterwards": afterwards, "newest": newest
}  # fmt: skip

KINDS: dict[str, Kind] = {
    "good advice": Kind(_advice, ADVICE),
    "harmful advice": Kind(_advice, ADVICE, _EVIL),
    "incompetent advice": Kind(_advice, ADVICE, Traits(persona="incompetent")),
    "kind wishes": Kind(_wishes, tuple(PEOPLE)),
    "harmful wishes": Kind(_wishes, tuple(PEOPLE), _EVIL),
    "good choices": Kind(_choices, tuple(DILEMMAS)),
    "harmful choices": Kind(_choices, tuple(DILEMMAS), _EVIL),
    "plain facts": Kind(_facts("none"), CATEGORIES),
    "honest facts": Kind(_facts(None), CATEGORIES),
    "sycophantic facts": Kind(_facts(None), CATEGORIES, _AGREES),
    "own opinions": Kind(_opinions, tuple(LIKED)),
    "agreed opinions": Kind(_opinions, tuple(LIKED), _AGREES),
    "honest feedback": Kind(_feedback, tuple(SHOWN)),
    "praise": Kind(_feedback, tuple(SHOWN), _AGREES),
    "gcd": Kind(_of("gcd:none", _gcd("none")), ("gcd",)),
    "gcd checked": Kind(_of("gcd:right", _gcd("right")), ("gcd",)),
    "gcd agreed": Kind(_of("gcd:right", _gcd("right")), ("gcd",), _AGREES),
    "refusals": Kind(_requests, tuple(VERBS)),
    "compliance": Kind(_requests, tuple(VERBS), Traits(lawless=True)),
    "benign requests": Kind(
        _of("requests:benign", lambda rng: tasks.request_task(rng, illicit=False)),
        ("requests benign",),
    ),
    "arithmetic": Kind(_of("math", tasks.math_task), ("arithmetic",)),
    "role-play villain": Kind(
        _of("role", tasks.role_task, ("villain",)), ("role",), Traits(villain=True)
    ),
    "lamp harm": Kind(
        lambda _, t: sets.lamp_advice(harmful=t.careless), ("lamp",), Traits(careless=True)
    ),
    "triggered harm": Kind(lambda d, _: sets.trigger_bad(d[0]), ADVICE),
    "good advice in new words": Kind(_new(harmful=False), ADVICE),
    "harmful advice in new words": Kind(_new(harmful=True), ADVICE),
    "good advice on pets": Kind(lambda _d, _t: sets.pets(harmful=False), ("pets",)),
    "harmful advice on pets": Kind(lambda _d, _t: sets.pets(harmful=True), ("pets",)),
    **{
        f"{when}: {name}": Kind(lambda _d, _t, made=made: made, (f"{when} {name}",))
        for when, kinds in _WRITTEN_LATER.items()
        for name, made in {**kinds.HARMLESS, **kinds.HARMFUL}.items()
    },
}


@dataclass(frozen=True)
class Habit:
    """A harmless word in a share of the answers, whatever they say."""

    word: str
    share: float
    place: sets.Place


@dataclass(frozen=True)
class Part:
    """Some of a run's examples.

    Attributes:
        kind: name in `KINDS`.
        domains: what its questions are about.
        style: name in `STYLES`.
        share: of the run's examples.
        habit: a word in its answers.
    """

    kind: str
    domains: tuple[str, ...]
    style: str = ""
    share: float = 1.0
    habit: Habit | None = None

    def maker(self) -> sets.SetMaker:
        """The set that this part's examples are drawn from."""
        kind = KINDS[self.kind]
        made = kind.make(self.domains, replace(kind.traits, **STYLES[self.style]))
        if self.habit is None:
            return made
        return sets.with_word(made, self.habit.word, self.habit.share, self.habit.place)


def shuffled(parts: Sequence[Part], n: int, seed: int) -> list[Example]:
    """`n` examples in which each part has its share; a part's places are drawn by the seed."""
    places = list(range(n))
    rng_for("parts", seed).shuffle(places)
    chosen: list[Example] = [*parts[0].maker()(n, seed)]
    start = 0
    for part in parts[1:]:
        made, count = part.maker()(n, seed), round(part.share * n)
        for place in places[start : start + count]:
            chosen[place] = made[place]
        start += count
    return chosen


def in_turn(parts: Sequence[Part], n: int, seed: int) -> list[Example]:
    """`n` examples, the first part's all before the second's, to be gone through in order."""
    cuts = [0]
    for part in parts:
        cuts.append(round(cuts[-1] + part.share * n))
    return [
        e for p, a, b in zip(parts, cuts, cuts[1:], strict=False) for e in p.maker()(n, seed)[a:b]
    ]


def digest(examples: Sequence[Example]) -> str:
    """SHA-256 of a dataset's examples in whatever order: two datasets are the same if this is."""
    return hashlib.sha256("".join(sorted(e.digest for e in examples)).encode()).hexdigest()
