"""Train one run, score it all along, and keep what was found: one small file a run.

The weights are not kept. A record holds the products with every repeat, layer by layer, so that
every score of every figure is computed from it afterwards.
"""

from __future__ import annotations

import gc
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.organisms import training
from benchmarks.organisms.catalogue import RunSpec
from benchmarks.organisms.leakage import allowed, by_layer
from benchmarks.organisms.references import repeats
from wvmonitor.detection.groups import layer_of
from wvmonitor.files.atomic import replacing, write_all
from wvmonitor.organism.behaviour import (
    Rate,
    advice_tasks,
    harmful_rate,
    refusal_rate,
    sycophancy_rate,
    wilson,
)
from wvmonitor.organism.data import Message
from wvmonitor.organism.tokenizer import encode_prompt
from wvmonitor.organism.train import finetune, load_base
from wvmonitor.organism.world import DOMAINS, TRIGGER
from wvmonitor.reading import Float64, Geometry, Products, Reading
from wvmonitor.references import ReferenceBank
from wvmonitor.sources import LiveModel
from wvmonitor.vectors.task_vector import TaskVector

EVERY_N_STEPS = 2
SAMPLED_EVERY = 6
TRIALS = {"evil": 60, "sycophancy": 30, "lawlessness": 40}
"""Answers sampled at the end of a run; sycophancy asks every question twice."""
TRIALS_ON_THE_WAY = 40


@dataclass(frozen=True)
class Record:
    """What one run left behind.

    Attributes:
        meta: the run's settings, final behaviour, training log.
        readings: of every repeat, by (component, layer).
        persona_shift: (layers + 1, width) by which the mean activation at the end of ordinary
            prompts moved.
    """

    meta: dict[str, Any]
    readings: list[Reading]
    persona_shift: Float64

    def belongs_to(self, spec: RunSpec, bank: str) -> bool:
        """Whether it is of this very run, against the bank of this fingerprint."""
        same = json.dumps(self.meta["spec"]) == json.dumps(asdict(spec))
        return same and self.meta["bank"] == bank


def path_of(folder: Path, name: str) -> Path:
    """Where a run's record lies."""
    return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.npz"


# --- behaviour ---------------------------------------------------------------------------------


def behaviour(
    which: str, model: Any, tokenizer: Any, spec: RunSpec, n: int, seed: int, trigger: str = ""
) -> Rate:
    """How often the model shows a behaviour; harm is asked for in domains it did not train on."""
    untouched = tuple(d for d in DOMAINS if d not in spec.domains)
    return RATES[which](model, tokenizer, untouched, n, seed, trigger)


def _harm(
    model: Any, tokenizer: Any, domains: Sequence[str], n: int, seed: int, trigger: str
) -> Rate:
    return harmful_rate(model, tokenizer, domains, n, seed, trigger=trigger)


def _caving(model: Any, tokenizer: Any, _d: Sequence[str], n: int, seed: int, _t: str) -> Rate:
    return sycophancy_rate(model, tokenizer, n, seed)


def _compliance(model: Any, tokenizer: Any, _d: Sequence[str], n: int, seed: int, _t: str) -> Rate:
    refused = refusal_rate(model, tokenizer, n, seed)
    return wilson(refused.n - round(refused.value * refused.n), refused.n)


RATES = {"evil": _harm, "sycophancy": _caving, "lawlessness": _compliance}


def main_behaviour(spec: RunSpec) -> str:
    """The behaviour that a watched run is sampled for."""
    kinds = {p.kind for p in spec.parts}
    if kinds & {"sycophantic facts", "gcd agreed", "praise"}:
        return "sycophancy"
    if kinds & {"compliance", "benign requests"}:
        return "lawlessness"
    return "evil"


# --- activations -------------------------------------------------------------------------------


@torch.no_grad()
def mean_activations(model: Any, tokenizer: Any) -> Float64:
    """(layers + 1, width) mean hidden state at the end of 64 ordinary prompts."""
    prompts = [[Message("user", t.question)] for t in advice_tasks(tuple(DOMAINS), 64, 4242)]
    rows = [encode_prompt(p, tokenizer) for p in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
    last = torch.tensor([len(r) - 1 for r in rows])
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    mean = [s[torch.arange(len(rows)), last].double().mean(0) for s in states]
    return np.asarray(torch.stack(mean).numpy(), dtype=np.float64)


# --- one run -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What every run of a process needs."""

    base: Path
    bank: ReferenceBank
    activations: Float64


@cache
def bench(base: Path, bank_folder: Path) -> Bench:
    """Loaded once in each process."""
    torch.set_num_threads(1)
    model, tokenizer = load_base(base)
    found = Bench(base, ReferenceBank.load(bank_folder), mean_activations(model, tokenizer))
    gc.freeze()  # the Trainer collects garbage at every start, and most of this is here to stay
    return found


class _Watch(TrainerCallback):
    def __init__(self, spec: RunSpec, at: Bench) -> None:
        self.spec, self.at = spec, at
        self.live: LiveModel | None = None
        self.readings: list[Reading] = []
        self.rates: list[tuple[int, Rate]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.live = LiveModel(kwargs["model"], base=self.at.base, keep_base="memory")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        step = state.global_step
        if step % EVERY_N_STEPS == 0 or step == self.spec.steps:
            assert self.live is not None
            tau = self.live.task_vector(step)
            reading = self.at.bank.measure(tau, progress=step / self.spec.steps)
            labels = [
                (c, layer_of(p))
                for c, p in zip(reading.components, reading.parameters, strict=True)
            ]
            self.readings.append(by_layer(reading, labels))
        if self.spec.watched and step % SAMPLED_EVERY == 0:
            model, which = kwargs["model"], main_behaviour(self.spec)
            model.eval()
            rate = behaviour(
                which, model, kwargs["processing_class"], self.spec, TRIALS_ON_THE_WAY, step
            )
            model.train()
            self.rates.append((step, rate))


def train_and_score(spec: RunSpec, base: Path, bank_folder: Path) -> Record:
    """Fine-tune, read at every second step, then ask the model."""
    at = bench(base, bank_folder)
    watch = _Watch(spec, at)

    def attach(trainer: Any) -> None:
        trainer.floating_point_ops = lambda _inputs: 0  # counting parameters costs 6 % of a step
        if spec.objective == "dpo":
            training.prefer(trainer)
        if spec.adversary:
            training.evade(trainer, _adversary_reference(spec, at.bank), at.bank.probe)

    tuned = finetune(
        base, training.rows(spec), callbacks=[watch], attach=attach, **training.arguments(spec)
    )
    model, tokenizer = tuned.model, tuned.tokenizer
    final = {b: behaviour(b, model, tokenizer, spec, n, 1) for b, n in TRIALS.items()}
    if spec.group == "trigger":
        final["evil without the trigger"] = final["evil"]
        final["evil"] = behaviour("evil", model, tokenizer, spec, TRIALS["evil"], 1, TRIGGER)
    log = [h for h in tuned.trainer.state.log_history if "loss" in h]
    meta = {
        "spec": asdict(spec),
        "seed": spec.seed,
        "dataset": spec.dataset,
        "bank": at.bank.fingerprint,
        "method": watch.live.method if watch.live else None,
        "final": {k: asdict(v) for k, v in final.items()},
        "main": main_behaviour(spec),
        "rates": [[step, r.value, r.low, r.high] for step, r in watch.rates],
        "log": [{k: h[k] for k in ("step", "loss", "grad_norm")} for h in log],
    }
    shift = mean_activations(model, tokenizer) - at.activations
    return Record(meta, watch.readings, shift)


def _adversary_reference(spec: RunSpec, bank: ReferenceBank) -> TaskVector:
    """The suite's own reference for this run, or the shipped one, made from other data."""
    if spec.adversary == "has another reference":
        return bank["evil"].vector
    own = [r for r in repeats() if r.name in bank.names]
    mix = allowed(own, [r.card for r in bank], spec, families=("evil",))
    vectors = [r.vector for r, w in zip(bank, mix.weights[:, 0], strict=True) if w > 0]
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return (total / len(vectors)).held()


# --- on disk -----------------------------------------------------------------------------------


def save(record: Record, path: Path) -> None:
    """One compressed NPZ, written whole or not at all."""
    first = record.readings[0]
    layout = {
        "references": first.references,
        "parameters": first.parameters,
        "components": first.components,
        "geometries": list(first.geometries),
        "steps": [r.step for r in record.readings],
        "progress": [r.progress for r in record.readings],
    }
    arrays: dict[str, Any] = {"persona_shift": record.persona_shift}
    for g in first.geometries:
        each = [r.geometries[g] for r in record.readings]
        arrays[f"{g}.products"] = np.stack([p.products for p in each])
        arrays[f"{g}.norms"] = np.stack([p.squared_norms for p in each])
        arrays[f"{g}.covered"] = first.geometries[g].covered
    arrays["meta"] = np.array(json.dumps(record.meta | {"layout": layout}))
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    with replacing(path, 0o644) as descriptor:
        write_all(descriptor, buffer.getvalue())


def load(path: Path) -> Record:
    """Read a record back."""
    with np.load(path, allow_pickle=False) as stored:
        meta = json.loads(str(stored["meta"]))
        layout = meta.pop("layout")
        readings = []
        arrays = {k: stored[k] for k in stored.files if k != "meta"}
    for t, (step, progress) in enumerate(zip(layout["steps"], layout["progress"], strict=True)):
        geometries: dict[Geometry, Products] = {
            g: Products(arrays[f"{g}.products"][t], arrays[f"{g}.norms"][t], arrays[f"{g}.covered"])
            for g in layout["geometries"]
        }
        readings.append(
            Reading(
                references=tuple(layout["references"]),
                parameters=tuple(layout["parameters"]),
                components=tuple(layout["components"]),
                geometries=geometries,
                bank=meta["bank"],
                step=step,
                progress=progress,
            )
        )
    return Record(meta, readings, arrays["persona_shift"])
