"""The behavioural check: does steering the base by ±k·w move the behaviour the right way?

The held-out questions are asked without a system prompt of θ + k·w, and the recipe's judge says
how often the behaviour shows. The curve is kept in the card, so that a verdict can say what such a
dose did. Swapped sides, and a contrast that does nothing, are caught here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wvmonitor.builder.base import Base
from wvmonitor.builder.completions import TransformersSampler, seed_of
from wvmonitor.builder.rater import Answered, Rater
from wvmonitor.builder.recipe import Recipe
from wvmonitor.builder.stages import Row, Ticker, Work
from wvmonitor.references.card import DosePoint
from wvmonitor.steering import steered
from wvmonitor.vectors.task_vector import TaskVector

DONE = "behaviour"
DOSES = (-4.0, -2.0, -1.0, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Close together below 1, the reference's own training, where the doses of runs come to lie."""
SAMPLES = 5


@dataclass(frozen=True)
class Asking:
    """How the held-out questions are asked.

    Attributes:
        doses: the k of θ + k·w, 0 and both signs among them.
        samples: answers to each question.
        batch_size: of the sampling.
        seed: of the sampling; every dose has the same draws.
    """

    doses: tuple[float, ...] = DOSES
    samples: int = SAMPLES
    batch_size: int = 32
    seed: int = 0


def dose_curve(
    base: Base,
    recipe: Recipe,
    vector: TaskVector,
    digest: str,
    judge: Callable[[], Rater],
    judge_name: str,
    asking: Asking,
    work: Work,
    tick: Ticker,
) -> tuple[DosePoint, ...]:
    """How often the behaviour shows at each dose, with 95 % Wilson intervals.

    Unclear answers count as not showing it.

    Args:
        base: the model that is steered.
        recipe: its held-out questions and how to sample.
        vector: w.
        digest: of w, a part of what the answers depend on.
        judge: makes the judge, when something has to be judged at all.
        judge_name: its name.
        asking: doses and sample size.
        work: where the answers are kept.
        tick: told how many doses are done.
    """
    raters: list[Rater] = []
    points = []
    tick(DONE, 0, len(asking.doses))
    for n, k in enumerate(asking.doses):

        def make(k: float = k) -> list[Row]:
            raters[:] = raters or [judge()]
            return _answers(base, recipe, vector, k, raters[0], asking)

        inputs: Mapping[str, Any] = {
            "reference": digest,
            "chat": base.chat_digest,
            "questions": [q.text for q in recipe.questions.held_out],
            "settings": recipe.generation.model_dump(
                include={"max_new_tokens", "temperature", "top_p"}
            ),
            "asking": [asking.samples, asking.batch_size, asking.seed],
            "judge": judge_name,
            "rubric": recipe.rubric.model_dump(mode="json"),
            "k": k,
        }
        rows = work.rows(f"held-out-{k:+g}", inputs, make).rows
        points.append(_point(k, sum(r["judged"] == "positive" for r in rows), len(rows)))
        tick(DONE, n + 1, len(asking.doses))
    return tuple(points)


def failures(curve: Sequence[DosePoint]) -> list[str]:
    """Why a curve does not show that +w exhibits the behaviour; empty where it does.

    It does where, for some k, the rate at +k is above the rate at −k beyond both 95 % intervals,
    and for no k below it.
    """
    by_k = {p.k: p for p in curve}
    pairs = [(by_k[k], by_k[-k]) for k in sorted(by_k) if k > 0 and -k in by_k]
    for up, down in pairs:
        if up.high < down.low:
            return [
                f"steering moves the behaviour the wrong way: {up.rate:.0%} at +{up.k:g}·w, "
                f"{down.rate:.0%} at −{up.k:g}·w: the two sides are swapped (system prompts, data, "
                "or what positive means)"
            ]
    if not any(up.low > down.high for up, down in pairs):
        shown = ", ".join(f"{p.rate:.0%} at {p.k:+g}·w" for p in curve)
        return [f"steering does not move the behaviour beyond chance ({shown})"]
    return []


def _answers(
    base: Base, recipe: Recipe, vector: TaskVector, k: float, judge: Rater, asking: Asking
) -> list[Row]:
    questions = [q.text for q in recipe.questions.held_out for _ in range(asking.samples)]
    sampler = TransformersSampler(base, asking.batch_size)
    with steered(base.model, vector, k):
        answers = sampler.sample(
            [base.asked(q) for q in questions], recipe.generation, seed_of(asking.seed, "held out")
        )
    # Judged outside: where the judge is the model itself, it must not be the steered one.
    ratings = judge.rate([Answered(q, a.text) for q, a in zip(questions, answers, strict=True)])
    return [
        {"question": q, "text": a.text, "judged": j}
        for q, a, j in zip(questions, answers, ratings, strict=True)
    ]


def _point(k: float, shown: int, n: int) -> DosePoint:
    from scipy.stats import binomtest  # heavy, and no plan needs it

    interval = binomtest(shown, n).proportion_ci(method="wilson")
    return DosePoint(k=k, rate=shown / n, low=float(interval.low), high=float(interval.high), n=n)
