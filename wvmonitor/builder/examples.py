"""Which answers both sides are trained on: clear ones, paired by question and length.

The two sides of a pair answer the same question, so that the contrast holds the behaviour and not
the topic; their lengths are matched, so that it does not hold the length either.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from wvmonitor.builder.base import Message
from wvmonitor.builder.completions import SIDES
from wvmonitor.builder.rater import Answered, Rater
from wvmonitor.builder.recipe import Rating, Recipe, Side
from wvmonitor.builder.stages import Row, Rows, Ticker, Work
from wvmonitor.errors import BuildError

DONE = "judge"
LONGEST_RATIO = 2.0
"""Two answers are of similar length up to this ratio (in tokens)."""


@dataclass(frozen=True)
class Example:
    """A conversation that ends with the answer that is trained on.

    Attributes:
        messages: what stands before the answer.
        answer: the assistant's words.
        finished: False where the answer was cut.
    """

    messages: tuple[Message, ...]
    answer: str
    finished: bool = True


@dataclass(frozen=True)
class Pair:
    """What both sides are trained on at one place in the data."""

    positive: Example
    negative: Example
    domain: str | None = None

    def side(self, side: Side) -> Example:
        """One side of it."""
        return self.positive if side == "positive" else self.negative


@dataclass
class Dropped:
    """How many answers there were, and why those that are not used were left out."""

    answers: Counter[Side] = field(default_factory=Counter)
    reasons: Counter[tuple[Side, str]] = field(default_factory=Counter)

    def sentence(self) -> str:
        """For people."""
        parts = []
        for side in SIDES:
            left = [f"{n} {why}" for (s, why), n in self.reasons.items() if s == side and n]
            parts.append(
                f"of {self.answers[side]} {side} answers " + (", ".join(left) or "none was dropped")
            )
        return "; ".join(parts)


def judged(
    completions: Mapping[tuple[Side, int], Rows],
    recipe: Recipe,
    judge: Callable[[], Rater],
    name: str,
    work: Work,
    tick: Ticker,
) -> dict[tuple[Side, int], Rows]:
    """Each answer with its rating, kept for each system prompt.

    Args:
        completions: what `generate` gave.
        recipe: its questions and rubric.
        judge: makes the judge, when something has to be judged at all.
        name: the judge's name, a part of what the ratings depend on.
        work: where they are kept.
        tick: told how many are judged.
    """
    total = sum(len(c.rows) for c in completions.values())
    done = 0
    raters: list[Rater] = []
    rows: dict[tuple[Side, int], Rows] = {}
    tick(DONE, 0, total)
    for (side, i), answers in completions.items():

        def make(answers: Rows = answers, done: int = done) -> list[Row]:
            raters[:] = raters or [judge()]
            asked = [
                Answered(recipe.questions.build[row["question"]].text, row["text"])
                for row in answers.rows
            ]
            ratings = raters[0].rate(asked, lambda n: tick(DONE, done + n, total))
            return [{**r, "judged": j} for r, j in zip(answers.rows, ratings, strict=True)]

        inputs = {
            "completions": answers.digest,
            "judge": name,
            "rubric": recipe.rubric.model_dump(mode="json"),
        }
        rows[side, i] = work.rows(f"judged-{side}-{i}", inputs, make)
        done += len(answers.rows)
        tick(DONE, done, total)
    return rows


def select(
    ratings: Mapping[tuple[Side, int], Rows], recipe: Recipe, length: Callable[[str], int]
) -> tuple[list[Pair], Dropped]:
    """The pairs to train on, questions in turn, the best matched lengths first.

    Args:
        ratings: what `judged` gave.
        recipe: its questions, and how many examples it wants.
        length: of an answer, in tokens.

    Raises:
        BuildError: a side says one thing only, or too few clear answers are left.
    """
    dropped = Dropped()
    sides = {side: _clear(side, ratings, dropped) for side in SIDES}
    by_length = recipe.rubric.rules is not None and recipe.rubric.rules.positive_length is not None
    limit = math.inf if by_length else LONGEST_RATIO
    queues = []
    for q, question in enumerate(recipe.questions.build):
        positive, negative = (sides[side].get(q, []) for side in SIDES)
        rows = _matched(positive, negative, length, limit, dropped)
        queues.append([_pair(question, *both) for both in rows])
    pairs = [queue[n] for n in range(max(map(len, queues))) for queue in queues if n < len(queue)]
    settings = recipe.generation
    if len(pairs) < settings.keep_at_least:
        raise BuildError(
            f"{len(pairs)} clear pairs are left, {recipe.name} needs {settings.keep_at_least}: "
            f"{dropped.sentence()}; sample more (generation.samples_per_prompt), change the system "
            "prompts or the judge, or ask for fewer (build --budget, bank --quick); what was made "
            "is kept"
        )
    return pairs[: settings.keep_at_most], dropped


def as_rows(pairs: Sequence[Pair]) -> list[Row]:
    """Pairs as records."""
    return [asdict(p) for p in pairs]


def from_rows(rows: Sequence[Row]) -> list[Pair]:
    """Pairs from records; `as_rows` made them, a person may have taken some out."""

    def example(row: Any) -> Example:
        return Example(tuple(row["messages"]), row["answer"], row["finished"])

    return [Pair(example(r["positive"]), example(r["negative"]), r["domain"]) for r in rows]


def _clear(
    side: Side, ratings: Mapping[tuple[Side, int], Rows], dropped: Dropped
) -> dict[int, list[Row]]:
    """One side's clear answers by question, each text once."""
    rows = [row for (s, _), found in sorted(ratings.items()) if s == side for row in found.rows]
    dropped.answers[side] = len(rows)
    if len(rows) > 1 and len({row["text"] for row in rows}) == 1:
        raise BuildError(
            f"all {len(rows)} {side} completions are the same ({rows[0]['text'][:60]!r}): the "
            "model does not answer its chat template, or the temperature is too low; what was "
            "made is kept"
        )
    wrong: Rating = "negative" if side == "positive" else "positive"
    seen: set[tuple[int, str]] = set()
    clear: dict[int, list[Row]] = {}
    for row in rows:
        place = row["question"], row["text"]
        reason = (
            "were empty"
            if not row["text"]
            else f"were judged {wrong}"
            if row["judged"] == wrong
            else "were unclear"
            if row["judged"] != side
            else "were repeats"
            if place in seen
            else None
        )
        if reason:
            dropped.reasons[side, reason] += 1
            continue
        seen.add(place)
        clear.setdefault(row["question"], []).append(row)
    return clear


def _matched(
    positive: list[Row],
    negative: list[Row],
    length: Callable[[str], int],
    limit: float,
    dropped: Dropped,
) -> list[tuple[Row, Row]]:
    """Partners of the most similar lengths: the assignment with the least sum of |log ratio|."""
    from scipy.optimize import linear_sum_assignment  # heavy, and no plan needs it

    logs = [
        np.log(np.array([1.0 + length(r["text"]) for r in rows])) for rows in (positive, negative)
    ]
    cost = np.abs(logs[0][:, None] - logs[1][None, :])
    matched = sorted(
        (float(cost[i, j]), int(i), int(j))
        for i, j in zip(*linear_sum_assignment(cost), strict=True)
        if cost[i, j] <= math.log(limit)
    )
    for side, rows in zip(SIDES, (positive, negative), strict=True):
        lonely = len(rows) - len(matched)
        dropped.reasons[side, "had no partner of similar length"] += lonely
    return [(positive[i], negative[j]) for _, i, j in matched]


def _pair(question: Any, positive: Row, negative: Row) -> Pair:
    prompt: tuple[Message, ...] = ({"role": "user", "content": question.text},)
    return Pair(
        Example(prompt, positive["text"], positive["finished"]),
        Example(prompt, negative["text"], negative["finished"]),
        question.domain,
    )
