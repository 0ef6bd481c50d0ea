"""What lies beside a checkpoint's weights for the monitor, and which checkpoints outlive a limit.

A run that goes on from a checkpoint must know which run it is and how its adapter started;
`wvmonitor.json` and `wvmonitor.safetensors` in the checkpoint's folder say so, wherever the new
run's own output goes.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from wvmonitor.errors import InputError
from wvmonitor.files.safetensors import SafetensorsFile, write_safetensors
from wvmonitor.journal.schema import FILE_NAME
from wvmonitor.outputs.checkpoint_record import (
    SIDECAR,
    inoculated_by,
    read_record,
    write_record,
)
from wvmonitor.outputs.exporter import Observation

logger = logging.getLogger(__name__)

INITIAL = "wvmonitor.safetensors"
"""Beside a checkpoint's weights: how its adapter started, where that was not at the base."""

_STATE = "trainer_state.json"
KEPT = "wvmonitor-kept"
"""In a run's output folder: the checkpoints that `save_total_limit` must not take."""


@dataclass(frozen=True)
class Left:
    """What a watched run left beside one of its checkpoints.

    Attributes:
        run: the run's id, if it is said.
        initial: how its adapter started; None where the base alone tells it.
        journal: the journal of the run that saved it, where it lies in its usual place.
    """

    run: str | None = None
    initial: dict[str, Tensor] | None = None
    journal: Path | None = None


def leave(
    folder: Path, run: str, initial: dict[str, Tensor], inoculated: Mapping[str, float]
) -> None:
    """Put beside a checkpoint's weights what resuming from it needs."""
    write_record(folder, run, inoculated)
    if initial:
        write_safetensors(folder / INITIAL, initial)


def left_in(folder: Path | None) -> Left:
    """What lies beside a checkpoint's weights."""
    if folder is None:
        return Left()
    run = _record(folder).get("run")
    initial = None
    if (folder / INITIAL).is_file():
        with SafetensorsFile(folder / INITIAL) as file:
            initial = {name: file.read(name) for name in file.tensors}
    # a trial of a hyperparameter search has a folder of its own in that of the run
    places = [place / FILE_NAME for place in list(folder.resolve().parents)[:2]]
    return Left(
        run=run if isinstance(run, str) else None,
        initial=initial,
        journal=next((place for place in places if place.is_file()), None),
    )


def riding_in(folder: Path | None) -> dict[str, float]:
    """What rode along when a checkpoint was saved, with its k; nothing where nobody says."""
    return {} if folder is None else inoculated_by(_said_in(folder))


def _record(folder: Path) -> dict[str, Any]:
    return read_record(folder) if (folder / SIDECAR).is_file() else {}


def _said_in(folder: Path) -> dict[str, Any]:
    """The record beside a checkpoint's weights; a damaged one must not end a training."""
    try:
        return _record(folder)
    except (InputError, OSError) as error:
        logger.error("what '%s' says of its run is not known: %s", folder, error)  # noqa: TRY400
        return {}


class KeptCheckpoints:
    """The last checkpoint that was ok and those of alarms, out of reach of `save_total_limit`.

    They are links to the same bytes in the output folder's `wvmonitor-kept`: a checkpoint that the
    Trainer deletes takes room only as long as it is kept there. Where the file system has no hard
    links, the two are copied when an alarm is raised.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / KEPT
        self._ok: Path | None = None

    @classmethod
    def of(cls, checkpoint: Path) -> KeptCheckpoints:
        """Those of the run that a checkpoint belongs to, kept or not."""
        outer = [p for p in checkpoint.parents if p.name == KEPT]
        return cls(outer[0].parent if outer else checkpoint.parent)

    def keep(self, checkpoint: Path, last: Observation, *, asked: bool) -> None:
        """Keep a checkpoint that was just saved, if it is one to go back to or to look at."""
        if asked:
            copy = self._aside(checkpoint, "alarm")
            logger.warning("out of reach of save_total_limit: '%s'", copy)
        elif all(verdict.state in ("ok", "warming") for verdict in last.verdicts):
            self._ok = checkpoint
            copy = self._folder / "ok" / checkpoint.name
            if copy.is_dir() and not _same(copy, checkpoint):  # an earlier run's
                shutil.rmtree(copy)
            try:
                _linked(checkpoint, copy)
            except OSError:
                return  # no hard links here: it is copied once an alarm asks for it
            for older in (self._folder / "ok").iterdir():
                if older.name != checkpoint.name:
                    shutil.rmtree(older)

    def last_ok(self, run: str, step: int) -> Path | None:
        """The last checkpoint that was ok: where the Trainer saved it, or what was kept of it.

        Args:
            run: whose it must be: a folder may hold those of earlier runs.
            step: the latest that it may be of.
        """
        candidates = [p for p in (self._folder / "ok").glob("checkpoint-*") if _is_whole(p, run)]
        newest = max((p for p in candidates if step_of(p) <= step), key=step_of, default=self._ok)
        if newest is None:
            return None
        own = self._folder.parent / newest.name
        return next((p for p in (own, newest) if _is_whole(p, run)), None)

    def put_back(self, checkpoint: Path, run: str) -> Path:
        """Where a checkpoint of a run is to be resumed from: where the Trainer saved it.

        A limit may have deleted it there since; then what was kept of it takes its place again,
        unless another run's has it by now.
        """
        own = self._folder.parent / checkpoint.name
        kept = self._folder / "ok" / checkpoint.name
        if own.exists() or not kept.is_dir():
            return own if _is_whole(own, run) else kept
        try:
            _linked(kept, own)
        except OSError:
            shutil.copytree(kept, own)
        return own

    def set_aside_after(self, step: int, run: str) -> list[Path]:
        """Move a run's later checkpoints out of the way of whoever resumes from the last one."""
        checkpoints = self._folder.parent.glob("checkpoint-*")
        later = [p for p in checkpoints if step_of(p) > step and _is_whole(p, run)]
        for checkpoint in later:
            target = self._folder / "alarm" / checkpoint.name
            if _same(target, checkpoint):
                shutil.rmtree(checkpoint)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                checkpoint.rename(_free(target))
        return later

    def hold(self) -> None:
        """Keep the last checkpoint that was ok, before the one of an alarm takes its place."""
        if self._ok is not None and self._ok.is_dir():
            copy = self._aside(self._ok, "ok")
            logger.warning("out of reach of save_total_limit: '%s'", copy)

    def _aside(self, checkpoint: Path, why: str) -> Path:
        copy = self._folder / why / checkpoint.name
        if not _same(copy, checkpoint):
            copy = _free(copy)
            try:
                _linked(checkpoint, copy)
            except OSError:
                shutil.copytree(checkpoint, copy)
        return copy


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named for; −1 where it is named otherwise."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _is_whole(checkpoint: Path, run: str) -> bool:
    """Whether a checkpoint of a run was saved to its end: the Trainer writes its own state last."""
    return (checkpoint / _STATE).is_file() and _said_in(checkpoint).get("run") == run


def _same(copy: Path, checkpoint: Path) -> bool:
    """Whether two folders are links to the same checkpoint."""
    one, other = copy / _STATE, checkpoint / _STATE
    return one.is_file() and other.is_file() and one.samefile(other)


def _free(place: Path) -> Path:
    """The place, or one beside it where an earlier run's checkpoint has it."""
    numbered = (place.with_name(f"{place.name}.{n}") for n in itertools.count(2))
    return next(p for p in itertools.chain([place], numbered) if not p.exists())


def _linked(checkpoint: Path, copy: Path) -> None:
    """Make `kept` of links to a checkpoint's files; there is nothing of it where that fails.

    Raises:
        OSError: the file system has no hard links.
    """
    try:
        shutil.copytree(checkpoint, copy, copy_function=os.link)
    except FileExistsError:
        return  # saved twice at one step
    except (OSError, shutil.Error) as error:
        shutil.rmtree(copy, ignore_errors=True)
        raise OSError(str(error)) from None
