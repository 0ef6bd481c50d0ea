"""Old runs, judged anew: a flight recorder's snapshots against references that came later.

The one way again: snapshot → TaskVector → bank.measure → scores → verdicts, with what the journal
knows of the run. A reading that the journal has and the recorder has not is not judged, and says
so: it is never left out in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from wvmonitor.detection.calibration import Calibration
from wvmonitor.detection.explanation import explained
from wvmonitor.detection.groups import layer_shares
from wvmonitor.detection.scores import score
from wvmonitor.detection.verdict import JudgeState, RunContext, judge
from wvmonitor.errors import InputError, MissingPathError, WVMonitorError
from wvmonitor.journal.reader import JournalReader, JournalRow
from wvmonitor.journal.snapshots import folder_of, path_of, read_snapshot
from wvmonitor.references.background import background_of
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.calibrated import ridges
from wvmonitor.scan.measure import Measured
from wvmonitor.scan.results import CheckpointResult, FailOn, failed, failure_of
from wvmonitor.scan.scan import open_bank, result_of, wanted_behaviours
from wvmonitor.scan.targets import Target
from wvmonitor.scan.writers import WRITERS, deliver, format_of, write_file


def rescore(
    source: str | Path,
    bank: ReferenceBank,
    *,
    run: str | None = None,
    calibration: Calibration | None = None,
    behaviours: Sequence[str] | None = None,
) -> Iterator[CheckpointResult]:
    """Judge a recorded run by another bank, reading by reading in the order of its steps.

    Args:
        source: the run's output folder, or its `wvmonitor.db`.
        bank: the references.
        run: the run's id; the latest one recorded there if not given.
        calibration: of this bank; None judges by the published rules, which warn at most.
        behaviours: the references to pass verdicts on; None means every behaviour of the bank.

    Raises:
        JournalError: there is no journal, or it cannot be read.
        InputError: nothing was recorded of the run.
        UnknownReferenceError: one of `behaviours` is none of the bank's.
        CalibrationError: the calibration belongs to another bank.
    """
    wanted = wanted_behaviours(bank, behaviours)
    if calibration is not None:
        calibration.require_bank(bank.fingerprint)
    reader = JournalReader(source)
    name = _recorded(reader, run)
    return _rescored(reader, name, bank, calibration, wanted)


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
    reader: JournalReader,
    run: str,
    bank: ReferenceBank,
    calibration: Calibration | None,
    wanted: frozenset[str],
) -> Iterator[CheckpointResult]:
    contexts = {a.attempt: a.context for a in reader.attempts(run)}
    state, background = JudgeState(), background_of(bank)
    for row in reader.trajectory(run):
        path = path_of(reader.path, run, row.attempt, row.step)
        target = Target(str(path), run=run, step=row.step)
        try:
            measured, context = _measured(path, row, bank, calibration, contexts[row.attempt])
        except WVMonitorError as error:
            yield failed(target.path, failure_of(error), run=run, step=row.step)
            continue
        verdicts, state = judge(measured.scores, context, calibration, state)
        verdicts = explained(
            verdicts,
            measured.scores,
            state,
            background,
            layers=measured.layers,
            calibration=calibration,
        )
        kept = {n: v for n, v in verdicts.items() if n in wanted}
        yield result_of(target, measured, measured.scores, kept)


def _measured(
    path: Path,
    row: JournalRow,
    bank: ReferenceBank,
    calibration: Calibration | None,
    context: RunContext,
) -> tuple[Measured, RunContext]:
    if not path.is_file():
        raise MissingPathError(
            f"the recorder kept nothing of step {row.step} ({path}): see the run's log for why"
        )
    tau = read_snapshot(path).vector
    reading = bank.measure(tau, step=row.step, progress=row.scores.progress)
    components = calibration.components if calibration is not None else row.scores.components
    known = {
        g: v for g, v in ridges(bank, components, calibration).items() if g in reading.geometries
    }
    relation = bank.relation_to(tau.origin.base_digest)
    measured = Measured(
        scores=score(reading, bank.gram, components=components, ridge=known),
        component_shares=reading.component_shares(),
        relation=relation,
        method=tau.origin.method,
        rank=tau.origin.rank,
        layers=layer_shares(reading, components),
    )
    return measured, replace(context, base=relation)


def run_rescore(
    source: str | Path,
    *,
    run: str | None,
    references: str | None,
    calibration: str | None,
    behaviours: Sequence[str] | None,
    fail_on: FailOn,
    form: str,
    outputs: Sequence[str],
    out: TextIO,
    problems: TextIO,
) -> int:
    """Rescore a run, write everything that was asked for, and give the scan's exit code.

    Raises:
        SettingsError: an output file of no known format.
        WVMonitorError: as `rescore` and `open_bank` say.
    """
    for path in outputs:
        format_of(path)
    bank, band = open_bank(references, calibration)
    results = rescore(source, bank, run=run, calibration=band, behaviours=behaviours)
    collected, code = deliver(results, WRITERS[form], out, problems, fail_on)
    for path in outputs:
        write_file(collected, path, fail_on)
    return code
