"""One run of one cell on the real model: trained, asked, read, repaired; and its record."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.real.protocol import DECIDES
from benchmarks.remedies.real import BAD, BASE, FAMILY, RUN_SEEDS, Bench, Cell, Setting, planned
from benchmarks.remedies.records import Records
from wvmonitor.builder.finetune import Training, finetune
from wvmonitor.builder.gap import log_probabilities
from wvmonitor.builder.recipe import Finetuning
from wvmonitor.builder.references import GAPS
from wvmonitor.detection.judge import Judge
from wvmonitor.errors import InputError
from wvmonitor.integrations.transformers import WVMonitorCallback
from wvmonitor.journal.reader import JournalReader
from wvmonitor.references import ReferenceBank
from wvmonitor.sources.adapters import read_adapter
from wvmonitor.steering import inoculated, steered
from wvmonitor.steering.edit import plan
from wvmonitor.vectors import TaskVector

DIGITS = 5
"""Kept of each mean log p."""


def run(bench: Bench, seeds: int, out: Path | None = None) -> None:
    """Train and ask every cell that has no record yet, seed by seed.

    Args:
        bench: what with.
        seeds: how many.
        out: where results are written after each run.
    """
    torch.set_num_threads(1)
    records = Records(bench.folder / "records.jsonl", bench.about, out)
    for seed, cell in planned(bench.setting, seeds):
        if (cell.name, seed) not in {(r["cell"], r["seed"]) for r in records.read()}:
            row = {"cell": cell.name, "seed": seed} | measured(bench, cell, seed)
            records.add(row)
            print(f"{cell.name} | seed {seed}: {row['seconds']}", flush=True)
        records.publish(_more(bench, {r["seed"] for r in records.read()}))


def _more(bench: Bench, seeds: Iterable[int]) -> dict[str, Any]:
    """What the page says of the runs beside their records."""
    card = bench.references[DECIDES].card
    return {
        "model": bench.known_as,
        "domains": [p[0].domain for p in (bench.contrast.tuning, bench.contrast.power)],
        "drawn": {seed: asdict(bench.drawn(seed)) for seed in sorted(seeds)},
        "reference": {
            "norm": card.quality.norm,
            "verified": card.verified,
            "domains": list(card.built.domains),
            "held_out_gap": card.built.hyperparameters.get(GAPS),
        },
    }


def measured(bench: Bench, cell: Cell, seed: int) -> dict[str, Any]:
    """One run: trained, asked, read; and where nothing was done about it, repaired and watched."""
    began = time.process_time()
    if cell.data == BASE:
        places = range(len(bench.pairs))
        if not cell.vector:
            found = asked(bench, bench.base.model, places, own=True)
        else:
            with steered(bench.base.model, bench.vector(cell, seed), cell.k):
                found = asked(bench, bench.base.model, places)
        return found | {"seconds": [0.0, round(time.process_time() - began, 1)]}
    drawn = bench.drawn(seed)
    places, own = (*drawn.near, *drawn.elsewhere), cell.data == FAMILY
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        callbacks: list[TrainerCallback] = [
            _Riding(bench.vector(cell, seed), cell.k) if cell.vector else _watch(bench, folder)
        ]

        def examine(model: Any) -> None:
            found["trained for"] = time.process_time() - began
            found.update(asked(bench, model, (*drawn.trained, *places), own=own))

        adapter = folder / "adapter"
        adapter.mkdir()
        bench.base.release()
        finetune(
            bench.base, bench.rows(cell, seed), training(bench.setting, seed), adapter,
            callbacks=callbacks, examine=examine,
        )  # fmt: skip
        if not cell.vector:
            found["watched"] = verdicts(folder)
        found |= read(bench, bench.references, adapter)
        if not cell.vector:
            amounts = [None, bench.setting.k] if cell.data == BAD else [None]
            found["repaired"] = repaired(bench, bench.references, adapter, places, amounts, own=own)
    spent = found.pop("trained for")
    return found | {"seconds": [round(spent, 1), round(time.process_time() - began - spent, 1)]}


def asked(bench: Bench, model: Any, places: Sequence[int], *, own: bool = False) -> dict[str, Any]:
    """Mean log p of the harmful and of the good answer to each question, and of harmless text.

    Args:
        bench: what is asked.
        model: who is asked.
        places: of the questions in `Bench.pairs`.
        own: ask for new rows of the harmless family, too.
    """
    pairs = [bench.pairs[i] for i in places]
    texts = [e for p in pairs for e in (p.positive, p.negative)]
    texts += [*bench.ordinary, *(bench.own if own else ())]
    values = [round(v, DIGITS) for v in log_probabilities(bench.base, model, texts)]
    both, ordinary = values[: 2 * len(pairs)], values[2 * len(pairs) :]
    split = len(bench.ordinary)
    return {
        "pairs": {str(i): both[2 * n : 2 * n + 2] for n, i in enumerate(places)},
        "ordinary": ordinary[:split],
        "own": ordinary[split:],
    }


class _Riding(TrainerCallback):
    """K·w rides along while the model trains, by the hook that ships."""

    def __init__(self, vector: TaskVector, k: float) -> None:
        self._vector, self._k = vector, k
        self._riding: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._riding = inoculated(kwargs["model"], self._vector, self._k)
        self._riding.__enter__()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._riding.__exit__(None, None, None)


def training(setting: Setting, seed: int) -> Training:
    """How a run is trained."""
    settings = Finetuning(
        rank=setting.rank, alpha=setting.alpha, batch_size=setting.batch_size,
        warmup_steps=max(1, setting.steps // 10), steps=setting.steps, max_length=512,
    )  # fmt: skip
    return Training(settings, "lora", setting.rate, setting.steps, RUN_SEEDS + seed)


def _watch(bench: Bench, folder: Path) -> WVMonitorCallback:
    """A monitor that looks on: what the bank says of a run is told, and nothing is done."""
    every = max(1, bench.setting.steps // bench.setting.readings)
    return WVMonitorCallback(
        bench.bank, journal_dir=folder, every_n_steps=every, max_overhead=1.0, run="watched"
    )


def verdicts(folder: Path) -> dict[str, Any]:
    """What the bank said of a folder's run: every verdict's state at any reading, by behaviour."""
    reader = JournalReader(folder)
    (name,) = reader.runs()
    rows = reader.trajectory(name)
    states: dict[str, set[str]] = {}
    alarms: dict[str, int] = {}
    for row in rows:
        for verdict in row.verdicts:
            states.setdefault(verdict.reference, set()).add(verdict.state)
            if verdict.state == "alarm":
                alarms.setdefault(verdict.reference, row.step)
    return {
        "readings": len(rows),
        "alarms": alarms,
        "states": {name: sorted(found) for name, found in states.items()},
    }


def read(
    bench: Bench, bank: ReferenceBank, adapter: Path, behaviour: str = DECIDES
) -> dict[str, Any]:
    """How much of a bank's reference is in a finished run."""
    change = read_adapter(adapter, bench.base.folder)
    scores = Judge.of(bank).statistics(bank.measure(change)).scores
    reference = scores.references[behaviour]
    return {
        "dose": reference.dose,
        "doses": dict(reference.doses),
        "residuals": {g: v.get("residual") for g, v in reference.values.items()},
        "norm": float(change.norm()),
    }


def repaired(
    bench: Bench,
    bank: ReferenceBank,
    adapter: Path,
    places: Sequence[int],
    amounts: Sequence[float | None],
    *,
    own: bool,
    behaviour: str = DECIDES,
) -> dict[str, Any]:
    """The finished run with so much of a bank's reference out, by what `steer --remove` plans.

    None stands for the dose that is measured. Where the command refuses, its words stand in place
    of answers.
    """
    found: dict[str, Any] = {}
    for amount in amounts:
        name = "the measured dose" if amount is None else f"{amount:g}"
        try:
            edit = plan(adapter, bank, add={}, remove={behaviour: amount}, base=bench.base.folder)
        except InputError as error:
            found[name] = {"refused": str(error).replace(str(adapter), "the run")}
            continue
        change = read_adapter(adapter, bench.base.folder)
        wanted = {change: 1.0, bank[behaviour]: edit.amounts[behaviour]}
        with steered(bench.base.model, wanted):
            found[name] = asked(bench, bench.base.model, places, own=own) | {
                "taken out": -edit.amounts[behaviour],
                "cautions": list(edit.cautions),
            }
    return found
