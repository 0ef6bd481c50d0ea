"""The journal of a run that starts: where it lies, which run in it this is, what it carries on."""

from __future__ import annotations

import logging
from pathlib import Path

from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judgement import JudgeState
from wvmonitor.errors import JournalError
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.schema import journal_file
from wvmonitor.live.run import Run
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.run_state import checkpoints_in

logger = logging.getLogger(__name__)

MOST_BESIDE = 100
"""So many journals are tried beside one that others hold."""


def place_of(settings: MonitorSettings, run: Run) -> Path | None:
    """The journal's file, or None where a run has no folder to keep one in."""
    folder = settings.journal_dir or run.folder
    return None if folder is None else journal_file(folder).absolute()


def open_journal(
    preferred: Path, settings: MonitorSettings, run: Run, context: RunContext, bank: str
) -> tuple[Journal, JudgeState | None]:
    """Open the run's journal and note in it that an attempt begins.

    Where others write the journal asked for, or it cannot be used, the run gets one of its own in
    a folder beside it (`wvmonitor-2`, `wvmonitor-3`, …), which a warning names.

    Returns:
        The journal, and where judging had come to at the step from which the run resumes.

    Raises:
        JournalError: there is none to be had; the message says why.
    """
    journal = _opened(preferred, settings, run)
    try:
        before = _earlier(journal, preferred, run)
        journal.run, stopped = _identity(journal, settings, run)
        journal.begin_attempt(context, bank, settings.redacted_json(), resume_step=run.resume_step)
        if stopped:
            journal.latch_stop(stopped)
        state = None
        if run.resume_step:
            state = journal.latest_judge_state(at_step=run.resume_step)
            if before is not None and journal.run is not None and journal.attempt == 1:
                state = state or before.latest_judge_state(journal.run, run.resume_step)
                _carry_over(before, journal, journal.run)
    except BaseException:
        journal.close()
        raise
    return journal, state


def _opened(preferred: Path, settings: MonitorSettings, run: Run) -> Journal:
    alerts = settings.alert_policy(lambda _: checkpoints_in(run.folder))
    refusal: JournalError | None = None
    beside = (preferred.parent / f"wvmonitor-{n}" / preferred.name for n in range(2, MOST_BESIDE))
    for place in (preferred, *beside):
        try:
            journal = Journal.open(place, alerts=alerts)
        except JournalError as error:
            refusal = refusal or error
        else:
            if refusal is not None:
                logger.warning("%s; this run's journal is '%s' now", refusal, journal.path)
            return journal
    raise refusal or JournalError(f"no journal can be opened at '{preferred}'")


def _earlier(journal: Journal, preferred: Path, run: Run) -> JournalReader | None:
    """The journal that holds the attempts before, where it is not this one."""
    for path in (run.came_from, preferred):
        if path is not None and path.is_file() and path.absolute() != journal.path.absolute():
            try:
                return JournalReader(path)
            except JournalError as error:
                logger.warning("what the run's journal held before is not known: %s", error)
    return None


def _identity(
    journal: Journal, settings: MonitorSettings, run: Run
) -> tuple[str | None, str | None]:
    """The run's id (None: one is made up, or the latest goes on), and a stop that still holds.

    A name that was used before is counted on, so that no run hides another; but a run that was
    stopped under that name stays stopped, whoever starts it again.
    """
    name = settings.run
    if run.run_id is not None and (name is None or _is_start_of(run.run_id, name)):
        return run.run_id, None
    if name is None:
        return None, None
    known = journal.starts_of(name)
    if not known:
        return name, None
    if run.resume_step:
        return known[-1], None
    again = next(n for n in range(2, len(known) + 3) if f"{name}-{n}" not in known)
    if run.follows:
        return f"{name}-{again}", None
    journal.run = known[-1]
    stopped = journal.stop_latched()
    if stopped:
        journal.clear_stop(f"carried on by {name}-{again}")
    return f"{name}-{again}", stopped


def _is_start_of(run: str, name: str) -> bool:
    number = run.removeprefix(f"{name}-")
    return run == name or (number != run and number.isdecimal())


def _carry_over(before: JournalReader, journal: Journal, run: str) -> None:
    """What people and the monitor decided about the run in the journal that it comes from."""
    stopped = before.stop_latched(run)
    if stopped:
        journal.latch_stop(stopped)
    for reference, why in before.acknowledged(run).items():
        journal.note(why, kind="ack", reference=reference)
