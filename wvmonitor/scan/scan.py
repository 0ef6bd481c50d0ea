"""The scan: checkpoints in, verdicts out, as they finish, on any `concurrent.futures.Executor`.

Workers measure (one pass over each checkpoint against all references); judging is arithmetic on a
few numbers and happens here, in the order of each run's steps, because a verdict on a trajectory
depends on the readings before it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

from wvmonitor.detection.calibration import Calibration
from wvmonitor.detection.judge import Judge
from wvmonitor.detection.judgement import JudgeState
from wvmonitor.files.storage import Location, is_url, local_path
from wvmonitor.outputs.scan_record import CheckpointResult, Failure, failed, failure_of, record_of
from wvmonitor.reading import Geometry
from wvmonitor.references import ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.calibrated import calibration_of
from wvmonitor.scan.cache import CacheView, ScanCache
from wvmonitor.scan.measure import Job, Outcome, SharedBank
from wvmonitor.scan.results import Known, Measured
from wvmonitor.scan.targets import Target, find_targets
from wvmonitor.scan.work import outcomes
from wvmonitor.sources.identity import KnownDigest, known_digest


def open_bank(
    references: str | None = None, calibration: str | None = None
) -> tuple[ReferenceBank, Calibration | None]:
    """The bank to scan with and its calibration.

    Args:
        references: the bank's folder; the bundled tiny organism's if not given, which fits
            checkpoints of that model only.
        calibration: its JSON file; the one beside the bank, if there is one, if not given.

    Raises:
        WVMonitorError: as `ReferenceBank.load` and `Calibration.load` say.
    """
    folder = bundled_path("tiny-organism", "bank") if references is None else Path(references)
    bank = ReferenceBank.load(folder)
    return bank, calibration_of(bank, calibration)


def unscanned(targets: Iterable[Target], error: Exception) -> Iterator[CheckpointResult]:
    """Results for targets that one error keeps from being judged: a broken bank, for instance."""
    failure = failure_of(error)
    for target in targets:
        yield failed(target.path, failure, run=target.run, step=target.step)


def scan(
    targets: Iterable[Location | Target],
    bank: ReferenceBank,
    *,
    base: Location | None = None,
    calibration: Calibration | None = None,
    executor: Executor | None = None,
    workers: int = 1,
    behaviours: Sequence[str] | None = None,
    optimizer: str | None = None,
    cache: ScanCache | None = None,
    ordered: bool = False,
    strict: bool = False,
    strict_coverage: bool = False,
) -> Iterator[CheckpointResult]:
    """Judge checkpoints by their weights.

    Results come as they finish; within a run's trajectory in the order of its steps. A checkpoint
    that cannot be judged yields a result with an error, and the scan goes on.

    Args:
        targets: paths of adapters, checkpoints or runs' output folders (see `find_targets`).
        bank: the references.
        base: folder of the model that training started from, where the checkpoints don't say.
        calibration: of this bank; None judges by the published rules, which warn at most.
        executor: where to measure; None measures here, one after the other.
        workers: how many workers it has: so many share what would keep only some of them busy.
        behaviours: the references to pass verdicts on; None means every behaviour of the bank.
        optimizer: the runs' optimiser, for calibrations that cover some optimisers only.
        cache: keeps what is measured, and spares what was measured before.
        ordered: whether results are to come in the order of the targets instead.
        strict: whether weights or code beside what was judged are an error of the checkpoint;
            implies `strict_coverage`.
        strict_coverage: whether a verdict must cover the whole change, embeddings and head
            included, rather than of the parts that scores look at.

    Raises:
        UnknownReferenceError: one of `behaviours` is none of the bank's.
        CalibrationError: the calibration belongs to another bank.
    """
    judge = Judge.of(
        bank,
        calibration,
        behaviours=behaviours,
        base=base,
        strict_coverage=strict or strict_coverage,
    )
    judges = _Trajectories(judge, optimizer, bank.base.id)

    def results() -> Iterator[CheckpointResult]:
        checkpoints = _found(targets)
        shared, view = SharedBank(bank), None if cache is None else cache.view()
        digest = None if executor is None or base is None else _digest(base)
        jobs = [_job(t, shared, base, calibration, view, digest) for t in checkpoints]
        # Results that must come one after another share a line; a single checkpoint has its own.
        lines = [0 if ordered else t.run or index for index, t in enumerate(checkpoints)]
        queues: dict[int | str, deque[int]] = {}
        for index, line in enumerate(lines):
            queues.setdefault(line, deque()).append(index)
        done: dict[int, Measured | Failure] = {}
        for finished, outcome in outcomes(jobs, executor, workers):
            done[finished] = _recalled(outcome, cache)
            queue = queues[lines[finished]]
            while queue and queue[0] in done:
                index = queue.popleft()
                yield judges.result(checkpoints[index], done.pop(index))

    return (result.strictly() for result in results()) if strict else results()


def _found(targets: Iterable[Location | Target]) -> list[Target]:
    distinct: list[Target] = []
    given: set[str] = set()
    for target in targets:
        if isinstance(target, Target):
            distinct.append(target)
        elif str(target) not in given:
            given.add(str(target))
            distinct += find_targets([target])
    return distinct


def _digest(base: Location) -> KnownDigest | None:
    try:
        return known_digest(base)  # once, with all cores, and not by every worker
    except Exception:  # noqa: BLE001  each checkpoint's own record says what is wrong
        return None


def _job(
    target: Target,
    bank: SharedBank,
    base: Location | None,
    calibration: Calibration | None,
    cache: CacheView | None,
    digest: KnownDigest | None,
) -> Job:
    job = Job(target, bank, None if base is None else str(base), cache=cache, base_digest=digest)
    if calibration is None:
        return job
    ridge: dict[Geometry, float] = {}
    if calibration.ridge is not None:
        ridge[calibration.geometry] = calibration.ridge
    return replace(job, components=calibration.components, ridge=ridge)


def _recalled(outcome: Outcome, cache: ScanCache | None) -> Measured | Failure:
    """The outcome itself, kept for the next scan, or what an earlier scan kept."""
    if isinstance(outcome, Known):
        cached = None if cache is None else cache.get(outcome.key)
        return cached or Failure("SettingsError", "the cache lost an entry: scan again")
    if isinstance(outcome, Measured) and cache is not None:
        cache.put(outcome)
    return outcome


class _Trajectories:
    """Judges what was measured; remembers of each run where judging it has come to."""

    def __init__(self, judge: Judge, optimizer: str | None, base_name: str) -> None:
        self.judge = judge
        self._optimizer, self._base_name = optimizer, base_name
        self._states: dict[str, JudgeState] = {}

    def result(self, target: Target, outcome: Measured | Failure) -> CheckpointResult:
        """Judge a single checkpoint, or the next one of a run."""
        if isinstance(outcome, Failure):
            return failed(
                target.path, outcome, run=target.run, step=target.step, notices=target.notices
            )
        # What was measured may come from a cache, where it had another place in another run.
        scores = replace(outcome.statistics.scores, step=target.step, progress=target.progress)
        judgement = self.judge(
            replace(outcome.statistics, scores=scores),
            self.judge.context(outcome, target.context(self._optimizer)),
            self._states.get(target.run or "", JudgeState()),
            last=target.last,
        )
        if target.run is not None:
            self._states[target.run] = judgement.state
        return replace(
            record_of(judgement, target.path, (*target.warnings, *outcome.warnings)),
            run=target.run,
            method=outcome.method,
            rank=outcome.rank,
            saved_at=_saved_at(target.path),
            base=outcome.base_digest,
            base_name=self._base_name,
            notices=target.notices,
        )


def _saved_at(path: str) -> float | None:
    """When the newest of a local checkpoint's weight files was written."""
    if is_url(path):
        return None
    where = local_path(path)
    try:
        if not where.is_dir():
            return where.stat().st_mtime
        with os.scandir(where) as entries:
            weights = [entry for entry in entries if entry.name.endswith(".safetensors")]
            return max((entry.stat().st_mtime for entry in weights), default=None)
    except OSError:
        return None
