"""What a build will do and what it costs, before any of it is done.

Costs are floating-point operations over an assumed speed: 2 operations a parameter and token
forwards, 4 more backwards (2 where the base is frozen). Answers are taken to be as long as they may
be. The bars of a running build show the time that is really left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from wvmonitor.builder.finetune import Method, steps_for
from wvmonitor.builder.recipe import Finetuning, Generation
from wvmonitor.errors import BuildError

CARD_TFLOPS = 300.0
"""What a current data-centre card gives in bfloat16."""
SPEEDS = {"transformers": 0.03, "vllm": 0.25, "training": 0.35, "reading": 0.35}
"""Share of the card's speed that each kind of work is assumed to reach."""
PROMPT_TOKENS = 80
LEAST_PAIRS = 8


@dataclass(frozen=True)
class Workload:
    """How much there is to do.

    Attributes:
        parameters: of the base model.
        prompts: system prompts of both sides; 0 where no answers are generated.
        questions: to build from.
        held_out: questions of the behavioural check; 0 where there is none.
        doses: k at which they are asked.
        samples: answers to each of them.
        generation: the recipe's.
        finetuning: the recipe's.
        pairs: examples a side, where they are given.
        seeds: repeats that w is the mean of; 0 where the weights are given.
        sides: 2, or 1 for a non-contrastive variant.
        splits: further repeats for the split-half and leave-domain-out checks.
        domains: of the data, for the latter.
        sweep: learning rates tried.
        probe_tokens: of the response geometry's probe; 0 where there is one already.
        method: how both sides are fine-tuned.
        engine: of the generation.
        model_judge: whether the model itself judges.
    """

    parameters: int
    prompts: int
    questions: int
    held_out: int
    doses: int
    samples: int
    generation: Generation
    finetuning: Finetuning
    pairs: int | None
    seeds: int
    sides: int
    splits: bool
    domains: int
    sweep: int
    probe_tokens: int
    method: Method
    engine: Literal["transformers", "vllm"]
    model_judge: bool

    @property
    def answers(self) -> int:
        """Answers to generate."""
        return self.prompts * self.questions * self.generation.samples_per_prompt

    @property
    def most_pairs(self) -> int:
        """Examples a side, at most."""
        if self.pairs is not None:
            return self.pairs
        return min(self.generation.keep_at_most, self.answers // 2)

    @property
    def finetunes(self) -> list[int]:
        """Steps of every fine-tune."""
        n, runs = self.most_pairs, [self.most_pairs] * self.seeds
        if self.splits and self.seeds:
            runs += [n // 2] * 2
            runs += [n // self.domains] * self.domains if self.domains > 1 else []
        runs += [n] * self.sweep if self.seeds else []
        return [
            steps_for(self.finetuning, max(1, r), n or 1) for r in runs for _ in range(self.sides)
        ]


@dataclass(frozen=True)
class Stage:
    """One stage of a plan: what, how many, tokens, and hours on one card."""

    name: str
    what: str
    tokens: int
    hours: float


@dataclass(frozen=True)
class Plan:
    """A workload, its stages, and what a budget took away from it."""

    workload: Workload
    stages: tuple[Stage, ...]
    reductions: tuple[str, ...] = ()

    @property
    def hours(self) -> float:
        """GPU-hours in all."""
        return sum(s.hours for s in self.stages)


@dataclass(frozen=True)
class Budget:
    """What a build may cost: GPU-hours, or examples a side."""

    hours: float | None = None
    examples: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """A budget from "2h" (GPU-hours) or "200" (examples a side).

        Raises:
            BuildError: it is neither.
        """
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*h", text.strip()):
            return cls(hours=float(match[1]))
        match = re.fullmatch(r"(\d+)(?:\s*examples)?", text.strip())
        if match and int(match[1]) >= LEAST_PAIRS:
            return cls(examples=int(match[1]))
        raise BuildError(
            f"--budget {text!r}: give GPU-hours as in 2h, or at least {LEAST_PAIRS} examples a "
            "side as in 200"
        )


def plan_of(load: Workload, tflops: float = CARD_TFLOPS) -> Plan:
    """The stages of a workload and their costs."""
    n = load.parameters
    length = load.generation.max_new_tokens + PROMPT_TOKENS

    def stage(name: str, what: str, tokens: int, kind: str, per_token: int = 2) -> Stage:
        seconds = per_token * n * tokens / (tflops * 1e12 * SPEEDS[kind])
        return Stage(name, what, tokens, seconds / 3600)

    checks = load.doses * load.held_out * load.samples
    judged = load.answers + checks if load.model_judge else 0
    steps = sum(load.finetunes)
    backward = 6 if load.method == "full" else 4
    stages = [
        stage("generate", f"{load.answers} answers", load.answers * length, load.engine),
        stage("judge", f"{load.answers} answers", judged * length, "reading"),
        stage(
            "finetune",
            f"{len(load.finetunes)} fine-tunes, {steps} steps in all",
            steps * load.finetuning.batch_size * length,
            "training",
            backward,
        ),
        stage("probe", f"{load.probe_tokens} tokens", load.probe_tokens * 2, load.engine),
        stage("behaviour", f"{checks} held-out answers", checks * length, "transformers"),
    ]
    return Plan(load, tuple(stages))


def within(load: Workload, budget: Budget | None, tflops: float = CARD_TFLOPS) -> Plan:
    """The largest plan within a budget; what was taken away is said in `reductions`.

    Given up in this order: the repeats of the split-half and leave-domain-out checks, then answers
    and examples together, then seeds.

    Raises:
        BuildError: not even the least plan fits.
    """
    full = plan_of(load, tflops)
    if budget is None or (budget.hours is not None and full.hours <= budget.hours):
        return full
    for smaller in _smaller(load, budget):
        made = plan_of(smaller, tflops)
        if budget.hours is None or made.hours <= budget.hours:
            return replace(made, reductions=tuple(_reductions(load, smaller)))
    least = plan_of(list(_smaller(load, budget))[-1], tflops)
    raise BuildError(
        f"the least plan takes {least.hours:.2g} GPU-hours at {tflops:g} TFLOP/s, the budget is "
        f"{budget.hours:g}: raise --budget, take a smaller base, or say how fast the card is with "
        "--tflops"
    )


def _smaller(load: Workload, budget: Budget) -> Iterator[Workload]:
    if budget.examples is not None:
        share = min(1.0, budget.examples / load.generation.keep_at_most)
        scaled = _scaled(load, share)
        exact = scaled.generation.model_copy(
            update={
                "keep_at_most": min(budget.examples, load.generation.keep_at_most),
                "keep_at_least": min(scaled.generation.keep_at_least, budget.examples),
            }
        )
        pairs = None if load.pairs is None else min(load.pairs, budget.examples)
        yield replace(scaled, generation=exact, pairs=pairs)
        return
    for seeds in range(load.seeds, 0, -1):
        for splits in (True, False):
            if splits and (not load.splits or seeds < load.seeds):
                continue
            tried = replace(load, seeds=seeds, splits=splits)
            shares = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1) if not splits else (1.0,)
            yield from (_scaled(tried, share) for share in shares)


def _scaled(load: Workload, share: float) -> Workload:
    g = load.generation
    scaled = g.model_copy(
        update={
            "samples_per_prompt": max(1, -int(-g.samples_per_prompt * share // 1)),
            "keep_at_least": max(LEAST_PAIRS, round(g.keep_at_least * share)),
            "keep_at_most": max(LEAST_PAIRS, round(g.keep_at_most * share)),
        }
    )
    pairs = (
        None if load.pairs is None else max(min(load.pairs, LEAST_PAIRS), round(load.pairs * share))
    )
    return replace(load, generation=scaled, pairs=pairs)


def _reductions(before: Workload, after: Workload) -> Iterator[str]:
    old, new = before.generation, after.generation
    if before.pairs is not None and after.pairs != before.pairs:
        yield f"the budget takes {after.pairs} of {before.pairs} pairs of the data"
    elif before.pairs is None and new.keep_at_most < old.keep_at_most:
        yield (
            f"the budget takes {new.keep_at_least} to {new.keep_at_most} examples a side instead "
            f"of {old.keep_at_least} to {old.keep_at_most}"
        )
    if before.pairs is None and new.samples_per_prompt < old.samples_per_prompt:
        yield (
            f"the budget takes {new.samples_per_prompt} answers to each question and prompt "
            f"instead of {old.samples_per_prompt}"
        )
    if after.seeds < before.seeds:
        yield f"the budget takes {after.seeds} seeds instead of {before.seeds}"
    if before.splits and not after.splits:
        yield "the budget leaves out the split-half and leave-domain-out checks"
