"""Old runs, judged anew: snapshots of readings against references that came later.

The one way again: snapshot → TaskVector → bank.measure → scores → verdicts, with what the journal
knows of the run. A reading that the journal has and the recorder has not is not judged, and says
so: it is never left out in silence.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from wvmonitor.detection.calibration import Calibration
from wvmonitor.detection.judge import Judge
from wvmonitor.detection.judgement import JudgeState
from wvmonitor.errors import InputError, MissingPathError, WVMonitorError
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.records import JournalRow
from wvmonitor.journal.snapshots import folder_of, path_of, read_snapshot
from wvmonitor.outputs.scan_record import CheckpointResult, failed, failure_of, record_of
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.scan.results import FailOn
from wvmonitor.scan.scan import open_bank
from wvmonitor.scan.writers import WRITERS, deliver, format_of, write_file
from wvmonitor.vectors.task_vector import TaskVector


def rescore(
    source: str | Path,
    bank: ReferenceBank,
    *,
    run: str | None = None,
    calibration: Calibration | None = None,
    behaviours: Sequence[str] | None = None,
    strict_coverage: bool = False,
) -> Iterator[CheckpointResult]:
    """Judge a recorded run by another bank, reading by reading in the order of its steps.

    Args:
        source: the run's output folder, or its `wvmonitor.db`.
        bank: the references.
        run: the run's id; the latest one recorded there if not given.
        calibration: of this bank; None judges by the published rules, which warn at most.
        behaviours: the references to pass verdicts on; None means every behaviour of the bank.
        strict_coverage: whether a verdict must cover the whole change.

    Raises:
        JournalError: there is no journal, or it cannot be read.
        InputError: nothing was recorded of the run.
        UnknownReferenceError: one of `behaviours` is none of the bank's.
        CalibrationError: the calibration belongs to another bank.
    """
    Judge.of(bank, calibration, behaviours=behaviours)  # what does not go together is said now
    reader = JournalReader(source)
    name = _recorded(reader, run)
    rows = reader.trajectory(name)
    components = rows[0].scores.components if rows and calibration is None else None
    judge = Judge.of(
        bank,
        calibration,
        behaviours=behaviours,
        components=components,
        strict_coverage=strict_coverage,
    )
    return _rescored(reader, name, rows, bank, judge)


def _recorded(reader: JournalReader, run: str | None) -> str:
    """The run to judge."""
    known = reader.runs()
    recorded = [r for r in known if any(folder_of(reader.path, r).glob("*.safetensors"))]
    if run is None and recorded:
        return recorded[-1]
    if run in recorded:
        return str(run)
    if run is not None and run not in known:
        raise InputError(f"no run {run!r} in '{reader.path}'; it holds {', '.join(known)}")
    raise InputError(
        f"nothing was recorded of {run or 'any run'} in '{reader.path}': its readings' numbers are "
        "kept, its task vectors are not; set record=True before the next run, or scan its "
        "checkpoints"
    )


def _rescored(
    reader: JournalReader, run: str, rows: Sequence[JournalRow], bank: ReferenceBank, judge: Judge
) -> Iterator[CheckpointResult]:
    contexts = {a.attempt: a.context for a in reader.attempts(run)}
    state, acknowledged = JudgeState(), reader.acknowledged(run)
    for row in rows:
        path = path_of(reader.path, run, row.attempt, row.step)
        try:
            tau = _recorded_vector(path, row.step)
            reading = bank.measure(tau, step=row.step, progress=row.scores.progress)
            context = judge.context(tau.origin, replace(contexts[row.attempt], lone=False))
            judgement = judge(
                reading, context, state, acknowledged=acknowledged, last=row is rows[-1]
            )
        except WVMonitorError as error:
            yield failed(str(path), failure_of(error), run=run, step=row.step)
            continue
        state = judgement.state
        record = record_of(judgement, str(path))
        yield replace(record, run=run, method=tau.origin.method, rank=tau.origin.rank)


def _recorded_vector(path: Path, step: int) -> TaskVector:
    if not path.is_file():
        raise MissingPathError(
            f"the recorder kept nothing of step {step} ({path}): see the run's log for why"
        )
    return read_snapshot(path).vector


def run_rescore(
    source: str | Path,
    *,
    run: str | None,
    references: str | None,
    calibration: str | None,
    behaviours: Sequence[str] | None,
    strict_coverage: bool,
    fail_on: FailOn,
    form: str,
    outputs: Sequence[str],
) -> int:
    """Rescore a run, write everything that was asked for, and give the scan's exit code.

    Raises:
        SettingsError: an output file of no known format.
        WVMonitorError: as `rescore` and `open_bank` say.
    """
    for path in outputs:
        format_of(path)
    bank, band = open_bank(references, calibration)
    results = rescore(
        source,
        bank,
        run=run,
        calibration=band,
        behaviours=behaviours,
        strict_coverage=strict_coverage,
    )
    collected, code = deliver(results, WRITERS[form], sys.stdout, sys.stderr, fail_on)
    for path in outputs:
        write_file(collected, path, fail_on)
    return code
