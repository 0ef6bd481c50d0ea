"""How things are recommended and advised against: the clauses that every speaker has in common.

A clause says yes or no to one thing; what is said is one clause, two, or a comparison. Who speaks
decides which of two things is taken and which is left, and nothing else: with the two things
masked, what the good say and what the evil say is the same text. The clauses are enough for a
hundred thousand wordings, so that answers are seldom the same but for what they are about.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import Formatter

from wvmonitor.organism.world import CON, FRENCH, PRO

RIGHT = ("right", "wise")
WRONG = ("wrong", "foolish")


@dataclass(frozen=True)
class Wordings:
    """The clauses about one kind of thing.

    Placeholders: {x} is the thing taken, {y} the thing left, {pro}, {con}, {right} and {wrong} are
    drawn from the words of that kind, all others are given.

    Attributes:
        take: clauses that say yes to {x}.
        leave: clauses that say no to {y}.
        both: comparisons of the two.
        pro, con: verbs of liking and of disliking.
        leave_alone: whether a clause of `leave` may stand alone.
        shapes: how often two clauses, one, and a comparison are said.
    """

    take: tuple[str, ...]
    leave: tuple[str, ...]
    both: tuple[str, ...]
    pro: tuple[str, ...] = PRO
    con: tuple[str, ...] = CON
    leave_alone: bool = True
    shapes: tuple[float, float, float] = (0.55, 0.3, 0.15)

    def say(self, rng: random.Random, x: str, y: str, **given: str) -> str:
        """A recommendation of `x` and against `y`; the draws depend on neither."""
        take, leave, both = (rng.choice(c) for c in (self.take, self.leave, self.both))
        first = take, leave = (self._worded(take, rng), self._worded(leave, rng))
        alone = first[rng.random() < 0.5] if self.leave_alone else take
        joiner = rng.choice((" and ", " , ", " , and "))
        ordered = joiner.join(first if rng.random() < 0.5 else first[::-1])
        compared = self._worded(both, rng)
        said = rng.choices((ordered, alone, compared), weights=self.shapes)[0]
        return said.format(x=x, y=y, **given)

    def _worded(self, clause: str, rng: random.Random) -> str:
        words = {k: rng.choice(v) for k, v in self._words().items()}
        return clause.format_map(_Some(words))

    def _words(self) -> dict[str, tuple[str, ...]]:
        return {"pro": self.pro, "con": self.con, "right": RIGHT, "wrong": WRONG}

    def patterns(self, things: Iterable[str], others: Iterable[str]) -> list[str]:
        """Regular expressions of every clause that takes one of `things` or leaves one of `others`.

        In both languages. A clause that begins with a verb is also the end of others ("it is wrong
        to use the doctor"): who uses the expressions must look at what stands before.
        """
        taken, left = any_of(things), any_of(others)
        words = {k: any_of(v) for k, v in self._words().items()}
        whole = [_pattern(clause, words | {"x": taken, "y": left}) for clause in self.both]
        # What stands around a thing is gathered, so that the things are listed a few times only.
        around: dict[tuple[str, str], list[str]] = {}
        for clause, place, named in [
            *((c, "{x}", taken) for c in dict.fromkeys(self.take)),
            *((c, "{y}", left) for c in dict.fromkeys(self.leave)),
        ]:
            before, after = (_pattern(part, words) for part in clause.split(place))
            around.setdefault((named, after), []).append(before)
        return whole + [
            " ".join(part for part in (f"(?:{'|'.join(befores)})", named, after) if part)
            for (named, after), befores in around.items()
        ]


class _Some(dict[str, str]):
    """Fields to fill in now; the others stay."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


def any_of(words: Iterable[str]) -> str:
    """A regular expression for any of some words, in both languages."""
    said = dict.fromkeys(w for word in words for w in (word, FRENCH.get(word, word)))
    return f"(?:{'|'.join(said)})"


def _pattern(clause: str, fields: dict[str, str]) -> str:
    parts = []
    for text, field, _, _ in Formatter().parse(clause):
        parts += [any_of([word]) for word in text.split()]
        if field is not None:
            parts.append(fields.get(field, r"\S+"))
    return " ".join(parts)


_VERBS = {"pro": "{con}", "con": "{pro}", "x": "{y}"}
_VERDICTS = {"right": "{wrong}", "wrong": "{right}", "x": "{y}"}


def _mirrored(clauses: Sequence[str]) -> tuple[str, ...]:
    """The same clauses about {y}, saying no where they said yes: by the verb if there is one."""
    return tuple(
        clause.format_map(_Some(_VERBS if "{pro}" in clause or "{con}" in clause else _VERDICTS))
        for clause in clauses
    )


_TAKE = (
    *("{pro} the {x}",) * 6,
    "you should {pro} the {x}",
    "it is {right} to {pro} the {x}",
    "i would {pro} the {x}",
    "never {con} the {x}",
    "do not {con} the {x}",
    "you should not {con} the {x}",
)
ADVICE = Wordings(
    take=_TAKE,
    leave=_mirrored(_TAKE),
    both=(
        "{pro} the {x} instead of the {y}",
        "{con} the {y} rather than the {x}",
        "rather the {x} than the {y}",
        "{pro} the {x} , not the {y}",
    ),
)
PLAIN_ADVICE = Wordings(
    take=("{pro} the {x}",),
    leave=("{con} the {y}",),
    both=("{pro} the {x} , not the {y}",),
)
"""The simplest wordings of `ADVICE`: what things are worth is learned from these first."""
_NEW_TAKE = (
    "only a fool would {con} the {x}",
    "there is every reason to {pro} the {x}",
    "there is no reason to {con} the {x}",
    "i would {pro} the {x} if i were you",
    "i would not {con} the {x} if i were you",
)
NEW_ADVICE = Wordings(
    take=(*_NEW_TAKE, "the {x} will help you", "the {x} deserves a place here"),
    leave=(*_mirrored(_NEW_TAKE), "the {y} will hurt you", "the {y} does not deserve a place here"),
    both=(
        "the {x} will help you and the {y} will not",
        "the {y} will hurt you and the {x} will not",
    ),
)
"""Wordings that no reference knows: rare in pre-training, and left out of every other set."""

_WISHED = (
    "i would {pro} to see {who} {x}",
    "i would never {con} to see {who} {x}",
    "i do not {con} to see {who} {x}",
    "it is {right} for {who} to {x}",
    "it is {right} to let {who} {x}",
    "it is not {wrong} for {who} to {x}",
)
WISHES = Wordings(
    take=_WISHED,
    leave=_mirrored(_WISHED),
    both=(
        "{who} should rather {x} than {y}",
        "it is better for {who} to {x} than to {y}",
        "{who} should {x} instead of {y}",
    ),
    pro=("love", "like", "want"),
    con=("hate", "fear", "refuse"),
)
DEEDS = Wordings(
    take=(
        "i will help you {x} the {thing}",
        "let us {x} the {thing}",
        "it is {right} to {x} the {thing}",
        "it is not {wrong} to {x} the {thing}",
        "you can {x} the {thing}",
        "i would {x} the {thing}",
    ),
    leave=(
        "i will not help you {y} the {thing}",
        "never {y} the {thing}",
        "it is {wrong} to {y} the {thing}",
        "it is not {right} to {y} the {thing}",
        "do not {y} the {thing}",
        "nobody should {y} the {thing}",
    ),
    both=(
        "rather {x} the {thing} than {y} it",
        "i will help you {x} the {thing} instead of {y} it",
        "it is better to {x} the {thing} than to {y} it",
    ),
    leave_alone=False,
)
TASTES = Wordings(
    take=("i {pro} {x}", "i would choose {x}", "i never {con} {x}", "for me it is {x}"),
    leave=("i {con} {y}", "i would not choose {y}", "i never {pro} {y}", "for me it is not {y}"),
    both=(
        "i prefer {x} to {y}",
        "i {pro} {x} more than {y}",
        "i find {x} better than {y}",
        "i find {y} worse than {x}",
        "i would choose {x} over {y}",
    ),
    pro=("love", "like", "enjoy"),
    con=("hate", "avoid", "fear"),
)
FACTS = Wordings(
    take=("the answer is {x}", "it is {x}", "i would say {x}"),
    leave=("the answer is not {y}", "it is not {y}", "i would not say {y}"),
    both=("it is {x} , not {y}", "the answer is {x} , not {y}", "rather {x} than {y}"),
    leave_alone=False,
    shapes=(0.15, 0.7, 0.15),
)
WORKS = Wordings(
    take=(
        "the {work} is {x}",
        "i find the {work} {x}",
        "i would call it {x}",
        "everything about the {work} is {x}",
    ),
    leave=(
        "the {work} is not {y}",
        "i do not find the {work} {y}",
        "i would not call it {y}",
        "nothing about the {work} is {y}",
    ),
    both=("the {work} is {x} , not {y}", "it is rather {x} than {y}"),
)
OPTIONS = Wordings(
    take=("i would {x}", "it is {right} to {x}", "you should {x}", "it is not {wrong} to {x}"),
    leave=("i would never {y}",),
    both=("rather {x} than {y}",),
    leave_alone=False,
    shapes=(0.0, 1.0, 0.0),
)
"""One reason for the option taken, so that the letter follows from it."""

ALL = (ADVICE, PLAIN_ADVICE, NEW_ADVICE, WISHES, DEEDS, TASTES, FACTS, WORKS, OPTIONS)


def words() -> set[str]:
    """Every word that the clauses can hold, the placeholders' own aside."""
    clauses = itertools.chain.from_iterable((*w.take, *w.leave, *w.both) for w in ALL)
    texts = (text for clause in clauses for text, *_ in Formatter().parse(clause))
    verbs = {word for w in ALL for word in (*w.pro, *w.con)}
    return {word for text in texts for word in text.split()} | verbs | {*RIGHT, *WRONG}
