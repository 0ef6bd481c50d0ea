"""The scan: checkpoints in, verdicts out, as they finish, on any `concurrent.futures.Executor`.

Workers measure (one pass over each checkpoint against all references); judging is arithmetic on a
few numbers and happens here, in the order of each run's steps, because a verdict on a trajectory
depends on the readings before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path

from wvmonitor.detection.calibration import Calibration
from wvmonitor.detection.scores import ReferenceScores, Scores
from wvmonitor.detection.verdict import JudgeState, RunContext, Verdict, judge, overall
from wvmonitor.errors import UnknownReferenceError
from wvmonitor.files.storage import Location
from wvmonitor.reading import Geometry
from wvmonitor.references import ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.references.store import CALIBRATION_FILE
from wvmonitor.scan.measure import Job, Measured, SharedBank, measure
from wvmonitor.scan.results import (
    SCAN_SCORES,
    CheckpointResult,
    ControlResult,
    Failure,
    ReferenceResult,
    Values,
    failed,
    failure_of,
    finite,
)
from wvmonitor.scan.targets import Target, find_targets


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
    path = folder / CALIBRATION_FILE if calibration is None else Path(calibration)
    if calibration is None and not path.is_file():
        return bank, None
    return bank, Calibration.load(path, bank=bank.fingerprint)


def scan(
    targets: Iterable[Location | Target],
    bank: ReferenceBank,
    *,
    base: Location | None = None,
    calibration: Calibration | None = None,
    executor: Executor | None = None,
    behaviours: Sequence[str] | None = None,
    optimizer: str | None = None,
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
        behaviours: the references to pass verdicts on; None means every behaviour of the bank.
        optimizer: the runs' optimiser, for calibrations that speak of some optimisers only.

    Raises:
        UnknownReferenceError: one of `behaviours` is none of the bank's.
        CalibrationError: the calibration belongs to another bank.
    """
    wanted = _wanted(bank, behaviours)
    if calibration is not None:
        calibration.require_bank(bank.fingerprint)
    found: list[Target] = []
    for target in targets:
        found += [target] if isinstance(target, Target) else find_targets([target])
    jobs = [_job(t, SharedBank(bank), base, calibration) for t in found]
    runs = {t.run: _Run(calibration, optimizer, wanted) for t in found if t.run is not None}
    waiting: dict[str, list[int]] = {}
    for index, target in enumerate(found):
        if target.run is not None:
            waiting.setdefault(target.run, []).append(index)
    done: dict[int, Measured | Failure] = {}
    for index, outcome in _outcomes(jobs, executor):
        run = found[index].run
        if run is None:
            yield _Run(calibration, optimizer, wanted).result(found[index], outcome)
            continue
        done[index] = outcome
        while waiting[run] and waiting[run][0] in done:
            first = waiting[run].pop(0)
            yield runs[run].result(found[first], done.pop(first))


def _wanted(bank: ReferenceBank, behaviours: Sequence[str] | None) -> frozenset[str]:
    if behaviours is None:
        return frozenset(bank.behaviours)
    for name in behaviours:
        if name not in bank.behaviours:
            raise UnknownReferenceError(
                f"no behaviour {name!r} in this bank; it holds {', '.join(bank.behaviours)}"
            )
    return frozenset(behaviours)


def _job(
    target: Target, bank: SharedBank, base: Location | None, calibration: Calibration | None
) -> Job:
    where = None if base is None else str(base)
    if calibration is None:
        return Job(target, bank, where)
    ridge: dict[Geometry, float] = {}
    if calibration.ridge is not None:
        ridge[calibration.geometry] = calibration.ridge
    return Job(target, bank, where, calibration.components, ridge)


def _outcomes(
    jobs: Sequence[Job], executor: Executor | None
) -> Iterator[tuple[int, Measured | Failure]]:
    """Each job's index and outcome, as they finish."""
    pending: dict[Future[Measured | Failure], int] = {}
    try:
        for index, job in enumerate(jobs):
            if job.target.error is not None:
                yield index, job.target.error
            elif executor is None:
                yield index, measure(job)
            else:
                pending[executor.submit(measure, job)] = index
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), _outcome(future)
    finally:
        for future in pending:
            future.cancel()


def _outcome(future: Future[Measured | Failure]) -> Measured | Failure:
    try:
        return future.result()
    except Exception as error:  # noqa: BLE001  a lost worker is a result too, not the scan's end
        return failure_of(error)


class _Run:
    """The judge of one run, or of one lone checkpoint."""

    def __init__(
        self, calibration: Calibration | None, optimizer: str | None, wanted: frozenset[str]
    ) -> None:
        self._calibration = calibration
        self._optimizer = optimizer
        self._wanted = wanted
        self._state = JudgeState()

    def result(self, target: Target, outcome: Measured | Failure) -> CheckpointResult:
        """Judge the next checkpoint of the run."""
        if isinstance(outcome, Failure):
            return failed(target.path, outcome, run=target.run, step=target.step)
        context = self._context(target, outcome)
        verdicts, self._state = judge(outcome.scores, context, self._calibration, self._state)
        return _result(
            target, outcome, {n: v for n, v in verdicts.items() if n in self._wanted}
        )

    def _context(self, target: Target, measured: Measured) -> RunContext:
        # Files do not say which optimiser made them (training_args.bin is a pickle). A trajectory
        # whose optimiser is not known is held against the band as lone checkpoints are, which
        # says so in the verdict's reason; the band itself covers whole trajectories.
        untold = self._calibration is not None and self._optimizer is None
        return RunContext(
            method=measured.method,
            rank=measured.rank,
            optimizer=self._optimizer,
            learning_rate=target.learning_rate,
            base=measured.relation,
            lone=target.run is None or untold,
            planned_steps=target.planned_steps,
            readings_planned=target.readings,
        )


def _result(
    target: Target, measured: Measured, verdicts: dict[str, Verdict]
) -> CheckpointResult:
    scores = measured.scores
    references: dict[str, ReferenceResult] = {}
    controls: dict[str, ControlResult] = {}
    for name, reference in scores.references.items():
        values, dose = _values(reference, scores), finite(reference.dose)
        if name in verdicts:
            verdict = verdicts[name]
            references[name] = ReferenceResult(
                scores=values,
                dose=dose,
                score=finite(verdict.score),
                threshold=finite(verdict.threshold),
                calibration=verdict.calibration,
                verdict=verdict.state,
                reason=verdict.reason,
            )
        elif reference.kind == "control":
            controls[name] = ControlResult(values, dose)
    return CheckpointResult(
        path=target.path,
        step=scores.step,
        norm=finite(scores.norm),
        coverage=finite(scores.coverage.get("frobenius")),
        verdict=overall(verdicts),
        references=references,
        error=None,
        controls=controls,
        component_shares={c: finite(s) for c, s in measured.component_shares.items()},
        warnings=tuple(dict.fromkeys((*target.warnings, *measured.warnings, *scores.warnings))),
        run=target.run,
        progress=finite(scores.progress),
        method=measured.method,
        rank=measured.rank,
        bank=scores.bank,
    )


def _values(reference: ReferenceScores, scores: Scores) -> Values:
    return {
        geometry: {n: finite(reference.values.get(geometry, {}).get(n)) for n in SCAN_SCORES}
        for geometry in scores.coverage
    }
