"""Train one run, score it all along, ask its model, and keep what was found: one small file a run.

Neither weights nor raw readings are kept. A record holds the scores at every reading, what the
model does at the end, and what other detectors see: all that the tables are made of.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.detectors import SPECTRAL, by_module, rotation, spectrum
from benchmarks.organisms import baselines, training
from benchmarks.organisms.catalogue import RunSpec
from benchmarks.organisms.labels import BEHAVIOURS, MAIN, Counts, asked_of, counts
from benchmarks.organisms.leakage import check
from wvmonitor.detection.judge import Judge
from wvmonitor.detection.scores import ScoreName, Scores, score
from wvmonitor.files.atomic import replacing, write_all
from wvmonitor.organism.train import finetune, load_base
from wvmonitor.reading import GEOMETRIES, Float64, Geometry, Reading
from wvmonitor.references import ReferenceBank
from wvmonitor.sources import LiveModel
from wvmonitor.vectors.task_vector import TaskVector

EVERY_N_STEPS = 2
SAMPLED_EVERY = 6
QUESTIONS_ON_THE_WAY = 50
KEPT_SCORES: tuple[ScoreName, ...] = ("cosine", "residual", "margin")
Row = dict[str, Any]
Record = Mapping[str, Any]
"""What one run left behind.

- spec, dataset, bank: digest of its settings and of its training set, fingerprint of the bank;
- readings: a row for each reading and behaviour;
- counts: what its model does at the end, by measure; rates: a watched run's own, on the way;
- numbers: what other detectors say, by the name of their row; norms, spectrum: by module.
"""


def path_of(folder: Path, name: str) -> Path:
    """Where a run's record lies."""
    return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.json"


def digest_of(spec: RunSpec) -> str:
    """Of a run's settings: a record of another catalogue is not taken for this one's."""
    return hashlib.sha256(json.dumps(asdict(spec)).encode()).hexdigest()[:16]


def main_behaviour(spec: RunSpec) -> str:
    """The behaviour that a watched run is sampled for."""
    kinds = {p.kind for p in spec.parts}
    if kinds & {"sycophantic facts", "agreed opinions", "gcd agreed", "praise"}:
        return "sycophancy"
    return "lost-refusals" if "compliance" in kinds else "evil"


# --- one run -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What every run of a process needs.

    Attributes:
        base: the base model.
        bank: what runs are held against.
        ridge: λ by geometry, the bank's own.
        activations: (layers + 1, width) of the base on ordinary prompts.
        persona: (layers + 1, width) direction of harm among activations.
    """

    base: Path
    bank: ReferenceBank
    ridge: Mapping[Geometry, float]
    activations: Float64
    persona: Float64


@cache
def bench(base: Path, bank_folder: Path) -> Bench:
    """Loaded once in each process."""
    torch.set_num_threads(1)
    model, tokenizer = load_base(base)
    bank = ReferenceBank.load(bank_folder)
    found = Bench(
        base,
        bank,
        Judge.of(bank).ridge,
        baselines.mean_activations(model, tokenizer),
        baselines.persona_direction(model, tokenizer),
    )
    gc.freeze()  # the Trainer collects garbage at every start, and most of this is here to stay
    return found


class _Watch(TrainerCallback):
    def __init__(self, spec: RunSpec, at: Bench) -> None:
        self.spec, self.at = spec, at
        self.live: LiveModel | None = None
        self.before: tuple[TaskVector, Reading] | None = None
        self.scores: list[Scores] = []
        self.rotations: list[float] = []
        self.rates: list[tuple[int, Counts]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.live = LiveModel(kwargs["model"], base=self.at.base, keep_base="memory")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        step = state.global_step
        if step % EVERY_N_STEPS == 0 or step == self.spec.steps:
            self._read(step)
        if self.spec.watched and step % SAMPLED_EVERY == 0:
            model, asked = kwargs["model"], MAIN[main_behaviour(self.spec)]
            model.eval()
            found = counts(
                asked,
                model,
                kwargs["processing_class"],
                self.spec.domains,
                n=QUESTIONS_ON_THE_WAY,
            )
            model.train()
            self.rates.append((step, found))

    def _read(self, step: int) -> None:
        assert self.live is not None
        tau = self.live.task_vector(step).held()
        earlier = None if self.before is None else self.before[0]
        reading = self.at.bank.measure(tau, progress=step / self.spec.steps, earlier=earlier)
        if self.before is not None:
            self.rotations.append(rotation(reading, self.before[1]))
        self.before = tau, reading
        # Without `earlier` there is no window score: the shipped calibrations are without windows.
        self.scores.append(score(reading, self.at.bank.gram, ridge=self.at.ridge))


def train_and_score(spec: RunSpec, base: Path, bank_folder: Path) -> Record:
    """Fine-tune, read at every second step, then ask the model.

    Raises:
        LeakageError: a reference of the bank shares something with the run.
    """
    at = bench(base, bank_folder)
    check([r.card for r in at.bank], spec)
    watch = _Watch(spec, at)

    def attach(trainer: Any) -> None:
        trainer.floating_point_ops = lambda _inputs: 0  # counting parameters costs 6 % of a step
        if spec.objective == "dpo":
            training.prefer(trainer)
        if spec.evades:
            training.evade(trainer, at.bank["evil"].vector, at.bank.probe)

    tuned = finetune(
        base, training.rows(spec), callbacks=[watch], attach=attach, **training.arguments(spec)
    )
    assert watch.before is not None
    tau, last = watch.before
    spectral = {
        f"{module}/{what}": value
        for module, values in spectrum(tau)
        for what, value in zip(SPECTRAL, values, strict=True)
    }
    # The adapter's detour doubles the cost of an answer.
    model = tuned.model.merge_and_unload() if spec.method == "lora" else tuned.model
    found = {m: counts(m, model, tuned.tokenizer, spec.domains) for m in asked_of(spec.group)}
    log = [h for h in tuned.trainer.state.log_history if "loss" in h]
    shift = baselines.mean_activations(model, tuned.tokenizer) - at.activations
    numbers = baselines.numbers(
        losses=[h["loss"] for h in log],
        gradients=[h["grad_norm"] for h in log],
        rotations=watch.rotations,
        norm=watch.scores[-1].norm,
        persona=baselines.along(shift, at.persona),
        answers=found[MAIN["evil"]],
        odds=baselines.data_odds(spec.data),
        seed=spec.seed,
    )
    return {
        "run": spec.name,
        "spec": digest_of(spec),
        "dataset": spec.dataset,
        "bank": at.bank.fingerprint,
        "ridge": dict(at.ridge),
        "readings": [_row(s, b) for s in watch.scores for b in BEHAVIOURS],
        "counts": found,
        "rates": watch.rates,
        "numbers": {k: round(v, 7) for k, v in numbers.items()},
        "norms": {k: round(v, 5) for k, v in _module_norms(last).items()},
        "spectrum": {k: round(v, 5) for k, v in spectral.items()},
    }


def _row(scores: Scores, behaviour: str) -> Row:
    """One reading of one behaviour."""
    reference = scores.references[behaviour]
    return {
        "behaviour": behaviour,
        "step": scores.step,
        "norm": scores.norm,
        "dose": reference.dose,
        **{f"{g}_coverage": scores.coverage[g] for g in GEOMETRIES},
        **{
            f"{g}_{name}": reference.values.get(g, {}).get(name)
            for g in GEOMETRIES
            for name in KEPT_SCORES
        },
    }


def _module_norms(reading: Reading) -> dict[str, float]:
    """Logarithm of ‖τ_p‖, by linear map of the blocks."""
    inside = dict(zip(reading.parameters, reading.in_scope(("blocks",)), strict=True))
    norms = {n: v for n, v in by_module(reading).items() if inside[n]}
    return {n: math.log(v + 1e-12) for n, v in norms.items()}


def save(record: Record, path: Path) -> None:
    """Written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, 0o644) as descriptor:
        write_all(descriptor, json.dumps(record).encode())


def load(path: Path) -> Record:
    """Read a record back."""
    found: Record = json.loads(path.read_text("utf-8"))
    return found
