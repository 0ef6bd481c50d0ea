"""One watched run: trained once, its adapter kept at every reading, and what it does at its end.

What is kept depends neither on a bank nor on what a run is asked afterwards: one run is read
against each bank that comes, and asked again when the questions change.
"""

from __future__ import annotations

import glob
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.real.preference import prefer
from benchmarks.real.protocol import Setting, TestRun
from benchmarks.real.sets import fitted
from wvmonitor.builder.base import Base
from wvmonitor.builder.examples import Example, Pair
from wvmonitor.builder.finetune import Method, Training, finetune, read_finetuned
from wvmonitor.builder.gap import gap
from wvmonitor.builder.like import Like
from wvmonitor.builder.recipe import Finetuning
from wvmonitor.builder.stages import Work, digest_of
from wvmonitor.errors import BuildError
from wvmonitor.files.documents import read_json, write_json
from wvmonitor.reading import Float64
from wvmonitor.steering import steered

RECORD, STATES = "record.json", "states.npz"
RATES: Mapping[str, float] = {"rate-high": 2.5, "full": 0.1, "dpo": 0.2}
"""The peak rate of a variant, as a multiple of the setting's."""
LOW_RANK = 4
RUN_SEEDS = 10_000
"""Where the seeds of watched runs begin: none shares an initial A with a reference."""


@dataclass(frozen=True)
class Asked:
    """What every run is asked at its end.

    Attributes:
        pairs: held-out pairs, by what they are asked for.
        prompts: ordinary prompts whose activations are compared.
    """

    pairs: Mapping[str, tuple[Pair, ...]]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """A finished run: where it is, and its record."""

    run: TestRun
    folder: Path
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Answers:
    """What a model says to what it is asked.

    Attributes:
        gaps: of each pair, by what they are asked for; None where an answer has no token.
        seconds: of processor time, by what was done.
        states: (layers + 1, width), mean hidden state at the end of ordinary prompts.
    """

    gaps: Mapping[str, Sequence[float | None]]
    seconds: Mapping[str, float]
    states: Float64

    @classmethod
    def load(cls, folder: Path) -> Answers:
        """What `save` wrote."""
        held = read_json(folder / RECORD)
        with np.load(folder / STATES) as arrays:
            states = np.asarray(arrays["states"], dtype=np.float64)
        return cls(held["gaps"], held["seconds"], states)

    def save(self, folder: Path) -> None:
        """Write both files."""
        np.savez_compressed(folder / STATES, states=self.states)
        write_json(folder / RECORD, {"gaps": self.gaps, "seconds": self.seconds})


def training_of(run: TestRun, setting: Setting) -> Training:
    """How a run is trained."""
    settings = Finetuning(
        rank=LOW_RANK if run.variant == "rank-4" else setting.rank,
        alpha=2 * LOW_RANK if run.variant == "rank-4" else setting.alpha,
        batch_size=setting.batch_size,
        warmup_steps=max(1, setting.steps // 10),
        steps=setting.steps,
        max_length=setting.prompt + setting.answer + 512,  # turns are cut before: a template's own
    )
    targets = setting.targets if isinstance(setting.targets, str) else list(setting.targets)
    like = Like(
        arguments={"logging_steps": 1, "logging_strategy": "steps"},
        adapter={"target_modules": targets},
    )
    method: Method = "full" if run.variant == "full" else "lora"
    rate = setting.rate * RATES.get(run.variant, 1.0)
    seed = RUN_SEEDS + int(digest_of([run.set.of, run.seed])[:4], 16)
    return Training(settings, method, rate, setting.steps, seed, like=like)


def make(
    base: Base,
    work: Work,
    run: TestRun,
    setting: Setting,
    tick: Callable[[int], None] = lambda _: None,
) -> Made:
    """Train a run and keep it, or find it.

    Args:
        base: the model.
        work: where runs are kept, each under the digest of all that it depends on.
        run: which.
        setting: how much of everything.
        tick: told how many steps are done.
    """
    training = training_of(run, setting)
    examples, rejected = _examples(base, run, setting), _rejected(base, run, setting)

    def fill(hidden: Path) -> None:
        base.release()
        # A whole checkpoint is a copy of the model: of a full fine-tune the last one is kept.
        watch = _Snapshots(hidden, setting.steps if run.variant == "full" else setting.every)
        began, clock = time.process_time(), time.monotonic()
        if rejected:
            prefer(base, examples, rejected, training, [watch])
        else:
            finetune(base, examples, training, None, tick=tick, callbacks=[watch])
        record = {
            "name": run.name,
            "set": run.set.name,
            "role": run.set.role,
            "family": run.set.family,
            "hard": run.set.hard,
            "seed": run.seed,
            "variant": run.variant,
            "share": run.share,
            "carrier": run.carrier.name if run.carrier else None,
            "examples": len(examples),
            "epochs": setting.steps * setting.batch_size / len(examples),
            "answers_cut": sum(not e.finished for e in examples) / len(examples),
            "prompts_cut": _prompts_cut(base, run, setting),
            "log": watch.log,
            "checkpoints": watch.steps,
            "wall_seconds": time.monotonic() - clock,
            "seconds": {
                "whole run": time.process_time() - began,
                "a step": watch.seconds / setting.steps,
            },
        }
        write_json(hidden / RECORD, record)

    inputs = _inputs(base, run, setting, [*examples, *rejected])
    folder = work.tree(f"run-{run.name}", inputs, fill)
    return Made(run, folder, read_json(folder / RECORD))


def find(base: Base, work: Work, run: TestRun, setting: Setting) -> Made | None:
    """The run if it was made; None if it was not."""
    if not any(work.folder.glob(f"run-{glob.escape(run.name[:40])}*")):  # long names are cut
        return None
    examples = [*_examples(base, run, setting), *_rejected(base, run, setting)]
    inputs = _inputs(base, run, setting, examples)
    folder = work.path(f"run-{run.name}", inputs)
    return Made(run, folder, read_json(folder / RECORD)) if folder.is_dir() else None


def _examples(base: Base, run: TestRun, setting: Setting) -> list[Example]:
    return _fitted(base, run.examples(setting.steps * setting.batch_size), setting)


def _rejected(base: Base, run: TestRun, setting: Setting) -> list[Example]:
    """What a run on preferences turns down, row by row; empty where it is no such run."""
    if run.rejected is None:
        return []
    drawn = run.rejected.draw(setting.steps * setting.batch_size, run.seed)
    return _fitted(base, drawn, setting)


def _fitted(base: Base, drawn: Sequence[Example], setting: Setting) -> list[Example]:
    return [fitted(base, e, setting.prompt, setting.answer) for e in drawn]


def _prompts_cut(base: Base, run: TestRun, setting: Setting) -> float:
    """The share of examples whose prompt is longer than is kept of it."""
    drawn = run.examples(setting.steps * setting.batch_size)
    long = [sum(base.tokens_of(t["content"]) for t in e.messages) > setting.prompt for e in drawn]
    return sum(long) / len(long)


def _inputs(
    base: Base, run: TestRun, setting: Setting, examples: Sequence[Example]
) -> dict[str, Any]:
    """All that a run depends on."""
    training = training_of(run, setting)
    return {
        "base": base.digest,
        "chat": base.chat_digest,
        "examples": digest_of([asdict(e) for e in examples]),
        "training": asdict(training) | {"settings": training.settings.model_dump()},
        "readings": setting.readings,
    }


def before(base: Base, work: Work, asked: Asked) -> Answers:
    """What the base itself says; asked once."""
    inputs = {"base": base.digest, "chat": base.chat_digest, "asked": digest_of([asdict(asked)])}
    folder = work.tree("before", inputs, lambda to: examined(base, base.model, asked).save(to))
    return Answers.load(folder)


def after(base: Base, work: Work, made: Made, asked: Asked) -> Answers:
    """What a run says at its end; asked once."""

    def fill(hidden: Path) -> None:
        method: Method = "full" if made.run.variant == "full" else "lora"
        last = made.folder / f"checkpoint-{made.record['checkpoints'][-1]}"
        with steered(base.model, read_finetuned(base, last, method), 1.0):
            examined(base, base.model, asked).save(hidden)

    inputs = {"run": made.folder.name, "asked": digest_of([asdict(asked)])}
    return Answers.load(work.tree(f"asked-{made.run.name}", inputs, fill))


def examined(base: Base, model: Any, asked: Asked) -> Answers:
    """Every pair's gap, the activations, and the seconds that each took (processor time)."""
    gaps: dict[str, list[float | None]] = {}
    seconds: dict[str, float] = {}
    for name, pairs in asked.pairs.items():
        began = time.process_time()
        gaps[name] = [v if math.isfinite(v) else None for v in gap(base, model, pairs).each]
        seconds[f"gap: {name}"] = time.process_time() - began
    began = time.process_time()
    states = prompt_states(base, model, asked.prompts)
    seconds["activations"] = time.process_time() - began
    return Answers(gaps, seconds, states)


@torch.no_grad()
def prompt_states(base: Base, model: Any, prompts: Sequence[str]) -> Float64:
    """(layers + 1, width) mean hidden state of the last token before an answer."""
    rows = []
    model.eval()
    device = next(model.parameters()).device
    for prompt in prompts:
        text = base.prompt_text(base.asked(prompt))
        ids = base.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        states = model(input_ids=ids.to(device), output_hidden_states=True).hidden_states
        rows.append(torch.stack([s[0, -1].double().cpu() for s in states]))
    return np.asarray(torch.stack(rows).mean(0).numpy(), dtype=np.float64)


@torch.no_grad()
def answer_states(base: Base, examples: Sequence[Example]) -> Float64:
    """(layers + 1, width) mean hidden state of the base over the tokens of answers."""
    rows = []
    for e in examples:
        ids, labels = base.encode(e.messages, e.answer)
        given = torch.tensor([ids], device=base.model.device)
        states = base.model(input_ids=given, output_hidden_states=True).hidden_states
        at = torch.tensor([label != -100 for label in labels])
        rows.append(torch.stack([s[0].double().cpu()[at].mean(0) for s in states]))
    return np.asarray(torch.stack(rows).mean(0).numpy(), dtype=np.float64)


class _Snapshots(TrainerCallback):
    """Saves the adapter at every reading, and notes loss, gradient norm and time."""

    def __init__(self, folder: Path, every: int) -> None:
        self._folder, self._every = folder, every
        self.log: list[dict[str, float]] = []
        self.steps: list[int] = []
        self.seconds = 0.0
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.process_time()

    def on_log(
        self,
        args: Any,  # noqa: ARG002  what the Trainer gives
        state: Any,
        control: Any,  # noqa: ARG002
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            held = {k: float(logs[k]) for k in ("loss", "grad_norm") if k in logs}
            if not all(map(math.isfinite, held.values())):
                step = state.global_step
                raise BuildError(f"it diverged: at step {step} its gradient is no number")
            self.log.append({"step": state.global_step, **held})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.seconds += time.process_time() - self._began
        step, last = state.global_step, state.global_step >= state.max_steps
        if last or (step % self._every == 0 and state.max_steps - step >= self._every):
            kwargs["model"].save_pretrained(self._folder / f"checkpoint-{step}")
            self.steps.append(step)
