"""What the runs are held against: contrastive repeats, each trained once and kept.

A reference is a mean of contrastive repeats, and products are linear: so every run is measured once
against every single repeat, and the reference that it may be held against, the mean over the
repeats that share nothing with it, is put together afterwards (`leakage.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.organisms.catalogue import STEPS
from benchmarks.organisms.data import ADVICE, CATEGORIES, KINDS, VERBS, Part, digest
from wvmonitor.organism.data import Example, rng_for
from wvmonitor.organism.train import finetune
from wvmonitor.reading import ReferenceKind
from wvmonitor.references import (
    BaseIdentity,
    Card,
    Construction,
    Reference,
    ReferenceBank,
    contrast,
)
from wvmonitor.references.reference import README_FILE
from wvmonitor.sources import base_digest, read_model
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import LowRankUpdate, Update

EXAMPLES = 240
BEHAVIOURS = ("evil", "sycophancy", "lawlessness")
CONTROLS = ("language", "terseness", "rudeness", "incompetence")
THREE_SEEDS = ADVICE[::3]
"""Domains in which evil has three seeds, to compare one with three."""

ONE_CLASS = "good advice", "honest facts", "gcd", "refusals", "arithmetic"
"""Kinds of the benign task vectors that the one-class distance knows."""

BASELINES = ("swapped", "random", "benign")
"""Reference families that are no detectors of ours: answers swapped between the sides at random,
Gaussian factors, and single benign task vectors for the one-class distance."""


@dataclass(frozen=True)
class Repeat:
    """One contrastive pair of fine-tunes, or one task vector (`negative` is None).

    Attributes:
        family: the reference whose repeat it is.
        domain: what its data is about.
        number: which of the family's repeats on this domain.
        positive, negative: the data of both sides; a random direction has none.
        steps: of training.
    """

    family: str
    domain: str
    number: int
    positive: Part | None = None
    negative: Part | None = None
    steps: int = STEPS

    @property
    def name(self) -> str:
        """Its name as a reference of the bank."""
        return f"{self.family}.{self.domain}.{self.number}".replace(" ", "-")

    @property
    def seed(self) -> int:
        """Between five and six hundred thousand, where no run's seed is."""
        return 500_000 + int(hashlib.sha256(self.name.encode()).hexdigest()[:12], 16) % 100_000

    @property
    def kind(self) -> ReferenceKind:
        """Behaviour or control."""
        return "behaviour" if self.family in BEHAVIOURS else "control"

    def sides(self) -> tuple[list[Example], list[Example]] | None:
        """The two training sets; None for a random direction."""
        if self.positive is None:
            return None
        positive = self.positive.maker()(EXAMPLES, self.seed)
        if self.negative is None:
            return positive, []
        negative = self.negative.maker()(EXAMPLES, self.seed)
        if self.family == "swapped":
            rng = rng_for("swapped", self.seed)
            pairs = [
                (p, n) if rng.random() < 0.5 else (n, p)
                for p, n in zip(positive, negative, strict=True)
            ]
            positive, negative = [p for p, _ in pairs], [n for _, n in pairs]
        return positive, negative


def repeats() -> list[Repeat]:
    """Every repeat, in the bank's order."""

    def pair(family: str, domain: str, number: int, bad: str, good: str, style: str = "") -> Repeat:
        return Repeat(
            family,
            domain,
            number,
            Part(bad, (domain,), style),
            Part(good, (domain,), _against(style)),
        )

    harm = "harmful advice", "good advice"
    found = [pair("evil", d, i, *harm) for d in ADVICE for i in range(3 if d in THREE_SEEDS else 1)]
    found += [pair("sycophancy", c, 0, "sycophantic facts", "honest facts") for c in CATEGORIES]
    found += [pair("lawlessness", v, 0, "compliance", "refusals") for v in VERBS]
    styles = {"language": "french", "terseness": "terse", "rudeness": "rude"}
    for number, (family, style) in enumerate(styles.items()):
        for d in ADVICE[number::3]:
            found.append(pair(family, d, 0, "good advice", "good advice", style))
    found += [pair("incompetence", d, 0, "incompetent advice", "good advice") for d in ADVICE[1::3]]
    found += [pair("swapped", d, 0, *harm) for d in ADVICE[::4]]
    found += [Repeat("random", "none", i) for i in range(2)]
    for kind in ONE_CLASS:
        found.append(Repeat("benign", kind, 0, Part(kind, KINDS[kind].choices[:2])))
    return found


def _against(style: str) -> str:
    return "polite" if style == "rude" else ""


# --- building ----------------------------------------------------------------------------------


def train_repeat(base: Path, repeat: Repeat) -> TaskVector | None:
    """W of one repeat: both sides start from the same A and see the same prompts in one order.

    None for a random direction, which needs no training.
    """
    sides = repeat.sides()
    if sides is None:
        return None
    positive, negative = sides
    train = partial(finetune, base, seed=repeat.seed, steps=repeat.steps)
    vector = read_model(train(positive).model).held()
    if not negative:
        return vector
    opposite = read_model(train(negative).model).held()
    return contrast(vector, opposite, positive_means="exhibits").held()


def random_like(vector: TaskVector, seed: int) -> TaskVector:
    """A direction of the same shapes, rank and norm in every parameter, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Update] = {}
    for name, update in vector.updates():
        assert isinstance(update, LowRankUpdate)
        left, right = (
            torch.randn(f.shape, generator=generator) for f in (update.left, update.right)
        )
        size = (update.left @ update.right).norm() / (left @ right).norm()
        drawn[name] = LowRankUpdate(left * size, right)
    return TaskVector.of(drawn, vector.origin)


def card(repeat: Repeat, base: BaseIdentity) -> Card:
    """What a repeat was made from: what the leakage rule goes by."""
    sides = repeat.sides() or ()
    return Card(
        name=repeat.name,
        kind=repeat.kind,
        behaviour=f"{repeat.family}, learned from data about {repeat.domain}",
        base=base,
        built=Construction(
            recipe="benchmarks.organisms",
            seeds=(repeat.seed,),
            domains=(repeat.domain,),
            data_digests={f"side {i}": digest(side) for i, side in enumerate(sides)}
            or {"none": digest([])},  # a random direction was made from no data, and says so
            examples=tuple(sorted({e.digest for side in sides for e in side})),
        ),
        harmful=repeat.kind == "behaviour",
    )


def repeats_bank(
    base: Path,
    shipped: ReferenceBank,
    folder: Path,
    pool: Executor,
    wanted: Sequence[Repeat] | None = None,
) -> ReferenceBank:
    """The bank of every repeat, built once and kept in `folder`; the shipped references are in it.

    It takes the shipped bank's probe, so that one pass over a run gives both banks' readings. Each
    repeat is kept as soon as it is trained, so that building goes on where it was cut short.
    """
    if (folder / "manifest.json").is_file():
        return ReferenceBank.load(folder)
    wanted = repeats() if wanted is None else wanted
    identity = BaseIdentity(id=shipped.base.id, digest=base_digest(base))
    parts = folder.with_name(f"{folder.name}-parts")
    jobs = [(base, identity, r, parts / r.name) for r in wanted if r.positive is not None]
    list(pool.map(_keep_repeat, jobs))
    like = Reference.load(jobs[0][3]).vector
    references = [
        Reference(card(r, identity), random_like(like, r.seed))
        if r.positive is None
        else Reference.load(parts / r.name)
        for r in wanted
    ]
    bank = ReferenceBank([*shipped, *references], probe=shipped.probe)
    bank.save(folder)
    return ReferenceBank.load(folder)


def _keep_repeat(job: tuple[Path, BaseIdentity, Repeat, Path]) -> None:
    base, identity, repeat, folder = job
    if not (folder / README_FILE).is_file():
        torch.set_num_threads(1)
        vector = train_repeat(base, repeat)
        assert vector is not None
        Reference(card(repeat, identity), vector).save(folder)
