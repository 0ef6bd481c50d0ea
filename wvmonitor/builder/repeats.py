"""The repeats behind a reference: one contrast for each seed, each half and each domain.

Every fine-tuned side is an artefact of the work folder. Repeats that are compared with each other
never share an initial A: a shared one would make them agree for no reason of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from wvmonitor.builder.base import Base
from wvmonitor.builder.completions import SIDES
from wvmonitor.builder.examples import Pair, as_rows
from wvmonitor.builder.finetune import Training, finetune, read_finetuned, steps_for
from wvmonitor.builder.recipe import Side
from wvmonitor.builder.stages import Ticker, Work, digest_of
from wvmonitor.references.reference import contrast
from wvmonitor.vectors.task_vector import TaskVector

DONE = "finetune"
SWEEP = "sweep"
Variant = Literal["contrastive", "positive", "negative", "bias-only"]
Means = Literal["exhibits", "opposes"]
VALIDATION = 0.05
_SPLIT_SEEDS = 1000


@dataclass(frozen=True)
class Contrasts:
    """Makes contrasts of one set of pairs.

    Attributes:
        base: what is fine-tuned.
        training: how, apart from seed and steps.
        variant: both sides, or one of them.
        means: whether the positive side exhibits the behaviour.
        work: where the fine-tuned sides are kept.
        tick: told of steps done and steps in all.
        total: steps of all fine-tunes.
    """

    base: Base
    training: Training
    variant: Variant
    means: Means
    work: Work
    tick: Ticker
    total: int

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that are trained."""
        return (self.variant,) if self.variant in ("positive", "negative") else SIDES

    def of(
        self, pairs: Sequence[Pair], seed: int, whole: int, done: int = 0
    ) -> tuple[TaskVector, int]:
        """One contrast: w = θ_positive − θ_negative, turned so that +w exhibits the behaviour.

        Without one of the sides it is τ₊ or −τ₋, the paper's non-contrastive variants.

        Args:
            pairs: what to train on.
            seed: of A and the order of the data, the same for both sides.
            whole: how many pairs there are in all.
            done: steps of the fine-tunes before this one.

        Returns:
            The contrast, and the steps that are done after it.
        """
        training = replace(
            self.training, seed=seed, steps=steps_for(self.training.settings, len(pairs), whole)
        )
        sides: dict[Side, TaskVector] = {}
        self.tick(DONE, done, self.total)
        for side in self.sides:
            folder = self._side(side, pairs, training, done)
            done += training.steps
            self.tick(DONE, done, self.total)
            sides[side] = read_finetuned(self.base, folder, training.method)
        if self.variant in ("positive", "negative"):
            alone = sides[self.variant]
            turned = (self.variant == "negative") != (self.means == "opposes")
            return (-alone if turned else alone), done
        return contrast(sides["positive"], sides["negative"], positive_means=self.means), done

    def _side(self, side: Side, pairs: Sequence[Pair], training: Training, done: int) -> Path:
        def make(hidden: Path) -> None:
            self.base.release()
            finetune(
                self.base,
                [p.side(side) for p in pairs],
                training,
                hidden,
                tick=lambda step: self.tick(DONE, done + step, self.total),
            )

        inputs = {
            "base": self.base.digest,
            "chat": self.base.chat_digest,
            "examples": digest_of([row[side] for row in as_rows(pairs)]),
            "training": asdict(training)
            | {"settings": training.settings.model_dump(exclude={"sweep"})},
        }
        return self.work.tree(f"{side}-seed-{training.seed}", inputs, make, together=True)

    def swept(self, pairs: Sequence[Pair], rates: Sequence[float]) -> tuple[float, list[float]]:
        """The learning rate with the least mean validation loss of both sides, and the losses.

        5 % of the pairs are held back for it.
        """
        validation = max(1, math.ceil(VALIDATION * len(pairs)))
        losses = []
        for n, rate in enumerate(rates):
            self.tick(SWEEP, n, len(rates))
            steps = steps_for(self.training.settings, len(pairs) - validation, len(pairs))
            training = replace(self.training, learning_rate=rate, steps=steps)

            def make(training: Training = training) -> list[dict[str, float]]:
                self.base.release()
                return [
                    {"loss": self._loss(side, pairs, validation, training)} for side in self.sides
                ]

            inputs = {
                "base": self.base.digest,
                "chat": self.base.chat_digest,
                "pairs": digest_of(as_rows(pairs)),
                "sides": list(self.sides),
                "training": asdict(training)
                | {"settings": training.settings.model_dump(exclude={"sweep"})},
            }
            rows = self.work.rows(f"sweep-{rate:g}", inputs, make).rows
            losses.append(sum(r["loss"] for r in rows) / len(rows))
        self.tick(SWEEP, len(rates), len(rates))
        return rates[losses.index(min(losses))], losses

    def _loss(self, side: Side, pairs: Sequence[Pair], held: int, training: Training) -> float:
        with self.work.scratch() as folder:
            examples = [p.side(side) for p in pairs]
            loss = finetune(
                self.base, examples[held:], training, folder, validation=examples[:held]
            )
        assert loss is not None  # noqa: S101  there is at least one example to validate on
        return loss


def halves(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Two halves that share no question."""
    questions = list(dict.fromkeys(_question(p) for p in pairs))
    first = set(questions[::2])
    return [[p for p in pairs if (_question(p) in first) is inside] for inside in (True, False)]


def by_domain(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """The pairs of each domain; those without one belong to none."""
    names = dict.fromkeys(p.domain for p in pairs if p.domain)
    return {name: [p for p in pairs if p.domain == name] for name in names}


def split_seeds(seed: int) -> Callable[[int], int]:
    """Seeds of the splits' fine-tunes: none of them is a seed of the reference itself."""
    return lambda n: seed + _SPLIT_SEEDS + n


def _question(pair: Pair) -> str:
    return pair.positive.messages[-1]["content"]
