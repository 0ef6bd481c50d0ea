"""What scores and verdicts need to know of a bank beside its Gram matrix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wvmonitor.detection.calibration import Calibration
from wvmonitor.detection.scores import resolve_ridge
from wvmonitor.reading import GEOMETRIES, Component, Geometry
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


def ridges(
    bank: ReferenceBank, components: tuple[Component, ...], calibration: Calibration | None
) -> Mapping[Geometry, float]:
    """λ of the residual score by geometry: the calibration's where it has one, else chosen."""
    chosen = {
        g: resolve_ridge(None, bank.gram, g, components)
        for g in GEOMETRIES
        if g in bank.gram.products
    }
    if calibration is not None and calibration.ridge is not None:
        chosen[calibration.geometry] = calibration.ridge
    return chosen
