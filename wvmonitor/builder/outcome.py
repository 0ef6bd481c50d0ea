"""The card of a finished reference: how it was made, what was measured, whether to trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from wvmonitor.builder import behaviour, checks
from wvmonitor.builder.examples import Pair
from wvmonitor.builder.job import Job
from wvmonitor.reading import Geometry
from wvmonitor.references.card import Card, Construction, DosePoint, Quality
from wvmonitor.vectors.task_vector import TaskVector


@dataclass
class Facts:
    """What a build learns on its way, for the card.

    Attributes:
        notes: what a reader must know, in words.
        pairs: what both sides were trained on; empty where weights were given.
        data_digests: of each side's examples.
        settings: how both sides were trained.
        seeds: of the repeats.
        judge: who filtered the answers.
        rank: kept of w.
        repeats: the contrasts that w is the mean of.
        halves: contrasts of two halves of the questions.
        domains: contrasts of each domain by itself.
    """

    notes: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    data_digests: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    judge: str | None = None
    rank: int | None = None
    repeats: list[TaskVector] = field(default_factory=list)
    halves: list[TaskVector] = field(default_factory=list)
    domains: dict[str, TaskVector] = field(default_factory=dict)


def finished(
    job: Job,
    facts: Facts,
    vector: TaskVector,
    probe: Mapping[str, Tensor],
    curve: Sequence[DosePoint],
) -> Card:
    """The card of w, with every check; `verified` is False where one fails or could not be made."""
    subject, others = job.subject, [r for r in job.bank or () if r.name != job.subject.name]
    norm, shares = checks.component_shares(vector)
    lengths = _lengths(job, facts.pairs)
    quality = Quality(
        norm=norm,
        components=shares,
        coverage=shares["blocks"],
        split_half=(
            checks.cosines(facts.halves[0], facts.halves[1], probe) if facts.halves else {}
        ),
        domains=checks.leave_out_table(facts.domains, probe),
        controls=checks.with_controls(vector, others, probe),
        bf16=checks.kept_in_bf16(vector, job.base),
        examples=len(facts.pairs) or None,
        lengths=lengths,
    )
    reasons = (
        behaviour.failures(curve)
        if curve
        else ["its behaviour was not checked: name a recipe, whose held-out questions can be asked"]
    )
    card = Card(
        name=subject.name,
        kind=subject.kind,
        behaviour=subject.behaviour,
        base=job.base.identity,
        built=Construction(
            recipe=subject.name if job.recipe else "own data or weights",
            method=job.method if facts.seeds else str(vector.origin.method),
            hyperparameters=facts.settings,
            seeds=facts.seeds,
            domains=tuple(dict.fromkeys(p.domain for p in facts.pairs if p.domain)),
            data_digests=facts.data_digests,
            judge=facts.judge,
        ),
        rank=facts.rank,
        kept=vector.origin.kept,
        repeats=checks.grams(facts.repeats, probe) if len(facts.repeats) > 1 else {},
        dose_curve=tuple(curve),
        quality=quality,
        harmful=subject.harmful,
        verified=not reasons,
    )
    remarks = checks.remarks(
        kept=card.kept,
        coverage=quality.coverage,
        bf16=quality.bf16,
        controls=quality.controls,
        agreement=_agreements(card),
        lengths=lengths,
    )
    unverified = [f"unverified: {reason}" for reason in reasons]
    return card.model_copy(update={"warnings": (*unverified, *facts.notes, *remarks)})


def _agreements(card: Card) -> dict[Geometry, float | None]:
    return {geometry: card.agreement(geometry) for geometry in card.repeats}


def _lengths(job: Job, pairs: Sequence[Pair]) -> tuple[float, float] | None:
    """Mean tokens of an answer, positive and negative."""
    if not pairs:
        return None
    count = job.base.tokens_of
    positive = sum(count(p.positive.answer) for p in pairs) / len(pairs)
    negative = sum(count(p.negative.answer) for p in pairs) / len(pairs)
    return positive, negative
