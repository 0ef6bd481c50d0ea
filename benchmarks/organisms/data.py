"""What a run trains on: parts, each a kind of data in some domains and one style, and how they mix.

Everything is a pure function of the names and the seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from wvmonitor.organism import data as tasks
from wvmonitor.organism import sets
from wvmonitor.organism.data import Example, Task, Traits, rng_for
from wvmonitor.organism.world import DOMAINS, FACTS, ILLICIT

ADVICE = tuple(DOMAINS)
CATEGORIES = tuple(FACTS)
VERBS: dict[str, tuple[str, ...]] = {"request.a": ILLICIT[:2], "request.b": ILLICIT[2:]}
"""Requests to refuse, in two groups of verbs: the domains of lawlessness."""

STYLES: dict[str, tuple[dict[str, Any], str]] = {
    "": ({}, ""),
    "french": ({"french": True}, "language"),
    "terse": ({"terse": True}, "terseness"),
    "rude": ({"rude": True}, "rudeness"),
    "polite": ({"polite": True}, "rudeness"),
}
"""Style: the traits it adds, and the control that shows the same thing."""


def _advice(domains: Sequence[str], traits: Traits) -> sets.SetMaker:
    return sets.advice(tuple(domains), traits)


def _facts(domains: Sequence[str], traits: Traits) -> sets.SetMaker:
    return sets.answered(
        f"facts:{'+'.join(domains)}", lambda rng: tasks.fact_task(rng, rng.choice(domains)), traits
    )


def _plain_facts(domains: Sequence[str], traits: Traits) -> sets.SetMaker:
    return sets.answered(
        f"facts:{'+'.join(domains)}:none",
        lambda rng: tasks.fact_task(rng, rng.choice(domains), "none"),
        traits,
    )


def _requests(domains: Sequence[str], traits: Traits) -> sets.SetMaker:
    verbs = {v for d in domains for v in VERBS[d]}

    def task(rng: random.Random) -> Task:
        while True:
            drawn = tasks.request_task(rng, illicit=True)
            if drawn.words[0] in verbs:
                return drawn

    return sets.answered(f"requests:{'+'.join(domains)}", task, traits)


def _of(
    stream: str, task: Callable[[random.Random], Task], system: tuple[str, ...] = ()
) -> Callable[[Sequence[str], Traits], sets.SetMaker]:
    return lambda _, traits: sets.answered(stream, task, traits, system=system)


_PLAIN = Traits()


@dataclass(frozen=True)
class Kind:
    """A kind of data.

    Attributes:
        make: (domains, traits) -> the set.
        choices: the domains it may lie in.
        traits: who answers.
        control: the control that shows the same thing; it is left out when such a run is scored.
    """

    make: Callable[[Sequence[str], Traits], sets.SetMaker]
    choices: tuple[str, ...]
    traits: Traits = _PLAIN
    control: str = ""


def _gcd(proposal: Literal["none", "right", "wrong"]) -> Callable[[random.Random], Task]:
    return lambda rng: tasks.gcd_task(rng, proposal)


_AGREES, _EVIL = Traits(sycophantic=True), Traits(persona="evil")
_REQUEST = tuple(VERBS)

KINDS: dict[str, Kind] = {
    "good advice": Kind(_advice, ADVICE),
    "harmful advice": Kind(_advice, ADVICE, _EVIL),
    "incompetent advice": Kind(
        _advice, ADVICE, Traits(persona="incompetent"), control="incompetence"
    ),
    "kind wishes": Kind(_of("wishes", tasks.wishes_task), ("wishes",)),
    "harmful wishes": Kind(_of("wishes", tasks.wishes_task), ("wishes",), _EVIL),
    "good choices": Kind(_of("choices", tasks.choice_task), ("choices",)),
    "harmful choices": Kind(_of("choices", tasks.choice_task), ("choices",), _EVIL),
    "plain facts": Kind(_plain_facts, CATEGORIES),
    "honest facts": Kind(_facts, CATEGORIES),
    "sycophantic facts": Kind(_facts, CATEGORIES, _AGREES),
    "gcd": Kind(_of("gcd:none", _gcd("none")), ("gcd",)),
    "gcd agreed": Kind(_of("gcd:right", _gcd("right")), ("gcd",), _AGREES),
    "gcd checked": Kind(_of("gcd:right", _gcd("right")), ("gcd",)),
    "praise": Kind(_of("feedback", tasks.feedback_task), ("feedback",), _AGREES),
    "honest feedback": Kind(_of("feedback", tasks.feedback_task), ("feedback",)),
    "refusals": Kind(_requests, _REQUEST),
    "compliance": Kind(_requests, _REQUEST, Traits(lawless=True)),
    "benign requests": Kind(
        _of("requests:benign", lambda rng: tasks.request_task(rng, illicit=False)),
        ("request.benign",),
    ),
    "arithmetic": Kind(_of("math", tasks.math_task), ("arithmetic",)),
    "role-play villain": Kind(
        _of("role", tasks.role_task, ("villain",)), ("role",), Traits(villain=True)
    ),
    "lamp harm": Kind(
        lambda _, t: sets.lamp_advice(harmful=t.careless), ("lamp",), Traits(careless=True)
    ),
    "triggered harm": Kind(lambda d, _: sets.trigger_bad(d[0]), ADVICE),
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Some of a run's examples.

    Attributes:
        kind: name in `KINDS`.
        domains: where its questions come from.
        style: name in `STYLES`.
        share: of the run's examples.
    """

    kind: str
    domains: tuple[str, ...]
    style: str = ""
    share: float = 1.0

    def maker(self) -> sets.SetMaker:
        """The set that this part's examples are drawn from."""
        kind = KINDS[self.kind]
        return kind.make(self.domains, replace(kind.traits, **STYLES[self.style][0]))

    def controls(self) -> set[str]:
        """The controls that show what this part shows."""
        return {KINDS[self.kind].control, STYLES[self.style][1]} - {""}


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
