"""`wvmonitor.json` beside a checkpoint's weights: which run saved it, and what rode along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wvmonitor.files.documents import read_json, write_json
from wvmonitor.files.storage import Location, joined

SIDECAR = "wvmonitor.json"
_MOST = 1e6


def write_record(folder: Location, run: str, inoculated: Mapping[str, float]) -> None:
    """Put a checkpoint's record beside its weights; `inoculated` is k by reference."""
    riding = {"inoculated": dict(inoculated)} if inoculated else {}
    write_json(joined(folder, SIDECAR), {"format_version": 1, "run": run, **riding})


def read_record(folder: Location) -> dict[str, Any]:
    """A checkpoint's record, as it stands.

    Raises:
        MissingPathError: there is none.
        MalformedFileError, UnsafeFileError: as `read_json` says.
    """
    return read_json(joined(folder, SIDECAR))


def inoculated_by(record: Mapping[str, Any]) -> dict[str, float]:
    """What rode along when the checkpoint was saved, k by reference; what is no number is none.

    A record may be a stranger's: k of a million or more is no amount of anything.
    """
    riding = record.get("inoculated")
    if not isinstance(riding, dict):
        return {}
    numbers = {n: k for n, k in riding.items() if isinstance(k, int | float) and abs(k) < _MOST}
    return {name: float(k) for name, k in numbers.items()}
