"""Many short fine-tunes of one base, side by side where there are cores, each kept once.

A fine-tune is an artefact of the work folder under the digest of all that it depends on, so that an
interrupted bank goes on with the next one. Those that are watched leave a journal, as any watched
run does; those that become references leave their weights.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import TrainerCallback

from wvmonitor.builder.base import Base
from wvmonitor.builder.examples import Example, Pair
from wvmonitor.builder.finetune import Training, finetune
from wvmonitor.builder.gap import gap, log_probabilities
from wvmonitor.builder.stages import Row, Work, digest_of
from wvmonitor.errors import BuildError
from wvmonitor.files.documents import read_json, write_json
from wvmonitor.live.monitor import Monitor
from wvmonitor.live.optimizer import optimizer_family
from wvmonitor.live.run import Run
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.references.bank import ReferenceBank

MEASURED_FILE = "measured.json"
READINGS = 10
"""Readings of a watched run, at most; their number is what a calibration covers."""
RECORD_LIMIT_GB = 10.0
"""Most that the task vectors of a bank's watched runs may take on disk for them to be kept."""
_bases: dict[tuple[str, str | None], Base] = {}
_banks: dict[Path, ReferenceBank] = {}


@dataclass(frozen=True)
class FineTune:
    """One fine-tune and what is wanted of it.

    Attributes:
        name: what it is, for people and for its folder.
        examples: what it is trained on.
        training: how.
        keep: whether its weights are kept.
        bank: folder of the bank that it is watched against; None where it is not.
        fingerprint: of that bank.
        record: whether its task vectors are kept at every reading, so that a bank that changes
            later need not train it again.
        pairs: whose gap is measured at the end.
        ordinary: examples whose loss is measured at the end.
    """

    name: str
    examples: tuple[Example, ...]
    training: Training
    keep: bool = False
    bank: Path | None = None
    fingerprint: str = ""
    record: bool = False
    pairs: tuple[Pair, ...] = ()
    ordinary: tuple[Example, ...] = ()

    def inputs(self, base: Base) -> Mapping[str, Any]:
        """All that its outcome depends on."""
        training = asdict(self.training)
        settings = self.training.settings.model_dump(exclude={"sweep"})
        return {
            "base": base.digest,
            "chat": base.chat_digest,
            "examples": digest_of([asdict(e) for e in self.examples]),
            "training": training | {"settings": settings},
            "keep": self.keep,
            "bank": "recorded" if self.record else self.fingerprint,
            "pairs": digest_of([asdict(p) for p in self.pairs]),
            "ordinary": digest_of([asdict(e) for e in self.ordinary]),
        }


@dataclass(frozen=True)
class Done:
    """A finished fine-tune: where it is, and what was measured of it."""

    folder: Path
    measured: Mapping[str, float] = field(default_factory=dict)


def carry_out(
    base: Base,
    work: Work,
    wanted: Sequence[FineTune],
    jobs: int,
    tick: Callable[[int], None] = lambda _: None,
) -> list[Done]:
    """Every fine-tune's outcome, in their order; those that are there already are not made again.

    Args:
        base: the model that is fine-tuned.
        work: where they are kept.
        wanted: what to do.
        jobs: how many at once, each a process with one thread; 1 is this process, all threads.
        tick: told how many optimiser steps of all are done.
    """
    places = [work.path(f"run-{w.name}", w.inputs(base)) for w in wanted]
    waiting = [w for w, p in zip(wanted, places, strict=True) if not p.is_dir()]
    done = sum(w.training.steps for w in wanted) - sum(w.training.steps for w in waiting)
    tick(done)
    if jobs == 1 or len(waiting) == 1:
        for one in waiting:
            _carry_out(base, work, one, lambda step, before=done: tick(before + step))  # type: ignore[misc]
            done += one.training.steps
    elif waiting:
        base.release()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(jobs, len(waiting)), context, initializer=_alone) as pool:
            futures = {
                pool.submit(_in_process, base.name, base.revision, work.folder, one): one
                for one in waiting
            }
            try:
                for future in as_completed(futures):
                    future.result()
                    done += futures[future].training.steps
                    tick(done)
            except BrokenProcessPool:
                raise BuildError(
                    "a fine-tune's process was killed, for want of memory as a rule: what is "
                    "finished is kept; run the same again with fewer --jobs (a script that calls "
                    'wvmonitor.prepare does so under `if __name__ == "__main__":`)'
                ) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [_read(p) for p in places]


def _alone() -> None:
    torch.set_num_threads(1)


def _in_process(name: str, revision: str | None, folder: Path, one: FineTune) -> None:
    key = name, revision
    base = _bases.setdefault(key, Base(name, revision))
    _carry_out(base, Work(folder), one, lambda _: None)


def _carry_out(base: Base, work: Work, one: FineTune, tick: Callable[[int], None]) -> None:
    def make(hidden: Path) -> None:
        base.release()
        watching = [] if one.bank is None else [_Watched(one, hidden)]
        after: Row = {}
        with _quiet_monitor():
            finetune(
                base,
                one.examples,
                one.training,
                hidden if one.keep else None,
                tick=tick,
                callbacks=watching,
                examine=lambda model: after.update(
                    measured(base, model, one.pairs, one.ordinary, one.training.settings.max_length)
                ),
            )
        write_json(hidden / MEASURED_FILE, after)

    work.tree(f"run-{one.name}", one.inputs(base), make)


@contextmanager
def _quiet_monitor() -> Iterator[None]:
    """Nobody need hear what published rules say of runs that are judged when all are there."""
    logger = logging.getLogger(Monitor.__module__.rpartition(".")[0])
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def measured(
    base: Base, model: Any, pairs: Sequence[Pair], ordinary: Sequence[Example], longest: int
) -> dict[str, float]:
    """The gap on pairs and the loss on ordinary text, in nats a token; whichever is asked for.

    What a model that diverged says is no number, and is left out.
    """
    found: dict[str, float] = {}
    if known := gap(base, model, pairs, longest).known if pairs else []:
        found["gap"] = fmean(known)
    values = log_probabilities(base, model, ordinary, longest) if ordinary else []
    if known := [v for v in values if math.isfinite(v)]:
        found["loss"] = -sum(known) / len(known)
    return found


def _read(folder: Path) -> Done:
    stored = read_json(folder / MEASURED_FILE)
    return Done(folder, {k: float(v) for k, v in stored.items()})


class _Watched(TrainerCallback):
    """The monitor, without anything that a user's environment asks of runs of their own."""

    def __init__(self, one: FineTune, folder: Path) -> None:
        assert one.bank is not None  # noqa: S101  only watched runs come here
        self._one, self._folder = one, folder
        self._every = math.ceil(one.training.steps / READINGS)
        bank = _banks.get(one.bank)
        if bank is None or bank.fingerprint != one.fingerprint:
            bank = _banks[one.bank] = ReferenceBank.load(one.bank)
        settings = MonitorSettings.model_construct(
            journal_dir=folder,
            run=one.name,
            every_n_steps=self._every,
            max_overhead=1.0,
            window=max(2, READINGS // 4),
            on_monitor_failure="stop",
            record=one.record,
            record_limit_gb=RECORD_LIMIT_GB,
        )
        self._monitor = Monitor(bank, settings=settings)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._monitor.start(
            kwargs["model"],
            Run(
                name=self._one.name,
                planned_steps=state.max_steps,
                optimizer=optimizer_family(kwargs.get("optimizer")),
                learning_rate=self._one.training.learning_rate,
                objective="sft",
            ),
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        step = state.global_step
        if step % self._every == 0 or step >= state.max_steps:
            self._monitor.observe(kwargs["model"], step, force=step >= state.max_steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._monitor.close()
