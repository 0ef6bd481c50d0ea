"""What there is to scan at a path: an adapter, a checkpoint, or a run's whole trajectory."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Literal

from wvmonitor.detection.context import RunContext
from wvmonitor.errors import MalformedFileError, MissingPathError, UnsafeFileError, WVMonitorError
from wvmonitor.files.storage import (
    Location,
    is_url,
    joined,
    list_folder,
    list_subfolders,
    local_path,
    shown,
)
from wvmonitor.files.weight_names import holds_weights, is_pickle, neighbours, weights_below
from wvmonitor.outputs.checkpoint_record import SIDECAR, inoculated_by, read_record
from wvmonitor.outputs.scan_record import Failure, Notice, failure_of
from wvmonitor.scan.foreign_code import foreign_code
from wvmonitor.scan.organisation import organisation_of, others_note, repositories_of
from wvmonitor.scan.trainer_state import TRAINER_STATE, read_trainer_state

TargetKind = Literal["adapter", "checkpoint"]

ADAPTER_CONFIG = "adapter_config.json"
MLX_WEIGHTS = "adapters.safetensors"
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")
# What trainers other than transformers' call it.
_STEP = re.compile(r"(?:checkpoint|global_step|step|iter|iteration)[-_]?(\d{1,12})")
_NAMED = 5
_WHOLE_MODEL = re.compile(r"model(?:-\d+-of-\d+)?\.safetensors(?:\.index\.json)?")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Target:
    """One thing to scan.

    Attributes:
        kind: how it is to be read.
        run: the output folder it belongs to, where it is part of a trajectory.
        step: optimiser step, if its folder says so.
        learning_rate: the run's peak, if known.
        readings: how many checkpoints the trajectory has; 1 for a single checkpoint.
        last: whether it is the trajectory's last one.
        inoculated: behaviours whose reference rode along when it was saved, if it says so.
        warnings: what a reader of the result must know.
        notices: what lies there and is not judged.
        error: why it cannot be scanned, if that is known already.
    """

    path: str
    kind: TargetKind = "checkpoint"
    run: str | None = None
    step: int | None = None
    planned_steps: int | None = None
    learning_rate: float | None = None
    readings: int = 1
    last: bool = False
    inoculated: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()
    error: Failure | None = None

    @property
    def progress(self) -> float | None:
        """Fraction of the run's planned steps, if both are known."""
        if self.step is None or not self.planned_steps:
            return None
        return self.step / self.planned_steps

    def context(self, optimizer: str | None) -> RunContext:
        """What its folder says of how its run trains."""
        return RunContext(
            optimizer=optimizer,
            learning_rate=self.learning_rate,
            lone=self.run is None,
            planned_steps=self.planned_steps,
            readings_planned=self.readings,
            inoculated=self.inoculated,
        )


def find_targets(paths: Iterable[Location], *, only: Container[str] | None = None) -> list[Target]:
    """Everything to scan at these paths, in their order; a path given twice is scanned once.

    What lies in folders below an adapter or a run (PEFT's further adapters, a final model) is
    scanned too, and weights that are a pickle are named: nothing hides beside what was judged.

    A path that cannot be scanned becomes a target with an error: the rest of the scan goes on.

    Args:
        paths: adapters, checkpoints, and runs' output folders.
        only: names of the checkpoints of a run that are looked into, all if not given: of the
            others no more is said than that they are there.
    """
    targets: list[Target] = []
    spelt: dict[object, str] = {
        path if is_url(path) or not path else PurePath(path): path for path in map(str, paths)
    }
    for path in spelt.values():
        try:
            targets += _at(path, only)
        except (WVMonitorError, OSError, ImportError) as error:
            targets.append(Target(path, error=failure_of(error)))
    return targets


def _at(path: str, only: Container[str] | None = None) -> list[Target]:
    if not path:
        raise MissingPathError(
            "an empty path was given, which would stand for the current folder: check the variable "
            "that it came from, or write ."
        )
    if is_url(path) and (organisation := organisation_of(path)) is not None:
        return _of_organisation(organisation)
    try:
        entries = list_folder(path)
    except MissingPathError as error:
        if not is_url(path) and _HUB_ID.fullmatch(path):
            raise MissingPathError(f"{error} (a Hub repository is written hf://{path})") from None
        raise
    if entries is None:
        return [_file(path)]
    steps = _steps(entries, _CHECKPOINT)
    alone = holds_weights(entries)
    if not steps and (alone or ADAPTER_CONFIG in entries):
        kind = _kind(path, entries)
        below = _below(path, entries) if kind == "adapter" else {}
        return [_described(Target(path, kind), entries, judged=below), *below.values()]
    below = _below(path, entries)
    if not steps:  # nothing of its own: a run of another trainer, or a folder of adapters
        steps = [(step, name) for step, name in _steps(below, _STEP) if below[name].error is None]
        if not below:
            return [_described(Target(path), entries)]
    trajectory = _with_plan(_checkpoints(path, steps, only))
    if only is not None and not any(t.planned_steps for t in trajectory):
        trajectory = _with_plan(_checkpoints(path, steps, None))  # another one may say the plan
    runs = {name for _, name in steps}
    further = {name: target for name, target in below.items() if name not in runs}
    # What was saved last, and is about to be published, is a checkpoint by itself: as one more
    # reading of the run it would only repeat the last one.
    last = [_lone(path, entries, judged={*runs, *further})] if alone else []
    final = [*last, *sorted(further.values(), key=_in_order)]
    if trajectory:
        trajectory[-1] = replace(trajectory[-1], last=True)
        riding = trajectory[-1].inoculated  # which no final model says of itself
        final = [replace(t, inoculated=t.inoculated or riding) for t in final]
    targets = [*trajectory, *final]
    if not alone:  # said once, at the last checkpoint: `since_step` leaves the early ones out
        beside = _unjudged(path, entries, "model", {*runs, *further})
        at = max(len(trajectory) - 1, 0)
        targets[at] = replace(targets[at], notices=(*targets[at].notices, *beside))
    return targets


def _of_organisation(organisation: str) -> list[Target]:
    repositories = repositories_of(organisation)
    first, *rest = find_targets(repositories.adapters)
    if repositories.others:
        note = others_note(organisation, repositories.others)
        first = replace(first, notices=(*first.notices, Notice("unjudged-weights", note)))
    return [first, *rest]


def _steps(names: Iterable[str], pattern: re.Pattern[str]) -> list[tuple[int, str]]:
    """The steps that names of folders say, in their order, with the names."""
    return sorted((int(m[1]), m[0]) for name in names if (m := pattern.fullmatch(name)))


def _in_order(target: Target) -> list[tuple[int, str]]:
    """A key by which `epoch_10` follows `epoch_9`."""
    parts = re.split(r"(\d+)", target.path)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _lone(
    path: str, entries: frozenset[str], within: str | None = None, judged: Container[str] = ()
) -> Target:
    try:
        if within is not None:
            _refuse_stray_link(within, path)
        return _described(Target(path, _kind(path, entries)), entries, judged=judged)
    except WVMonitorError as error:
        return Target(path, error=failure_of(error))


def _below(path: str, entries: frozenset[str]) -> dict[str, Target]:
    """What lies in folders below an adapter or a run: PEFT's further adapters, a final model."""
    below: dict[str, Target] = {}
    for name in sorted(list_subfolders(path) & entries):
        if name[0] == "." or _CHECKPOINT.fullmatch(name):
            continue  # known already
        inside = str(joined(path, name))
        if _leads_back(path, inside):
            continue
        try:
            names = list_folder(inside) or frozenset()
        except (MissingPathError, UnsafeFileError):
            continue  # a link that leads nowhere
        except (WVMonitorError, OSError) as error:
            below[name] = Target(inside, error=failure_of(error))
            continue
        if holds_weights(names):
            below[name] = _lone(inside, names, within=path)
    return below


def _leads_back(folder: str, inside: str) -> bool:
    """Whether a link in a folder leads to the folder itself, or to one above it."""
    if is_url(folder) or not local_path(inside).is_symlink():
        return False
    try:
        return local_path(folder).resolve().is_relative_to(local_path(inside).resolve())
    except (OSError, RuntimeError):
        return True  # a loop of links


def _file(path: str) -> Target:
    where = PurePath(path)
    if where.name.startswith("adapter_model.") and not is_url(path):
        folder = str(where.parent)
        if ADAPTER_CONFIG in (list_folder(folder) or ()):
            return _described(Target(folder, "adapter"), list_folder(folder) or frozenset())
    return Target(path)


def _kind(path: str, entries: frozenset[str]) -> TargetKind:
    if ADAPTER_CONFIG not in entries:
        return "checkpoint"
    whole = sorted(entry for entry in entries if _WHOLE_MODEL.fullmatch(entry))
    if whole:
        raise MalformedFileError(
            f"{shown(path)} holds both an adapter and a whole model ({shown(whole[0])}), and which "
            "of the two is used depends on what loads it: give the path of the one file to judge, "
            "or keep them in folders of their own"
        )
    return "adapter"


def _checkpoints(
    run: str, steps: Sequence[tuple[int, str]], only: Container[str] | None
) -> list[Target]:
    return [
        _checkpoint(run, name, step, len(steps))
        if only is None or name in only
        else Target(str(joined(run, name)), run=run, step=step, readings=len(steps))
        for step, name in steps
    ]


def _checkpoint(run: str, name: str, step: int, readings: int) -> Target:
    path = str(joined(run, name))
    target = Target(path, run=run, step=step, readings=readings)
    try:
        _refuse_stray_link(run, path)
        entries = list_folder(path) or frozenset()
        own = holds_weights(entries) or ADAPTER_CONFIG in entries
        below = {} if own else _below(path, entries)
        if len(below) == 1:  # PEFT saves an adapter that has a name in a folder of that name
            return _within(target, entries, *below.items())
        return _described(replace(target, kind=_kind(path, entries)), entries)
    except (WVMonitorError, OSError) as error:
        return replace(target, error=failure_of(error))


def _within(target: Target, entries: frozenset[str], inside: tuple[str, Target]) -> Target:
    """A checkpoint whose weights lie in a folder in it, which says less of the run."""
    name, held = inside
    described = _described(target, entries, judged={name})
    return replace(
        described,
        path=held.path,
        kind=held.kind,
        warnings=(*described.warnings, *held.warnings),
        notices=(*described.notices, *held.notices),
        error=held.error,
    )


def _refuse_stray_link(run: str, path: str) -> None:
    if is_url(path):
        return
    here = local_path(path)
    if here.is_symlink() and not here.resolve().is_relative_to(local_path(run).resolve()):
        raise UnsafeFileError(
            f"{shown(path)} is a link that leads out of its run's folder: scan the real folder"
        )


def _unjudged(
    path: str, entries: frozenset[str], stem: str, judged: Container[str]
) -> Iterator[Notice]:
    """What holds weights in a folder, or below it, beside what is judged."""
    unseen: list[str] = []
    inside = weights_below(path, unseen)
    if unseen:
        yield Notice("unjudged-weights", f"not all below {shown(path)} was looked at: {unseen[0]}")
    below = [f"{name}/" for name in inside if name.split("/")[0] not in judged]
    beside = [*neighbours(entries, stem), *below]
    if beside:
        pickles = [name for name in beside if is_pickle(name)]
        which = f" ({shown(pickles[0])} is a pickle, which is never read)" if pickles else ""
        more = f" and {len(beside) - _NAMED} more" if len(beside) > _NAMED else ""
        yield Notice(
            "unjudged-weights",
            f"{shown(', '.join(beside[:_NAMED]))}{more} in {shown(path)} may hold weights that "
            f"were not judged{which}: judge them by a path of their own, or take them away",
        )


def _described(target: Target, entries: frozenset[str], judged: Container[str] = ()) -> Target:
    """The target with what its folder says of it, and of what lies there besides."""
    named = _CHECKPOINT.fullmatch(PurePath(target.path).name)
    step = target.step if named is None else int(named[1])
    stem = "adapter_model" if target.kind == "adapter" else "model"
    if stem == "adapter_model" and MLX_WEIGHTS in entries and f"{stem}.safetensors" not in entries:
        stem = MLX_WEIGHTS.removesuffix(".safetensors")
    notices = [
        *_unjudged(target.path, entries, stem, judged),
        *(Notice("foreign-code", text) for text in foreign_code(target.path, entries)),
    ]
    target = _with_record(replace(target, notices=(*target.notices, *notices)), entries)
    if TRAINER_STATE not in entries:
        return replace(target, step=step)
    where = joined(target.path, TRAINER_STATE)
    try:
        state = read_trainer_state(where)
    except (MalformedFileError, UnsafeFileError) as error:
        note = f"how far the run had come is not known: {error}"
        return replace(target, step=step, warnings=(*target.warnings, note))
    return replace(
        target,
        step=step if step is not None else state.step,
        planned_steps=state.planned_steps,
        learning_rate=state.peak_learning_rate,
    )


def _with_record(target: Target, entries: frozenset[str]) -> Target:
    """The target with what a watched run said of its remedies when it saved the checkpoint."""
    if SIDECAR not in entries:
        return target
    try:
        riding = inoculated_by(read_record(target.path))
    except (MalformedFileError, MissingPathError, UnsafeFileError) as error:
        note = f"whether the run was inoculated is not known: {error}"
        return replace(target, warnings=(*target.warnings, note))
    return replace(target, inoculated=tuple(sorted(riding)))


def _with_plan(trajectory: list[Target]) -> list[Target]:
    """The last checkpoint that says how long the run is to be speaks for the others."""
    steps = next((t.planned_steps for t in reversed(trajectory) if t.planned_steps), None)
    rates = [t.learning_rate for t in trajectory if t.learning_rate is not None]
    peak = max(rates) if rates else None
    return [
        replace(t, planned_steps=t.planned_steps or steps, learning_rate=peak) for t in trajectory
    ]
