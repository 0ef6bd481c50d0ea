"""The calibration that lies beside a bank."""

from __future__ import annotations

from pathlib import Path

from wvmonitor.detection.calibration import Calibration
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.store import CALIBRATION_FILE


def calibration_of(bank: ReferenceBank, path: str | Path | None = None) -> Calibration | None:
    """The calibration at `path`, or the one beside the bank if there is one.

    Raises:
        CalibrationError: it cannot be read, or belongs to another bank.
    """
    if path is None and bank.folder is not None and (bank.folder / CALIBRATION_FILE).is_file():
        path = bank.folder / CALIBRATION_FILE
    return None if path is None else Calibration.load(path, bank=bank.fingerprint)
