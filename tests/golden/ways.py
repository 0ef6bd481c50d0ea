"""One series of weights on its four ways into the judge: live, scanned, watched and rescored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from wvmonitor import Monitor, MonitorSettings, ReferenceBank, Run
from wvmonitor.detection.calibration import Calibration
from wvmonitor.detection.verdict import Verdict
from wvmonitor.journal.reader import JournalReader
from wvmonitor.outputs.exporter import Observation
from wvmonitor.outputs.scan_record import CheckpointResult
from wvmonitor.references import Reference
from wvmonitor.references.card import BaseIdentity
from wvmonitor.scan.rescore import rescore
from wvmonitor.scan.scan import scan
from wvmonitor.scan.watch import Watcher, WatchOptions
from wvmonitor.testing import planted_vector
from wvmonitor.vectors.task_vector import TaskVector

EVERY = 10
RATE = 1e-3
NAME = "run"
RECORDED = "recorded"
"""The live run, which is recorded to be rescored."""


@dataclass(frozen=True)
class Way:
    """How a series of weights is judged, whichever way it comes in.

    Attributes:
        base, bank: what it is measured with.
        vectors: the task vector at each reading: low-rank, of one rank.
        calibration: the file of one, or None for the published rules.
        optimizer: the run's; None where nobody says.
        planned: whether the run's length is known.
        expected: behaviours whose drift is wanted.
        window: readings in a window.
        rows: how far the rows of three tokens are trained beside the blocks, in ‖τ‖.
        strict_coverage: whether verdicts must speak of the whole change.
    """

    base: Path
    bank: Path
    vectors: Sequence[TaskVector]
    calibration: Path | None = None
    optimizer: str | None = "adamw"
    planned: bool = True
    expected: tuple[str, ...] = ()
    window: int = 10
    rows: float = 0.0
    strict_coverage: bool = False

    @property
    def steps(self) -> list[int]:
        """The optimiser step of each reading."""
        return [EVERY * (i + 1) for i in range(len(self.vectors))]

    @property
    def planned_steps(self) -> int | None:
        """The run's length, where it is known."""
        return self.steps[-1] if self.planned else None

    def settings(self, **more: Any) -> MonitorSettings:
        """Of monitor and sidecar alike."""
        return MonitorSettings(
            references=self.bank,
            base=self.base,
            calibration=self.calibration,
            every_n_steps=EVERY,
            max_overhead=1.0,
            expected=self.expected,
            window=self.window,
            strict_coverage=self.strict_coverage,
            **more,
        )


@dataclass
class Seen:
    """What the four ways said, in the order of steps."""

    live: list[Observation] = field(default_factory=list)
    scanned: list[CheckpointResult] = field(default_factory=list)
    watched: list[Observation] = field(default_factory=list)
    rescored: list[CheckpointResult] = field(default_factory=list)


class Capture:
    """An exporter that keeps observations, and goes between them where it is told to."""

    def __init__(self, seen: list[Observation], between: Callable[[Observation], None]) -> None:
        self._seen, self._between = seen, between

    def export(self, observation: Observation) -> None:
        """Keep it."""
        self._seen.append(observation)
        self._between(observation)

    def error(self, where: str) -> None:
        """Nothing may fail here."""
        raise AssertionError(f"the monitor's {where} failed")

    def close(self) -> None:
        """Nothing to let go of."""


def adapted(way: Way) -> Any:
    """The base with a LoRA adapter that has not moved."""
    names = way.vectors[0].names()
    rank = next(u.right.shape[0] for _, u in way.vectors[0].updates())  # type: ignore[union-attr]
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(way.base, dtype=torch.float32)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(n.removesuffix(".weight") for n in names),
        trainable_token_indices=[3, 5, 8] if way.rows else None,
    )
    return get_peft_model(base, config)


def move(model: Any, vector: TaskVector, rows: float = 0.0) -> None:
    """Put a task vector into the adapter, and move the rows that are trained besides."""
    updates = dict(vector.updates())
    embedding = model.get_input_embeddings().weight.detach()
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name and rows:
            step = torch.ones_like(parameter) * rows / parameter.numel() ** 0.5
            parameter.data.copy_(embedding[[3, 5, 8]] + step)
    with torch.no_grad():
        for name, module in model.base_model.model.named_modules():
            update = updates.get(f"{name}.weight")
            if update is not None:
                module.lora_A["default"].weight.copy_(update.right)  # type: ignore[union-attr]
                module.lora_B["default"].weight.copy_(update.left)  # type: ignore[union-attr]


def live(
    way: Way, folder: Path, between: Callable[[Observation], None] = lambda _: None
) -> Iterator[Observation]:
    """Train along the series under a monitor, which records it, and saves every checkpoint."""
    model, seen = adapted(way), list[Observation]()
    settings = way.settings(run=NAME, journal_dir=folder / RECORDED, record=True)
    monitor = Monitor(settings=settings, exporters=[Capture(seen, between)])
    with closing(monitor):
        run = Run(planned_steps=way.planned_steps, optimizer=way.optimizer, learning_rate=RATE)
        monitor.start(model, run)
        for step, vector in zip(way.steps, way.vectors, strict=True):
            move(model, vector, way.rows)
            model.save_pretrained(folder / "runs" / NAME / f"checkpoint-{step}")
            monitor.observe(model, step, force=step == way.steps[-1])
            assert monitor.journal is not None
            monitor.journal.flush()
    for step in way.steps:
        state = {
            "global_step": step,
            "max_steps": way.planned_steps or 0,
            "log_history": [{"learning_rate": RATE}],
        }
        path = folder / "runs" / NAME / f"checkpoint-{step}" / "trainer_state.json"
        path.write_text(json.dumps(state))
    yield from seen[1:]  # the reading before the first step has no checkpoint


def scanned(way: Way, folder: Path) -> Iterator[CheckpointResult]:
    """Scan the checkpoints of `live`."""
    calibration = None if way.calibration is None else Calibration.load(way.calibration)
    yield from scan(
        [folder / "runs" / NAME],
        ReferenceBank.load(way.bank),
        base=way.base,
        calibration=calibration,
        optimizer=way.optimizer,
        strict_coverage=way.strict_coverage,
    )


def watched(
    way: Way, folder: Path, between: Callable[[Observation], None] = lambda _: None
) -> Iterator[Observation]:
    """Let a sidecar find the checkpoints of `live`."""
    seen: list[Observation] = []
    options = WatchOptions(every=0.01, settle=0.01, optimizer=way.optimizer)
    with Watcher(folder / "runs", way.settings(), options) as watcher:
        watcher._exporters.append(Capture(seen, between))
        watcher.poll()
        watcher.poll()
    yield from seen


def rescored(way: Way, folder: Path) -> Iterator[CheckpointResult]:
    """Rescore what `live` recorded."""
    calibration = None if way.calibration is None else Calibration.load(way.calibration)
    found = rescore(
        folder / RECORDED,
        ReferenceBank.load(way.bank),
        calibration=calibration,
        strict_coverage=way.strict_coverage,
    )
    yield from (result for result in found if result.step)


def every_way(way: Way, folder: Path) -> Seen:
    """Walk all four."""
    return Seen(
        live=list(live(way, folder)),
        scanned=list(scanned(way, folder)),
        watched=list(watched(way, folder)),
        rescored=list(rescored(way, folder)),
    )


def journal_of_watch(folder: Path) -> JournalReader:
    """What the sidecar of `watched` wrote."""
    return JournalReader(folder / "runs" / ".wvmonitor")


def drift(base: Path, bank: Path, amounts: Sequence[float], *, rank: int) -> list[TaskVector]:
    """Task vectors of one rank that go further at random each time, and by so much to evil."""
    noise = planted_vector(base, seed=7, rank=rank // 2)
    evil = ReferenceBank.load(bank)["evil"].vector.compress(rank - rank // 2)
    evil = evil.select(noise.names().__contains__)
    return [noise * (0.6 + 0.3 * i) + evil * amount for i, amount in enumerate(amounts)]


def as_relative(bank: Path, folder: Path) -> Path:
    """The same bank as if it had been made from a relative of its base, which it declares."""
    loaded = ReferenceBank.load(bank)
    base = BaseIdentity(id="relative", digest="0" * 64, relatives=(loaded.base.digest,))
    moved: list[Reference] = []
    for reference in loaded:
        origin = replace(reference.vector.origin, base_digest=base.digest)
        vector = TaskVector.of(dict(reference.vector.updates()), origin)
        card = reference.card.model_copy(update={"base": base})
        moved.append(replace(reference, card=card, vector=vector))
    ReferenceBank(moved, probe=loaded.probe).save(folder)
    return folder


def states(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """The states by behaviour."""
    return {v.reference: v.state for v in verdicts}
