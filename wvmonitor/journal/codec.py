"""Records to JSON and blobs, and back, without losing a bit of a float.

The records (Reading, Scores, Verdict, …) are walked field by field, so that a field added to one of
them is kept without a change here; a field that an older journal lacks gets its default.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np

from wvmonitor.errors import JournalError
from wvmonitor.reading import Geometry, Products, Reading

T = TypeVar("T")

LAYOUT = ("references", "parameters", "components", "bank", "base_digest")
"""Fields of a Reading that stay the same all run long: kept once, under their digest."""

_NUMBER = "$float"


def plain(value: Any) -> Any:
    """`value` as strict JSON: records become objects, non-finite numbers `{"$float": "nan"}`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
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
    found = load(text, where)
    if not isinstance(found, dict):
        raise JournalError(f"{where} holds no record where one should be: it is damaged")
    return found


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


def record(kind: type[T], values: Any, where: str) -> T:
    """Build the dataclass `kind` from what was kept of it; fields it no longer has are left out.

    Raises:
        JournalError: what was kept is no record, or a field without a default is missing.
    """
    if not isinstance(values, Mapping):
        raise JournalError(f"{where} holds no {kind.__name__} where one should be: it is damaged")
    names = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]  # T is a dataclass
    missing = [
        name
        for name, f in names.items()
        if name not in values and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise JournalError(f"{where} holds a {kind.__name__} without {missing[0]!r}: it is damaged")
    return kind(**{name: values[name] for name in names if name in values})


def number(value: float | None) -> float | str | None:
    """A float for an SQL column: SQLite would turn NaN into NULL, so it goes in as text."""
    return value if value is None or math.isfinite(value) else repr(float(value))


def pack_reading(reading: Reading) -> tuple[str, str, str, bytes]:
    """A reading as (layout id, layout JSON, detail JSON, compressed arrays)."""
    layout = dump({name: getattr(reading, name) for name in LAYOUT})
    detail = dump(
        {
            f.name: getattr(reading, f.name)
            for f in fields(reading)
            if f.name not in (*LAYOUT, "geometries")
        }
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
    values = {**load_object(layout, where), **load_object(detail, where)}
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
    products: dict[Geometry, Products] = {
        geometry: record(Products, kept, where)  # type: ignore[misc]
        for geometry, kept in geometries.items()
    }
    return record(Reading, {**values, "geometries": products}, where)
