"""Records to JSON and blobs, and back, without losing a bit of a float.

Records are written field by field and validated by pydantic when they are read: a field that an
older journal lacks gets its default, and one that this version no longer has is left out.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from wvmonitor.detection.judgement import BehaviourState, JudgeState, Path, Worst
from wvmonitor.errors import JournalError
from wvmonitor.reading import Component, Geometry, Products, Reading

T = TypeVar("T")


@dataclass(frozen=True)
class _Layout:
    """What of a Reading stays the same all run long: kept once, under its digest."""

    references: tuple[str, ...]
    parameters: tuple[str, ...]
    components: tuple[Component, ...]
    bank: str
    base_digest: str | None = None


@dataclass(frozen=True)
class _Detail:
    """What of a Reading is neither that nor an array."""

    step: int | None = None
    progress: float | None = None
    changed_fraction: float | None = None
    lag_step: int | None = None
    warnings: tuple[str, ...] = ()
    unmeasurable: str | None = None


@dataclass(frozen=True)
class _JudgeState:
    """A judge's state as journals have it: one mapping from behaviours for each thing."""

    running_maximum: dict[str, float] = field(default_factory=dict)
    consecutive: dict[str, int] = field(default_factory=dict)
    alarmed: tuple[str, ...] = ()
    readings: int = 0
    last_ok: dict[str, int] = field(default_factory=dict)
    recent: dict[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    windows: int = 0
    gain_maximum: dict[str, float] = field(default_factory=dict)
    path: dict[str, Path] = field(default_factory=dict)
    worst: dict[str, Worst] = field(default_factory=dict)


_NUMBER = "$float"


def plain(value: Any) -> Any:
    """`value` as strict JSON: records become objects, non-finite numbers `{"$float": "nan"}`."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return {_NUMBER: repr(value)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def revived(value: Any) -> Any:
    """The inverse of `plain`, but for records, which stay mappings; sequences come as tuples."""
    if isinstance(value, dict):
        if set(value) == {_NUMBER}:
            return float(value[_NUMBER])
        return {key: revived(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(revived(item) for item in value)
    return value


def dump(value: Any) -> str:
    """One record as a line of JSON."""
    return json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def load(text: str, where: str) -> Any:
    """What `dump` was given, records as mappings.

    Raises:
        JournalError: the text is not JSON; `where` says which row held it.
    """
    with whole(where):
        return revived(json.loads(text))


def load_object(text: str, where: str) -> dict[str, Any]:
    """What `dump` was given, where that was a record or a mapping.

    Raises:
        JournalError: the text is not JSON, or holds something else.
    """
    value = load(text, where)
    if not isinstance(value, dict):
        raise JournalError(f"{where} holds no record where one should be: it is damaged")
    return value


@contextmanager
def whole(where: str) -> Iterator[None]:
    """In here, values that only a damaged file can hold are errors in words.

    Raises:
        JournalError: in place of what Python says to a value of the wrong kind.
    """
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise JournalError(
            f"{where} holds a damaged record ({type(error).__name__}: {error}): restore the file "
            "from a copy"
        ) from None


class _Adapters(dict[type, TypeAdapter[Any]]):
    """pydantic's readers, each made when it is first asked for."""

    def __missing__(self, kind: type) -> TypeAdapter[Any]:
        return self.setdefault(kind, TypeAdapter(kind))


_adapters = _Adapters()


def record(kind: type[T], values: Any, where: str) -> T:
    """The record of this kind that was kept; fields it no longer has are left out.

    Raises:
        JournalError: what was kept is no such record.
    """
    if not isinstance(values, Mapping):
        raise JournalError(f"{where} holds no {kind.__name__} where one should be: it is damaged")
    try:
        found: T = _adapters[kind].validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "it"
        raise JournalError(
            f"{where} holds a damaged {kind.__name__} ({place}: {first['msg']}): restore the file "
            "from a copy"
        ) from None
    return found


def read(kind: type[T], text: str, where: str) -> T:
    """`record` of what `load` gives, in one step where JSON has a word for everything in it.

    A long run holds hundreds of thousands of records.

    Raises:
        JournalError: as both say.
    """
    with whole(where):
        plain_json = _NUMBER not in text
    if plain_json:
        try:
            found: T = _adapters[kind].validate_json(text)
        except ValidationError:  # the slow way says in words what is wrong
            pass
        else:
            return found
    return record(kind, load(text, where), where)


def dump_state(state: JudgeState) -> str:
    """A judge's state as a line of JSON."""
    behaviours = state.behaviours

    def each(name: str) -> dict[str, Any]:
        found = {b: getattr(s, name) for b, s in behaviours.items()}
        return {b: value for b, value in found.items() if value not in (None, ())}

    told: dict[str, Any] = {f.name: each(f.name) for f in fields(BehaviourState)}
    told["alarmed"] = tuple(b for b, s in behaviours.items() if s.alarmed)
    told["path"] = {b: s.path for b, s in behaviours.items() if s.path is not None}
    return dump(_JudgeState(readings=state.readings, windows=state.windows, **told))


def load_state(text: str, where: str) -> JudgeState:
    """The state that `dump_state` was given.

    Raises:
        JournalError: the record is damaged.
    """
    stored = read(_JudgeState, text, where)
    told = {**vars(stored)}
    counts = told.pop("readings"), told.pop("windows")
    names = dict.fromkeys(name for each in told.values() for name in each)
    alarmed = told.pop("alarmed")
    behaviours = {
        name: BehaviourState(
            alarmed=name in alarmed,
            **{field: each[name] for field, each in told.items() if name in each},
        )
        for name in names
    }
    return JudgeState(behaviours, *counts)


def number(value: float | None) -> float | str | None:
    """A float for an SQL column: SQLite would turn NaN into NULL, so it goes in as text."""
    return value if value is None or math.isfinite(value) else repr(float(value))


def pack_reading(reading: Reading) -> tuple[str, str, str, bytes]:
    """A reading as (layout id, layout JSON, detail JSON, compressed arrays)."""
    layout, detail = (
        dump({f.name: getattr(reading, f.name) for f in fields(kind)})
        for kind in (_Layout, _Detail)
    )
    arrays = {
        f"{geometry}/{f.name}": value
        for geometry, products in reading.geometries.items()
        for f in fields(products)
        if (value := getattr(products, f.name)) is not None
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return hashlib.sha256(layout.encode()).hexdigest()[:32], layout, detail, buffer.getvalue()


def unpack_reading(layout: str, detail: str, arrays: bytes, where: str) -> Reading:
    """The reading that `pack_reading` was given.

    Raises:
        JournalError: one of its parts is damaged.
    """
    same = record(_Layout, load(layout, where), where)
    own = record(_Detail, load(detail, where), where)
    try:
        geometries: dict[str, dict[str, Any]] = {}
        with np.load(io.BytesIO(arrays), allow_pickle=False) as archive:
            for key in archive.files:
                geometry, name = key.split("/")
                geometries.setdefault(geometry, {})[name] = archive[key]
    except Exception as error:  # noqa: BLE001  zipfile and NumPy say many things to foreign bytes
        raise JournalError(
            f"{where} holds damaged arrays ({error}): restore the file from a copy"
        ) from None
    with whole(where):
        products: dict[Geometry, Products] = {
            geometry: Products(**kept)  # type: ignore[misc]
            for geometry, kept in geometries.items()
        }
    return Reading(geometries=products, **vars(same), **vars(own))
