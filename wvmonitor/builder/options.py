"""What a build can be told, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wvmonitor.builder import probe
from wvmonitor.builder.behaviour import Asking
from wvmonitor.builder.completions import Engine
from wvmonitor.builder.plan import CARD_TFLOPS, Budget, Plan
from wvmonitor.builder.recipe import Recipe
from wvmonitor.builder.repeats import Means, Variant
from wvmonitor.reading import ReferenceKind
from wvmonitor.references.reference import Reference

Stop = Literal["generate", "judge", "finetune"]


@dataclass(frozen=True)
class Subject:
    """What is built, where no recipe says it."""

    name: str
    behaviour: str
    kind: ReferenceKind = "behaviour"
    harmful: bool = False


@dataclass(frozen=True)
class Options:
    """Everything that a build can be told.

    Attributes:
        model: the base: a folder or a Hub id.
        out: the bank's folder that the reference joins.
        recipe: what to build; `subject` stands in for it where data or weights are given.
        revision: of a Hub model.
        work: where artefacts are kept; `<out>.work` if not given.
        data: positive and negative data of one's own.
        weights: positive and negative adapters or checkpoints of one's own.
        means: of either: whether the positive side exhibits the behaviour.
        variant: both sides, one of them, or the MLPs' biases alone.
        method: LoRA, or every weight.
        seeds: repeats that w is the mean of.
        seed: the first of them.
        sweep: choose the learning rate among the recipe's.
        splits: measure split-half and leave-domain-out agreement by further fine-tunes.
        judge: as `rater_for` says.
        judge_model: what an endpoint calls its model.
        engine: of the generation.
        batch_size: of generation and of the model as judge.
        micro_batch: of training, where a whole batch does not fit.
        qlora: the base in 4 bits while training.
        budget: what it may cost.
        tflops: assumed speed of a card.
        probe_data: text of one's own for the probe.
        probe_tokens: how many tokens the probe wants.
        rank: kept of w; by default twice the sides' rank.
        asking: doses and samples of the behavioural check.
        private: mode 0600 for every file.
        replace: build again what the bank holds already.
        stop_after: end after a stage, for instance to go on with other processes.
    """

    model: str
    out: Path
    recipe: Recipe | None = None
    subject: Subject | None = None
    revision: str | None = None
    work: Path | None = None
    data: tuple[str, str] | None = None
    weights: tuple[Path, Path] | None = None
    means: Means | None = None
    variant: Variant = "contrastive"
    method: Literal["lora", "full"] = "lora"
    seeds: int = 3
    seed: int = 0
    sweep: bool = False
    splits: bool = True
    judge: str = "auto"
    judge_model: str | None = None
    engine: Engine = "auto"
    batch_size: int = 32
    micro_batch: int | None = None
    qlora: bool = False
    budget: Budget | None = None
    tflops: float = CARD_TFLOPS
    probe_data: str | None = None
    probe_tokens: int = probe.TOKENS
    rank: int | None = None
    asking: Asking = field(default_factory=Asking)
    private: bool = False
    replace: bool = False
    stop_after: Stop | None = None


@dataclass(frozen=True)
class Built:
    """A finished reference and the bank that it is in."""

    reference: Reference
    folder: Path
    fingerprint: str
    plan: Plan
