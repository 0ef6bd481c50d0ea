"""Benign runs read back from disk, for calibrating: from their journals, or their checkpoints.

A run's journal holds its readings to the last bit, so nothing is measured again, unless it was
watched with another bank and recorded (`record=True`). Without a journal the saved checkpoints of
its output folder are measured, one reading each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from wvmonitor.detection.calibration import BenignRun
from wvmonitor.detection.judge import Judge
from wvmonitor.errors import CalibrationError, JournalError, MissingPathError
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.records import JournalRow
from wvmonitor.journal.search import find_journals
from wvmonitor.journal.snapshots import path_of, read_snapshot
from wvmonitor.outputs.scan_record import Failure
from wvmonitor.reading import Reading
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.scan.measure import Job, SharedBank, measure
from wvmonitor.scan.results import Measured
from wvmonitor.scan.targets import Target, find_targets


def benign_runs(
    folders: Sequence[Path],
    bank: ReferenceBank,
    *,
    datasets: Mapping[str, str] | None = None,
    base: str | None = None,
    optimizer: str | None = None,
) -> list[BenignRun]:
    """Read harmless runs back.

    Args:
        folders: runs' output folders, or folders of journals.
        bank: the references that the calibration is for.
        datasets: what each run was trained on, by the run's id, by its own folder, or by the folder
            that was given (as a path, or its name); runs of one name are repeats of one dataset.
            None says that every run has a dataset of its own.
        base: folder of the base model, where checkpoints do not name it.
        optimizer: of the runs that were saved without a journal: checkpoints do not say.

    Raises:
        MissingPathError: a folder holds neither a journal nor `checkpoint-*` folders.
        CalibrationError: a run's dataset is not said, it was measured against another bank, or one
            of its checkpoints cannot be measured.
        JournalError: a journal cannot be read.
    """
    judge = Judge.of(bank)
    runs: list[BenignRun] = []
    for folder in folders:
        journals = _journals(folder)
        runs_found = (
            _from_journals(journals, bank, judge)
            if journals
            else _from_checkpoints(folder, bank, judge, base, optimizer)
        )
        for place, run in runs_found:
            named = run.dataset  # its id, so far
            runs.append(replace(run, dataset=_dataset(folder, place, named, datasets)))
    return runs


def _journals(folder: Path) -> list[Path]:
    """The journals at or below a folder.

    Raises:
        CalibrationError: not all of it can be looked into, and runs that are left out unseen would
            move the threshold.
    """
    unseen: list[str] = []
    try:
        found = find_journals(folder, unseen) if folder.is_dir() else []
    except JournalError:
        found = []
    if unseen:
        raise CalibrationError(f"{unseen[0]}: see to its permissions, or name the runs themselves")
    return found


_REMEDIES = frozenset({"inoculated", "rollback"})
"""Events of a run whose training the monitor has changed."""


def _dataset(folder: Path, place: Path, run: str, datasets: Mapping[str, str] | None) -> str:
    if datasets is None:  # a run without a journal has no id: it goes by where it lies
        return f"{place.resolve().parent.name if run == folder.name else folder.name}/{run}"
    for key in (run, str(place), place.name, str(folder), folder.name):
        if key in datasets:
            return datasets[key]
    raise CalibrationError(
        f"the run {run} in {place} is not among the datasets: add a line for it (by its folder or "
        "its id), because runs of one dataset count once"
    )


def _from_journals(
    journals: Sequence[Path], bank: ReferenceBank, judge: Judge
) -> Iterator[tuple[Path, BenignRun]]:
    for path in journals:
        journal = JournalReader(path)
        for run in journal.runs():
            attempt = journal.attempts(run)[-1]
            rows = journal.trajectory(run)
            if not rows:  # it was never watched: it says nothing
                continue
            if any(e.kind in _REMEDIES for e in journal.events(run)):
                raise CalibrationError(
                    f"the run {run} in '{path}' was inoculated, braked or taken back: its scores "
                    "are not those of a run that trains as it is, so it cannot calibrate; leave it "
                    "out"
                )
            if attempt.bank == bank.fingerprint:
                readings = [journal.reading(row) for row in rows]
            else:
                readings = [_measured_again(path, row, attempt.bank, bank) for row in rows]
            by_step = {r.step: r for r in readings}
            scores = [judge.statistics(r, by_step.get(r.lag_step)).scores for r in readings]
            yield path.parent, BenignRun(run, scores, attempt.context)


def _measured_again(path: Path, row: JournalRow, before: str, bank: ReferenceBank) -> Reading:
    """A reading of a recorded run against another bank than the one it was watched with."""
    snapshot = path_of(path, row.run, row.attempt, row.step)
    if not snapshot.is_file():
        raise CalibrationError(
            f"the run {row.run} in '{path}' was measured against another bank ({before[:12]}…, "
            f"this one is {bank.fingerprint[:12]}…), and its task vectors were not recorded: give "
            "the bank it was watched with, or its checkpoints without the journal"
        )
    vector = read_snapshot(snapshot).vector
    return bank.measure(vector, step=row.step, progress=row.scores.progress)


def _from_checkpoints(
    folder: Path,
    bank: ReferenceBank,
    judge: Judge,
    base: str | None,
    optimizer: str | None,
) -> Iterator[tuple[Path, BenignRun]]:
    trajectory = [t for t in find_targets([str(folder)]) if t.run is not None]
    if not trajectory:
        raise MissingPathError(
            f"{folder} holds neither a journal (wvmonitor.db) nor checkpoint-* folders: give the "
            "output folder of a run"
        )
    measured = [_measured(target, bank, base) for target in trajectory]
    context = judge.context(measured[-1], trajectory[-1].context(optimizer))
    yield folder, BenignRun(folder.name, [m.statistics.scores for m in measured], context)


def _measured(target: Target, bank: ReferenceBank, base: str | None) -> Measured:
    if target.error is not None:
        raise CalibrationError(f"{target.path} cannot be measured: {target.error.message}")
    outcome = measure(Job(target, SharedBank(bank), base))
    if isinstance(outcome, Failure):
        raise CalibrationError(f"{target.path} cannot be measured: {outcome.message}")
    assert isinstance(outcome, Measured)  # noqa: S101  without a cache nothing is known before
    return outcome
