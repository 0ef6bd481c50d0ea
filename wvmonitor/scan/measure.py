"""Checkpoints, measured in one pass each: the part of a scan that runs in worker processes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from wvmonitor.detection.judge import Judge
from wvmonitor.errors import AlteredBankError, MalformedFileError, MissingPathError, NonFiniteError
from wvmonitor.files.checkpoint_files import open_checkpoint
from wvmonitor.files.documents import read_json
from wvmonitor.files.storage import is_url, joined, local_path, shown
from wvmonitor.outputs.scan_record import Failure, failure_of
from wvmonitor.reading import Component, Geometry, Reading, join_readings
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.cache import CacheView, content_key
from wvmonitor.scan.results import Known, Measured
from wvmonitor.scan.targets import ADAPTER_CONFIG, Target
from wvmonitor.sources.digest_cache import FilesState
from wvmonitor.sources.identity import KnownDigest, base_digest, remember, state_of
from wvmonitor.vectors.task_vector import TaskVector

_Found = TypeVar("_Found")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_QUANTISED_COPY = re.compile(
    r"(?:[-_.](?:unsloth|bnb|gptq|awq|int4|int8|4bit|8bit|fp8|bf16|fp16|dynamic|mlx|hf))+$"
)


class SharedBank:
    """A bank that travels to worker processes as its folder's path, or whole where it has none."""

    def __init__(self, bank: ReferenceBank) -> None:
        self.folder = None if bank.folder is None else str(bank.folder)
        self.fingerprint = bank.fingerprint
        self._bank: ReferenceBank | None = bank

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.folder is not None:
            state["_bank"] = None
        return state

    def get(self) -> ReferenceBank:
        """The bank itself; a worker reads it once.

        Raises:
            AlteredBankError: the folder holds another bank by now.
        """
        if self._bank is None:
            self._bank = _load(str(self.folder), self.fingerprint)
        return self._bank


@functools.lru_cache(maxsize=4)
def _load(folder: str, fingerprint: str) -> ReferenceBank:
    bank = ReferenceBank.load(folder)
    if bank.fingerprint != fingerprint:
        raise AlteredBankError(
            f"the bank {folder} was replaced while it was being used: start the scan again"
        )
    return bank


@dataclass(frozen=True)
class Job:
    """One checkpoint to measure.

    Attributes:
        base: the base model's folder, if it was given.
        components: the parts of the model to score.
        ridge: the residual's λ by geometry, where the calibration fixes it.
        cache: what was measured before, if that is kept.
        share: (i, n): only the i-th of n shares of its parameters is to be read.
        base_digest: the base's, if it was computed before.
    """

    target: Target
    bank: SharedBank
    base: str | None = None
    components: tuple[Component, ...] = ("blocks",)
    ridge: Mapping[Geometry, float] = field(default_factory=dict)
    cache: CacheView | None = None
    share: tuple[int, int] = (0, 1)
    base_digest: KnownDigest | None = None


@dataclass(frozen=True)
class Share:
    """What was read of a checkpoint, by itself or as one of several shares.

    Attributes:
        reading: of the share's parameters.
        elements: how many they have.
        states: of a shared checkpoint's files, before and after: they must be of one save.
        method, rank, warnings, key: as `Measured` has them.
    """

    reading: Reading
    elements: int
    states: tuple[FilesState | None, FilesState | None]
    method: str | None
    rank: int | None
    warnings: tuple[str, ...]
    key: str | None


Outcome = Measured | Known | Failure


def measure(job: Job) -> Outcome:
    """Measure one whole checkpoint; whatever is wrong with it comes back as a record."""
    (outcome,) = measure_all([job])
    assert not isinstance(outcome, Share)  # noqa: S101  the job asks for the whole
    return outcome


def measure_all(jobs: Sequence[Job]) -> list[Outcome | Share]:
    """Measure checkpoints, side by side if they are alike; a share of one comes back as a `Share`.

    Whatever is wrong with one of them comes back as a record in its place. Those that the cache
    knows are measured beside those that it does not, since what lies beside a checkpoint shows in
    its last digits: a scan that was ended and goes on finds what it would have found.
    """
    opened = [tried(_open, job) for job in jobs]
    beside = list(opened)
    if any(isinstance(o, _Opened) for o in opened):
        for place, job in enumerate(jobs):
            if isinstance(opened[place], Known):
                beside[place] = tried(_open, replace(job, cache=None))
    readings = iter(_read_all([o for o in beside if isinstance(o, _Opened)], jobs[0].bank))
    found = [next(readings) if isinstance(o, _Opened) else o for o in beside]
    return [
        known
        if isinstance(known, Known)
        else (tried(scored, [f], job) if isinstance(f, Share) and job.share[1] == 1 else f)
        for known, f, job in zip(opened, found, jobs, strict=True)
    ]


def scored(shares: Sequence[Share], job: Job) -> Measured:
    """What a checkpoint's shares, in their order, say of it together.

    Raises:
        MalformedFileError: they were read of different saves, or from different bases.
    """
    bank, first = job.bank.get(), shares[0]
    read_of = {(state, s.reading.base_digest) for s in shares for state in s.states}
    if len(read_of) > 1:
        raise MalformedFileError(
            f"{shown(job.target.path)} or its base changed while it was being read: wait until it "
            "is fully written, then try again"
        )
    reading = join_readings([s.reading for s in shares], [s.elements for s in shares])
    return Measured(
        statistics=_judge(bank, job.components, tuple(job.ridge.items())).statistics(reading),
        base_digest=reading.base_digest,
        method=first.method,
        rank=first.rank,
        warnings=first.warnings,
        key=first.key,
    )


@functools.lru_cache(maxsize=4)
def _judge(
    bank: ReferenceBank,
    components: tuple[Component, ...],
    ridge: tuple[tuple[Geometry, float], ...],
) -> Judge:
    """What scores in a worker; verdicts are passed where the readings before are known."""
    judge = Judge.of(bank, components=components)
    return replace(judge, ridge={**judge.ridge, **dict(ridge)})


@dataclass(frozen=True)
class _Opened:
    job: Job
    tau: TaskVector
    state: FilesState | None
    warnings: tuple[str, ...]
    key: str | None


def tried(function: Callable[..., _Found], *arguments: Any) -> _Found | Failure:
    """What the function gives, or a record of what went wrong."""
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001  one broken checkpoint must not end a scan of thousands
        return failure_of(error)


def _open(job: Job) -> _Opened | Known:
    bank, target = job.bank.get(), job.target
    if job.base_digest is not None:
        remember(job.base_digest)
    base, warnings = find_base(target, job.base, bank)
    key = None
    if job.cache is not None:
        request = (bank.fingerprint, job.components, dict(job.ridge))
        key = content_key(target.path, base, *request)
        if key in job.cache:
            return Known(key)
    state = _state(job)
    tau = read_target(target, job.base, base)
    if job.share[1] > 1:
        tau = tau.select(_share_of(tau, *job.share).__contains__)
    return _Opened(job, tau, state, (*warnings, *_other_base(tau, bank)), key)


def _other_base(tau: TaskVector, bank: ReferenceBank) -> Iterator[str]:
    """That an adapter calls another model its base than the references, by the Hub's names."""
    own, theirs = tau.origin.base_name, bank.base.id
    if own is None or "/" not in theirs or not _HUB_ID.fullmatch(own) or local_path(own).is_dir():
        return
    if _model_of(own) != _model_of(theirs):
        yield (
            f"the adapter says that it was trained on {shown(own)}, and the references are of "
            f"{shown(theirs)}: where those are not the same weights, its verdicts mean nothing"
        )


def _model_of(name: str) -> str:
    """A model's name on the Hub, without who keeps the copy and how it was quantised."""
    return _QUANTISED_COPY.sub("", name.rsplit("/", 1)[-1].lower())


def _state(job: Job) -> FilesState | None:
    # a checkpoint that is read by one process is guarded by its own descriptors
    return state_of(job.target.path) if job.share[1] > 1 else None


def _share_of(tau: TaskVector, number: int, shares: int) -> frozenset[str]:
    """Names of one of several shares, each of parameters that follow one another."""
    sizes = [tau.shape(name).numel() for name in tau.names()]
    # a parameter belongs where its middle lies
    middles = np.cumsum(sizes) - np.array(sizes) / 2
    owners = np.minimum(middles * shares // max(1, sum(sizes)), shares - 1)
    return frozenset(n for n, owner in zip(tau.names(), owners, strict=True) if owner == number)


def _read_all(opened: Sequence[_Opened], bank: SharedBank) -> list[Share | Failure]:
    names = {tuple(o.tau.names()) for o in opened}
    if len(opened) > 1 and len(names) == 1:
        try:
            return list(_read(opened, bank.get()))
        except Exception:  # noqa: BLE001, S110  which one it was, reading them singly says
            pass
    return [tried(_read_one, o, bank) for o in opened]


def _read_one(opened: _Opened, bank: SharedBank) -> Share:
    (share,) = _read([opened], bank.get())
    return share


def _read(opened: Sequence[_Opened], bank: ReferenceBank) -> list[Share]:
    readings = bank.measure_together([o.tau for o in opened])
    for reading, o in zip(readings, opened, strict=True):
        _check_finite(reading, o.job.target.path)
    return [
        Share(
            reading=replace(reading, step=o.job.target.step, progress=o.job.target.progress),
            elements=sum(o.tau.shape(name).numel() for name in o.tau.names()),
            states=(o.state, _state(o.job)),
            method=o.tau.origin.method,
            rank=o.tau.origin.rank,
            warnings=o.warnings,
            key=o.key,
        )
        for o, reading in zip(opened, readings, strict=True)
    ]


def read_target(target: Target, given: str | None, base: str | None) -> TaskVector:
    """The task vector of a target, lazily.

    Args:
        target: what to read.
        given: the base's folder, if the user gave it: an adapter without a base at hand is read by
            what its own configuration says of it.
        base: the base's folder as `find_base` found it.

    Raises:
        MissingPathError: a whole checkpoint, and no base to be found for it.
        InputError: as `read_adapter` and `read_checkpoints` say.
    """
    if target.kind == "adapter":
        from wvmonitor.sources import read_adapter

        return read_adapter(target.path, base=given)
    if base is not None:
        from wvmonitor.sources import read_checkpoints

        return read_checkpoints(base, target.path)
    open_checkpoint(target.path).close()  # what is wrong with the files themselves goes first
    raise MissingPathError(
        f"{shown(target.path)} is a whole checkpoint, and which model it was trained from is not "
        "known: give that model's folder with --base"
    )


def find_base(
    target: Target, given: str | None, bank: ReferenceBank | None = None
) -> tuple[str | None, tuple[str, ...]]:
    """The folder of a target's base, and what must be said of how it was found.

    It is the one that was given; else the local folder that the target's configuration names; else,
    for a whole checkpoint, a folder `base` beside the bank that holds the bank's own base.
    """
    if given is not None:
        return given, ()
    adapter = target.kind == "adapter"
    named = _named_base(target.path, *_BASE_FIELDS[target.kind])
    if named is not None or adapter or bank is None or bank.folder is None:
        return named, ()
    beside = bank.folder.parent / "base"
    if not beside.is_dir() or base_digest(beside) != bank.base.digest:
        return None, ()
    note = f"the base was taken to be {shown(beside)}, which lies beside the references"
    return str(beside), (note,)


_BASE_FIELDS: Mapping[str, tuple[str, str]] = {
    "adapter": (ADAPTER_CONFIG, "base_model_name_or_path"),
    "checkpoint": ("config.json", "_name_or_path"),
}


def _named_base(path: str, file: str, key: str) -> str | None:
    """The local folder that a configuration calls the model it comes from."""
    if is_url(path) or not local_path(path).is_dir():
        return None
    try:
        name = read_json(joined(path, file)).get(key)
    except MissingPathError:
        return None
    if not isinstance(name, str) or not name or not local_path(name).is_dir():
        return None
    # A model saved twice names its own folder, which would make every change disappear.
    return None if local_path(name).resolve() == local_path(path).resolve() else name


def _check_finite(reading: Reading, path: str) -> None:
    squares = reading.geometries["frobenius"].squared_norms
    for name, square in zip(reading.parameters, squares, strict=True):
        if not math.isfinite(square):
            raise NonFiniteError(
                f"{shown(path)}: the change of {shown(name)} holds NaN or infinity: the run "
                "diverged or the file is damaged; take an earlier checkpoint"
            )
