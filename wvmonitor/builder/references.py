"""The references of a whole bank: trained, averaged, checked on held-out pairs, put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from wvmonitor.builder import checks, controls, gap
from wvmonitor.builder.bank_job import KEPT_RANK, BankJob
from wvmonitor.builder.contrasts import Contrast
from wvmonitor.builder.examples import Pair, as_rows
from wvmonitor.builder.fine_tunes import Done, FineTune, carry_out
from wvmonitor.builder.finetune import Training, read_finetuned
from wvmonitor.builder.harmless.families import Family
from wvmonitor.builder.stages import Row, Ticker, Work, digest_of
from wvmonitor.reading import ReferenceKind
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.card import Card, Construction, DosePoint, Quality
from wvmonitor.references.reference import Reference, contrast, mean_reference
from wvmonitor.vectors.task_vector import TaskVector

CONTROL_SEEDS, TUNING_SEEDS = 500, 600
"""Where the seeds of controls, and of the harmless runs behind one, begin: none of them shares an
initial A with a behaviour."""
STAGE, CHECKS = "references", "held-out gaps"
GAPS = "held_out_gap"


@dataclass(frozen=True)
class Wanted:
    """One reference before it is made.

    Attributes:
        name: of the reference.
        kind: behaviour or control.
        behaviour: what a model along +w does.
        sides: the fine-tunes, positive and negative of each repeat; the second is None where w is
            the task vector itself.
        pairs: held out, for the dose curve; empty where there are none.
        domains: that it is trained on.
    """

    name: str
    kind: ReferenceKind
    behaviour: str
    sides: tuple[tuple[FineTune, FineTune | None], ...]
    pairs: tuple[Pair, ...] = ()
    domains: tuple[str, ...] = ()


def wanted(
    job: BankJob, found: Sequence[Contrast], any_tuning: Sequence[Family], rate: float
) -> list[Wanted]:
    """Every reference of a bank: the behaviours, the controls, and any fine-tuning at all."""
    scale, seed = job.scale, job.options.seed

    def repeat(name: str, pairs: Sequence[Pair], training: Training) -> tuple[FineTune, FineTune]:
        positive, negative = (tuple(p.side(s) for p in pairs) for s in ("positive", "negative"))
        return (
            FineTune(f"{name}-exhibits", positive, training, keep=True),
            FineTune(f"{name}-opposes", negative, training, keep=True),
        )

    listed = []
    for c in found:
        trainings = [
            job.reference_training(scale.steps, rate, seed + n) for n in range(scale.seeds)
        ]
        sides = tuple(repeat(c.name, c.train, t) for t in trainings)
        domains = tuple(dict.fromkeys(p.domain for p in c.train if p.domain))
        held = c.tuning[: scale.asked]
        listed.append(Wanted(c.name, "behaviour", c.behaviour, sides, held, domains))
    for n, (name, pairs) in enumerate(job.controls.items()):
        training = job.reference_training(scale.control_steps, rate, seed + CONTROL_SEEDS + n)
        sides = (repeat(name, pairs, training),)
        listed.append(Wanted(name, "control", controls.meaning(name), sides))
    alone = []
    for n, family in enumerate(any_tuning):
        training = job.reference_training(scale.control_steps, rate, seed + TUNING_SEEDS + n)
        examples = tuple(family.draw(scale.control_steps * scale.batch_size, seed))
        alone.append((FineTune(f"any-{family.name}", examples, training, keep=True), None))
    if alone:
        name = controls.ANY_TUNING
        listed.append(Wanted(name, "control", controls.meaning(name), tuple(alone)))
    return listed


def make_bank(
    job: BankJob, work: Work, listed: Sequence[Wanted], probe: Callable[[], Mapping[str, Tensor]],
    tick: Ticker,
) -> ReferenceBank:  # fmt: skip
    """The bank of these references, kept in the work folder.

    Args:
        job: of the bank.
        work: where everything is kept.
        listed: what to make.
        probe: of the response geometry; asked for when the fine-tunes are done.
        tick: told of steps and of references checked.
    """
    runs = [one for w in listed for sides in w.sides for one in sides if one is not None]
    total = sum(one.training.steps for one in runs)
    finished = carry_out(job.base, work, runs, job.jobs, lambda n: tick(STAGE, n, total))
    made = dict(zip(map(id, runs), finished, strict=True))
    inputs = probe()
    about = {
        "sides": [d.folder.name for d in finished],
        "listed": [[w.name, w.kind, w.behaviour, len(w.sides), list(w.domains)] for w in listed],
        "probe": sorted((n, float(x.double().sum())) for n, x in inputs.items()),
        "pairs": [digest_of(as_rows(w.pairs)) for w in listed],
    }

    def make(hidden: Path) -> None:
        done: dict[str, Reference] = {}
        # Controls first: every behaviour is held against them.
        for n, w in enumerate(sorted(listed, key=lambda w: w.kind == "behaviour")):
            tick(CHECKS, n, len(listed))
            done[w.name] = _reference(job, work, w, made, inputs, list(done.values()))
        tick(CHECKS, len(listed), len(listed))
        bank = ReferenceBank([done[w.name] for w in listed], probe=inputs)
        bank.save(hidden, private=job.options.private)

    return ReferenceBank.load(work.tree("bank", about, make))


def held_out_gaps(bank: ReferenceBank) -> dict[str, tuple[float, float]]:
    """By behaviour, the held-out gap of θ and of θ + w, in nats a token."""
    gaps = {}
    for reference in bank:
        measured = reference.card.built.hyperparameters.get(GAPS)
        if measured:
            gaps[reference.name] = float(measured["+0"]), float(measured["+1"])
    return gaps


def _reference(
    job: BankJob,
    work: Work,
    w: Wanted,
    made: Mapping[int, Done],
    probe: Mapping[str, Tensor],
    before: Sequence[Reference],
) -> Reference:
    repeats = [_contrast(job, sides, made) for sides in w.sides]
    first = w.sides[0][0].training
    vector = mean_reference(repeats, rank=KEPT_RANK)
    curve: list[DosePoint] = []
    measured: dict[str, float] = {}
    problems: list[str] = []
    if w.pairs:
        sides = [made[id(one)].folder.name for both in w.sides for one in both if one is not None]
        gaps = _gaps(job, work, w, vector, sides)
        curve = gap.dose_curve(gaps)
        measured = {f"{k:+g}": g.mean for k, g in gaps.items()}
        problems = gap.failures(gaps)
    norm, shares = checks.component_shares(vector)
    quality = Quality(
        norm=norm,
        components=shares,
        coverage=shares["blocks"],
        controls=checks.with_controls(vector, before, probe),
        bf16=checks.kept_in_bf16(vector, job.base),
        examples=len(w.sides[0][0].examples),
        lengths=_lengths(job, w),
    )
    settings = first.settings.model_dump(exclude={"sweep", "epochs", "learning_rate"})
    card = Card(
        name=w.name,
        kind=w.kind,
        behaviour=w.behaviour,
        base=job.base.identity,
        built=Construction(
            recipe="contrasts" if w.domains else "by rule",
            hyperparameters=settings
            | {"learning_rate": first.learning_rate}
            | ({GAPS: measured} if measured else {}),
            seeds=tuple(sides[0].training.seed for sides in w.sides),
            domains=w.domains,
            data_digests={
                one.name: digest_of([[list(e.messages), e.answer] for e in one.examples])
                for one in w.sides[0]
                if one is not None
            },
        ),
        rank=KEPT_RANK,
        kept=vector.origin.kept,
        repeats=checks.grams(repeats, probe) if len(repeats) > 1 else {},
        dose_curve=tuple(curve),
        quality=quality,
        harmful=w.kind == "behaviour",
        verified=not problems,
    )
    remarks = checks.remarks(
        kept=card.kept,
        coverage=quality.coverage,
        bf16=quality.bf16,
        controls=quality.controls,
        agreement={g: card.agreement(g) for g in card.repeats},
        lengths=quality.lengths,
    )
    unverified = [f"unverified: {p}" for p in problems]
    return Reference(card.model_copy(update={"warnings": (*unverified, *remarks)}), vector)


def _gaps(
    job: BankJob, work: Work, w: Wanted, vector: TaskVector, sides: Sequence[str]
) -> dict[float, gap.Gap]:
    """The held-out gaps by dose, measured once for these sides, whatever bank they are in."""
    inputs = {
        "sides": sides,
        "rank": KEPT_RANK,
        "pairs": digest_of(as_rows(w.pairs)),
        "doses": gap.DOSES,
    }

    def measure() -> Iterator[Row]:
        for k, found in gap.gaps_by_dose(job.base, vector, w.pairs).items():
            yield {"k": k, "each": [v if math.isfinite(v) else None for v in found.each]}

    rows = work.rows(f"gaps-{w.name}", inputs, measure).rows
    return {
        float(row["k"]): gap.Gap(tuple(math.nan if v is None else v for v in row["each"]))
        for row in rows
    }


def _contrast(
    job: BankJob, sides: tuple[FineTune, FineTune | None], made: Mapping[int, Done]
) -> TaskVector:
    positive, negative = sides
    moved = read_finetuned(job.base, made[id(positive)].folder, positive.training.method)
    if negative is None:
        return moved
    other = read_finetuned(job.base, made[id(negative)].folder, negative.training.method)
    return contrast(moved, other, positive_means="exhibits")


def _lengths(job: BankJob, w: Wanted) -> tuple[float, float] | None:
    """Mean tokens of an answer, positive and negative."""
    positive, negative = w.sides[0]
    if negative is None:
        return None
    count = job.base.tokens_of

    def mean(one: FineTune) -> float:
        return sum(count(e.answer) for e in one.examples) / len(one.examples)

    return mean(positive), mean(negative)
