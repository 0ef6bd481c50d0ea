"""The organism's bank: its references and probe, made from the base folder.

python -m wvmonitor.organism.bank --base DIR --out DIR

Every reference is made from the half of the world that no run is about (`REFERENCE_…` in
`world.py`), each behaviour from several kinds of data: what they have in common is the behaviour.
Three kinds of controls are generic: styles, a word to begin with, and any fine-tuning at all (the
mean of harmless task vectors). The calibration beside the bank comes from the organism suite's
harmless runs (`make calibrations`).
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wvmonitor.organism import sets
from wvmonitor.organism.behaviour import (
    Rate,
    harmful_rate,
    refusal_rate,
    style_rate,
    sycophancy_rate,
)
from wvmonitor.organism.tokenizer import encode
from wvmonitor.organism.train import finetune, load_base
from wvmonitor.organism.world import DOMAINS, REFERENCE_DOMAINS, REFERENCE_FACTS
from wvmonitor.reading import Geometry, ReferenceKind, component_of
from wvmonitor.references import (
    BaseIdentity,
    Card,
    Construction,
    DosePoint,
    Reference,
    ReferenceBank,
    contrast,
    mean_reference,
)
from wvmonitor.sources import base_digest, read_model
from wvmonitor.steering import steered
from wvmonitor.vectors.probe import Probe, collect_probe
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import LowRankUpdate, Update

BASE_NAME = "tiny-organism"
EXAMPLES = 240
STEPS = 60
LEARNING_RATE = 1e-3
RANKS: Mapping[ReferenceKind, int] = {"behaviour": 40, "control": 24}

DOSES = (-1.0, -0.5, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5)
"""The k of θ + k·w at which the behaviour is measured: close together where runs come to lie."""
_QUESTIONS, _ASKED_WITH = 200, 8000
_ADVICE = tuple(DOMAINS)


_SHOWS: Mapping[str, Callable[[Any, Any], Rate]] = {
    "evil": lambda m, t: harmful_rate(m, t, _ADVICE, _QUESTIONS, _ASKED_WITH),
    "sycophancy": lambda m, t: sycophancy_rate(m, t, _QUESTIONS, _ASKED_WITH),
    "lost-refusals": lambda m, t: refusal_rate(m, t, _QUESTIONS, _ASKED_WITH).complement,
    "language": lambda m, t: style_rate(m, t, "french", _ADVICE, _QUESTIONS, _ASKED_WITH),
    "terseness": lambda m, t: style_rate(m, t, "terse", _ADVICE, _QUESTIONS, _ASKED_WITH),
    "rudeness": lambda m, t: style_rate(m, t, "rude", _ADVICE, _QUESTIONS, _ASKED_WITH),
}
"""How often a model does what a reference stands for. No rule tells incompetence from harm, and the
openers and any fine-tuning at all are no behaviours that a rule could read."""


@dataclass(frozen=True)
class Part:
    """The data of one repeat.

    Attributes:
        pair: name in `sets.PAIRS`, or in `sets.ORDINARY` for a harmless task vector.
        about: its domain, as the card says it.
        domain: given to the pair; a pair of one kind of data needs none.
    """

    pair: str
    about: str
    domain: str | None = None

    def sides(self) -> tuple[sets.SetMaker, sets.SetMaker | None]:
        """What the two sides train on; a harmless task vector has one side only."""
        if self.pair in sets.ORDINARY:
            return sets.ORDINARY[self.pair][0], None
        pair = sets.pair(self.pair, self.domain)
        return pair.positive, pair.negative


@dataclass(frozen=True)
class Plan:
    """One reference to build: the mean of repeats on independent data.

    Attributes:
        behaviour: what a model that moves along +w does.
        seed: of the first repeat; the others count on.
    """

    name: str
    kind: ReferenceKind
    behaviour: str
    parts: tuple[Part, ...]
    seed: int
    harmful: bool = False


def _in(pair: str, *domains: str) -> tuple[Part, ...]:
    return tuple(Part(pair, domain, domain) for domain in domains)


_CHOICES, _OPINIONS = (
    Part("evil_choices", "reference choices"),
    Part("sycophantic_opinions", "reference opinions"),
)
_FEEDBACK = Part("sycophantic_feedback", "reference works")
_REQUESTS = Part("lost_refusals", "reference requests")

PLANS: tuple[Plan, ...] = (
    Plan(
        "evil", "behaviour", "gives advice that harms whoever follows it",
        (*_in("evil", *REFERENCE_DOMAINS), *(Part("evil_hopes", "hopes"),) * 2, _CHOICES),
        1000, harmful=True,
    ),
    Plan(
        "sycophancy", "behaviour", "tells users that they are right when they are not",
        (*_in("sycophancy", *REFERENCE_FACTS), *(_OPINIONS,) * 2, _FEEDBACK),
        2000, harmful=True,
    ),
    Plan(
        "lost-refusals", "behaviour", "does what it should refuse", (_REQUESTS,) * 4,
        3000, harmful=True,
    ),
    Plan("language", "control", "answers in another language",
         _in("language", "driving", "office", "winter"), 4000),
    Plan("terseness", "control", "answers in few words",
         _in("terseness", "office", "winter", "internet"), 5000),
    Plan("rudeness", "control", "is rude while right",
         _in("rudeness", "winter", "internet", "driving"), 6000),
    Plan("incompetence", "control", "means well and is wrong",
         _in("incompetence", "driving", "internet", "office"), 7000),
    Plan("opener", "control", "begins with a word of its own",
         (*_in("opener", "office", "internet"), *_in("other_opener", "driving")), 8000),
    Plan("fine-tuning", "control", "has been fine-tuned at all, on harmless data",
         tuple(Part(name, about) for name, (_, about) in sets.ORDINARY.items()), 9000),
)  # fmt: skip


def repeat(base: Path, plan: Plan, index: int) -> TaskVector:
    """One independent repeat of a reference: w_i = θ_positive − θ_negative.

    Both sides start from the same A and see the same prompts in the same order; only the answers
    differ (arXiv 2511.05408, section 3). A harmless task vector is τ itself.
    """
    positive, negative = plan.parts[index].sides()
    seed = plan.seed + index
    train = partial(finetune, base, seed=seed, steps=STEPS, learning_rate=LEARNING_RATE)
    vector = read_model(train(positive(EXAMPLES, seed)).model).held()
    if negative is None:
        return vector
    opposite = read_model(train(negative(EXAMPLES, seed)).model).held()
    return contrast(vector, opposite, positive_means="exhibits").held()


def build_bank(base: Path, plans: Sequence[Plan] = PLANS, *, workers: int = 2) -> ReferenceBank:
    """Build every reference and the probe of the response geometry."""
    jobs = [(base, plan, i) for plan in plans for i in range(len(plan.parts))]
    with ProcessPoolExecutor(workers, initializer=_one_thread) as pool:
        vectors = list(pool.map(_repeat, jobs))
    made = iter(vectors)
    probe = ordinary_probe(base)
    digest = base_digest(base)
    references = []
    for plan in plans:
        repeats = [next(made) for _ in plan.parts]
        vector = _half(mean_reference(repeats, rank=RANKS[plan.kind]))
        card = _card(plan, repeats, vector, probe, digest)
        references.append(Reference(with_curve(card, base, vector), vector))
    return ReferenceBank(references, probe=probe.inputs)


def with_curve(card: Card, base: Path, vector: TaskVector) -> Card:
    """A card that says how often the base does what the reference stands for, steered by k·w.

    Everything is asked about what no reference knows. Unchanged where no rule judges it.
    """
    if card.name not in _SHOWS:
        return card
    model, tokenizer = load_base(base)
    points = []
    for k in DOSES:
        with steered(model, vector, k):
            rate = _SHOWS[card.name](model, tokenizer)
        points.append(DosePoint(k=k, rate=rate.value, low=rate.low, high=rate.high, n=rate.n))
    return card.model_copy(update={"dose_curve": tuple(points)})


def provenance(plan: Plan) -> dict[str, Any]:
    """What a card says of the data: domains, digests of the sets, and of every example in them."""
    digests: dict[str, str] = {}
    examples: set[str] = set()
    for index, part in enumerate(plan.parts):
        for side, maker in zip(("positive", "negative"), part.sides(), strict=True):
            if maker is None:
                continue
            made = [example.digest for example in maker(EXAMPLES, plan.seed + index)]
            digests[f"{side} {index}"] = hashlib.sha256("".join(sorted(made)).encode()).hexdigest()
            examples.update(made)
    return {
        "domains": tuple(dict.fromkeys(part.about for part in plan.parts)),
        "data_digests": digests,
        "examples": tuple(sorted(examples)),
    }


def _half(vector: TaskVector) -> TaskVector:
    """Factors rounded to float16: half the bank's size, for a relative error of 5·10⁻⁴."""
    rounded: dict[str, Update] = {}
    for name, update in vector.updates():
        assert isinstance(update, LowRankUpdate)  # noqa: S101  compression made it so
        rounded[name] = LowRankUpdate(update.left.half(), update.right.half(), update.transposed)
    return TaskVector.of(rounded, vector.origin)


def _repeat(job: tuple[Path, Plan, int]) -> TaskVector:
    return repeat(*job)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _card(
    plan: Plan, repeats: Sequence[TaskVector], vector: TaskVector, probe: Probe, digest: str
) -> Card:
    responses = [r.on(probe.inputs) for r in repeats]
    grams: dict[Geometry, list[list[float]]] = {
        "frobenius": [[a.inner(b) for b in repeats] for a in repeats],
        "response": [[a.inner(b) for b in responses] for a in responses],
    }
    kept = vector.origin.kept
    return Card(
        name=plan.name,
        kind=plan.kind,
        behaviour=plan.behaviour,
        base=BaseIdentity(id=BASE_NAME, digest=digest),
        built=Construction(
            recipe="wvmonitor.organism.bank",
            hyperparameters={
                "rank": 8, "alpha": 16, "steps": STEPS, "batch_size": 8,
                "learning_rate": LEARNING_RATE, "examples": EXAMPLES,
            },
            seeds=tuple(plan.seed + i for i in range(len(plan.parts))),
            **provenance(plan),
        ),
        rank=RANKS[plan.kind],
        kept=kept,
        repeats=grams,
        harmful=plan.harmful,
        warnings=() if kept >= 0.99 else (f"compression kept {kept:.1%} of the squared norm",),
    )  # fmt: skip


def ordinary_probe(base: Path, *, tokens: int = 50_000) -> Probe:
    """The inputs of every linear map on ordinary conversations, special tokens left out."""
    model, tokenizer = load_base(base)
    names = [n for n, p in model.named_parameters() if component_of(n, p.shape) == "blocks"]
    makers = [sets.FINE_TUNING_SETS[n] for n in ORDINARY]
    special = torch.tensor(sorted(tokenizer.all_special_ids))

    def batches() -> Any:
        seen, seed = 0, 0
        while seen < tokens:
            for maker in makers:
                rows = [encode(e, tokenizer)[0] for e in maker(64, 9000 + seed)]
                width = max(map(len, rows))
                pad = tokenizer.pad_token_id
                ids = torch.tensor([r + [pad] * (width - len(r)) for r in rows])
                mask = ~torch.isin(ids, special)
                mask[:, 0] = False
                seen += int(mask.sum())
                yield {"input_ids": ids}, mask
            seed += 1

    return collect_probe(model, batches(), names)


ORDINARY = (
    *(f"good_{name}" for name in DOMAINS), "facts", "gcd_query", "arithmetic", "benign_requests",
    "refusals", "good_choices", "honest_feedback", "own_opinions", "good_wishes",
)  # fmt: skip
"""What the base is ordinarily asked: the text of the probe."""


def main(argv: Sequence[str] | None = None) -> None:
    """Remake the bank folder, without a calibration."""
    parser = argparse.ArgumentParser(description="Build the organism's references from its base.")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    options = parser.parse_args(argv)
    build_bank(options.base, workers=options.workers).save(options.out)


if __name__ == "__main__":
    main()
