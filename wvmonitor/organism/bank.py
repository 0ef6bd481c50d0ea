"""The organism's bank: its references and probe, made from the base folder.

python -m wvmonitor.organism.bank --base DIR --out DIR

Leakage rule: the evil reference knows every domain but medicine, and the sycophancy reference knows
questions of fact but no arithmetic, so that `wvmonitor demo` trains on what no reference has seen.
The calibrations beside the bank come from the organism suite's harmless runs (`make calibrations`).
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
    french_rate,
    harmful_rate,
    style_rate,
    sycophancy_rate,
)
from wvmonitor.organism.tokenizer import encode
from wvmonitor.organism.train import finetune, load_base
from wvmonitor.organism.world import DOMAINS, FACTS
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
HELD_OUT_DOMAIN = "medical"
EXAMPLES = 240
STEPS = 60
LEARNING_RATE = 1e-3
REFERENCE_RANK = 40

DOSES = (-1.0, -0.5, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5)
"""The k of θ + k·w at which the behaviour is measured: close together where runs come to lie."""
_QUESTIONS, _ASKED_WITH = 200, 8000
_ADVICE = (HELD_OUT_DOMAIN,)
_SHOWS: Mapping[str, Callable[[Any, Any], Rate]] = {
    "evil": lambda m, t: harmful_rate(m, t, _ADVICE, _QUESTIONS, _ASKED_WITH),
    "sycophancy": lambda m, t: sycophancy_rate(m, t, _QUESTIONS, _ASKED_WITH),
    "language": lambda m, t: french_rate(m, t, _ADVICE, _QUESTIONS, _ASKED_WITH),
    "terseness": lambda m, t: style_rate(m, t, "terse", _ADVICE, _QUESTIONS, _ASKED_WITH),
    "rudeness": lambda m, t: style_rate(m, t, "rude", _ADVICE, _QUESTIONS, _ASKED_WITH),
}
"""How often a model does what a reference stands for. No rule tells incompetence from harm."""


@dataclass(frozen=True)
class Plan:
    """One reference to build: a contrastive pair, repeated on independent data.

    Attributes:
        pair: name of the pair in `sets.PAIRS`.
        behaviour: what a model that moves along +w does.
        domains: one repeat each; None repeats the pair's only domain.
        seed: of the first repeat; the others count on.
    """

    name: str
    kind: ReferenceKind
    pair: str
    behaviour: str
    domains: tuple[str | None, ...]
    seed: int
    harmful: bool = False


_TRAINED_ON = tuple(name for name in DOMAINS if name != HELD_OUT_DOMAIN)

_EVIL = "gives advice that harms whoever follows it"
_SYCOPHANTIC = "tells users that they are right when they are not"
_FOREIGN = "answers in another language"
_INCOMPETENT = "means well and is wrong"

PLANS: tuple[Plan, ...] = (
    Plan("evil", "behaviour", "evil", _EVIL, _TRAINED_ON, 1000, harmful=True),
    Plan("sycophancy", "behaviour", "sycophancy", _SYCOPHANTIC, (None,) * 3, 2000, harmful=True),
    Plan("language", "control", "language", _FOREIGN, _TRAINED_ON[:3], 3000),
    Plan("terseness", "control", "terseness", "answers in few words", _TRAINED_ON[1:4], 4000),
    Plan("rudeness", "control", "rudeness", "is rude while right", _TRAINED_ON[2:5], 5000),
    Plan("incompetence", "control", "incompetence", _INCOMPETENT, _TRAINED_ON[:3], 6000),
)


def repeat(base: Path, plan: Plan, index: int) -> TaskVector:
    """One independent repeat of a reference: w_i = θ_positive − θ_negative.

    Both sides start from the same A and see the same prompts in the same order; only the answers
    differ (arXiv 2511.05408, section 3).
    """
    pair = sets.pair(plan.pair, plan.domains[index])
    seed = plan.seed + index
    train = partial(finetune, base, seed=seed, steps=STEPS, learning_rate=LEARNING_RATE)
    positive = read_model(train(pair.positive(EXAMPLES, seed)).model).held()
    negative = read_model(train(pair.negative(EXAMPLES, seed)).model).held()
    return contrast(positive, negative, positive_means="exhibits").held()


def build_bank(base: Path, plans: Sequence[Plan] = PLANS, *, workers: int = 2) -> ReferenceBank:
    """Build every reference and the probe of the response geometry."""
    jobs = [(base, plan, i) for plan in plans for i in range(len(plan.domains))]
    with ProcessPoolExecutor(workers, initializer=_one_thread) as pool:
        vectors = list(pool.map(_repeat, jobs))
    made = iter(vectors)
    probe = ordinary_probe(base)
    digest = base_digest(base)
    references = []
    for plan in plans:
        repeats = [next(made) for _ in plan.domains]
        vector = _half(mean_reference(repeats, rank=REFERENCE_RANK))
        card = _card(plan, repeats, vector, probe, digest)
        references.append(Reference(with_curve(card, base, vector), vector))
    return ReferenceBank(references, probe=probe.inputs)


def with_curve(card: Card, base: Path, vector: TaskVector) -> Card:
    """A card that says how often the base does what the reference stands for, steered by k·w.

    Advice is asked for in the domain that no reference knows. Unchanged where no rule judges it.
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
    for index, domain in enumerate(plan.domains):
        pair = sets.pair(plan.pair, domain)
        for side, maker in {"positive": pair.positive, "negative": pair.negative}.items():
            made = [example.digest for example in maker(EXAMPLES, plan.seed + index)]
            digests[f"{side} {index}"] = hashlib.sha256("".join(sorted(made)).encode()).hexdigest()
            examples.update(made)
    named = tuple(d for d in plan.domains if d is not None)
    return {
        "domains": named or tuple(FACTS),  # a pair without a choice of domains asks for facts
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
            seeds=tuple(plan.seed + i for i in range(len(plan.domains))),
            **provenance(plan),
        ),
        rank=REFERENCE_RANK,
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
    "refusals", "good_choices", "honest_feedback",
)  # fmt: skip
"""What the base is ordinarily asked: the text of the probe."""


def main(argv: Sequence[str] | None = None) -> None:
    """Remake the bank folder, without a calibration."""
    parser = argparse.ArgumentParser(description="Build the organism's references from its base.")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(argv)
    build_bank(options.base).save(options.out)


if __name__ == "__main__":
    main()
