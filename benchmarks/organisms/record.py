"""Train one run, score it all along, ask its model, and keep what was found: one small file a run.

The weights are not kept. A record holds the products with every reference of the shipped bank, so
that every score of every figure is computed from it afterwards, and what other detectors look at.
"""

from __future__ import annotations

import gc
import io
import json
import re
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.detectors import rotation, spectrum
from benchmarks.organisms import training
from benchmarks.organisms.catalogue import RunSpec
from benchmarks.organisms.labels import MAIN, Counts, asked_of, counts
from wvmonitor.files.atomic import replacing, write_all
from wvmonitor.organism.behaviour import advice_tasks
from wvmonitor.organism.data import Message
from wvmonitor.organism.tokenizer import encode_prompt
from wvmonitor.organism.train import finetune, load_base
from wvmonitor.organism.world import DOMAINS
from wvmonitor.reading import Float64, Geometry, Products, Reading
from wvmonitor.references import ReferenceBank
from wvmonitor.sources import LiveModel
from wvmonitor.vectors.task_vector import TaskVector

EVERY_N_STEPS = 2
SAMPLED_EVERY = 6
QUESTIONS_ON_THE_WAY = 50


@dataclass(frozen=True)
class Record:
    """What one run left behind.

    Attributes:
        meta: the run's settings, what its model does (`counts`, by measure), losses and gradient
            norms of every step, rotation of every reading, spectral features at the end.
        readings: against the shipped bank.
        persona_shift: (layers + 1, width) by which the mean activation at the end of ordinary
            prompts moved.
    """

    meta: dict[str, Any]
    readings: list[Reading]
    persona_shift: Float64

    @property
    def counts(self) -> dict[str, Counts]:
        """What its model does at the end, by measure."""
        return {m: (int(k), int(n)) for m, (k, n) in self.meta["counts"].items()}

    def belongs_to(self, spec: RunSpec, bank: str) -> bool:
        """Whether it is of this very run, against the bank of this fingerprint."""
        same = json.dumps(self.meta["spec"]) == json.dumps(asdict(spec))
        return same and self.meta["bank"] == bank


def path_of(folder: Path, name: str) -> Path:
    """Where a run's record lies."""
    return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.npz"


def main_behaviour(spec: RunSpec) -> str:
    """The behaviour that a watched run is sampled for."""
    kinds = {p.kind for p in spec.parts}
    if kinds & {"sycophantic facts", "agreed opinions", "gcd agreed", "praise"}:
        return "sycophancy"
    return "lost-refusals" if "compliance" in kinds else "evil"


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
        self.before: tuple[TaskVector, Reading] | None = None
        self.readings: list[Reading] = []
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
        # Calibrations of the shipped bank are without windows: see `detection/open_ended.py`.
        kept = {g: replace(p, lagged=None) for g, p in reading.geometries.items()}
        self.readings.append(replace(reading, geometries=kept))


def train_and_score(spec: RunSpec, base: Path, bank_folder: Path) -> Record:
    """Fine-tune, read at every second step, then ask the model."""
    at = bench(base, bank_folder)
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
    # The adapter's detour doubles the cost of an answer.
    model = tuned.model.merge_and_unload() if spec.method == "lora" else tuned.model
    tokenizer = tuned.tokenizer
    found = {m: counts(m, model, tokenizer, spec.domains) for m in asked_of(spec.group)}
    log = [h for h in tuned.trainer.state.log_history if "loss" in h]
    assert watch.before is not None
    meta = {
        "spec": asdict(spec),
        "dataset": spec.dataset,
        "bank": at.bank.fingerprint,
        "counts": found,
        "rates": watch.rates,
        "loss": [h["loss"] for h in log],
        "grad_norm": [h["grad_norm"] for h in log],
        "rotation": watch.rotations,
        "spectrum": dict(spectrum(watch.before[0])),
    }
    shift = mean_activations(model, tokenizer) - at.activations
    return Record(meta, watch.readings, shift)


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
