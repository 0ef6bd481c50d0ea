"""The calibration as it is kept: the band, its promise, and the JSON file.

How it is made is in `calibration.py`.
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from wvmonitor.detection.support import Support
from wvmonitor.errors import (
    CalibrationError,
    FormatVersionError,
    MalformedFileError,
    MissingPathError,
)
from wvmonitor.reading import Component, Geometry

FORMAT_VERSION = 2
"""Version 1 knew no band of gains; such files are read, and judge by the score alone."""

MAX_ALPHA = 0.25
"""Largest α: above it a band would be noise, and `warn`, at twice α, the rule."""

DecidingScore = Literal["cosine", "residual", "margin", "module_cosine"]


class Band(BaseModel):
    """Centre and spread of one behaviour's score on the progress grid."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mu: tuple[float, ...]
    sigma: tuple[float, ...]


class GainBand(BaseModel):
    """The same of what the score has gained of late (`conformal.gains`).

    Attributes:
        span: how far back that looks, as a fraction of the run.
        bands: by behaviour; σ is in a unit in which the score's own multiplier is the gain's too.
        sigma_min: least σ that a gain is divided by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    span: float
    bands: dict[str, Band]
    sigma_min: float


class WindowBand(BaseModel):
    """What benign runs' windows score, for runs of unknown length (`edetector.py`).

    Attributes:
        mu, sigma: by behaviour; σ with its floor.
        block: windows in a block.
        blocks: how many blocks α is spent on; after them nothing can be judged.
        multiplier, warn_multiplier: of the alarm's and the warning's threshold μ + M·σ.
        maxima: M_i of the runs that set the thresholds, ascending.
        lags: least and largest window, in steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mu: dict[str, float]
    sigma: dict[str, float]
    block: int
    blocks: int
    multiplier: float
    warn_multiplier: float
    maxima: tuple[float, ...]
    lags: tuple[int, int]


class Calibration(BaseModel):
    """A split-conformal trajectory band (design, section 5), as kept in its JSON file.

    Attributes:
        bank: fingerprint of the bank that the scores came from.
        geometry, score, components, ridge: the deciding score, and what it was computed with.
        alpha: the promised bound on the share of benign runs that alarm.
        grid: progress of the band's points, from 0 to 1.
        bands: by behaviour.
        sigma_min: least σ that a score is divided by.
        multiplier: M_(k); the alarm's threshold is μ + M·max(σ, σ_min).
        warn_alpha, warn_multiplier: the same for `warn`.
        maxima: M_i of the runs that set the band, ascending.
        rate_bound: 95 % upper bound of the share of benign runs that really alarm.
        fit_datasets, band_datasets: the two halves.
        support: the kind of run that all this speaks of.
        gain: what the score gains of late, M_i being the larger of both; None in older files.
        windows: for runs of unknown length, where the benign runs had windows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: int = FORMAT_VERSION
    bank: str
    geometry: Geometry
    score: DecidingScore
    components: tuple[Component, ...]
    ridge: float | None
    alpha: float
    grid: tuple[float, ...]
    bands: dict[str, Band]
    sigma_min: float
    multiplier: float
    warn_alpha: float
    warn_multiplier: float
    maxima: tuple[float, ...]
    rate_bound: float
    fit_datasets: tuple[str, ...]
    band_datasets: tuple[str, ...]
    support: Support
    gain: GainBand | None = None
    windows: WindowBand | None = None

    @property
    def n_fit(self) -> int:
        """Runs that fitted μ and σ."""
        return len(self.fit_datasets)

    @property
    def n_band(self) -> int:
        """Runs that set the band: the n of the guarantee."""
        return len(self.band_datasets)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Every benign dataset, in alphabetical order."""
        return tuple(sorted((*self.fit_datasets, *self.band_datasets)))

    def threshold(self, reference: str, progress: float | None) -> float:
        """The alarm's threshold μ + M·max(σ, σ_min) at this progress.

        At unknown progress (None) it is the largest over the whole run, which only a score that
        would be an alarm at any time can pass.

        Raises:
            CalibrationError: the reference is not one of the calibrated behaviours.
        """
        return self._limit(reference, progress, self.multiplier)

    def warn_threshold(self, reference: str, progress: float | None) -> float:
        """The same for `warn`."""
        return self._limit(reference, progress, self.warn_multiplier)

    def exceedance(self, reference: str, progress: float, value: float) -> float:
        """(value − μ)/max(σ, σ_min) at this progress; it alarms above `multiplier`."""
        mu, sigma = self._at(reference, progress)
        return (value - mu) / sigma

    def gain_thresholds(self, reference: str, progress: float) -> tuple[float, float]:
        """The thresholds of `warn` and of the alarm for what the score has gained of late.

        Raises:
            CalibrationError: this calibration has none, or the reference is not in it.
        """
        mu, sigma = self._gain_at(reference, progress)
        return mu + self.warn_multiplier * sigma, mu + self.multiplier * sigma

    def gain_exceedance(self, reference: str, progress: float, value: float) -> float:
        """`exceedance` of what the score has gained of late; it alarms above `multiplier` too."""
        mu, sigma = self._gain_at(reference, progress)
        return (value - mu) / sigma

    def require_bank(self, bank: str) -> None:
        """Check that scores of this bank may be held against this calibration.

        Raises:
            CalibrationError: the calibration belongs to another bank.
        """
        if bank != self.bank:
            raise CalibrationError(
                f"this calibration belongs to the bank {self.bank[:12]}…, the scores come from the "
                f"bank {bank[:12]}…: calibrate again with this bank, or use the one it was made for"
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, bank: str | None = None) -> Self:
        """Read a calibration, and check that it belongs to `bank` if that is given.

        Raises:
            MissingPathError: there is no such file.
            MalformedFileError: the file is not a calibration.
            FormatVersionError: a newer version of wvmonitor wrote it.
            CalibrationError: it belongs to another bank.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise MissingPathError(
                f"no calibration can be read at {path} ({error.strerror}): give the JSON file that "
                "`wvmonitor calibrate` wrote"
            ) from error
        except ValueError as error:
            raise MalformedFileError(
                f"{path} is not JSON ({error}): restore the calibration, or make it again"
            ) from error
        version = document.get("format_version") if isinstance(document, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise FormatVersionError(
                f"{path} has calibration format {version}, this wvmonitor reads up to "
                f"{FORMAT_VERSION}: upgrade wvmonitor"
            )
        try:
            calibration = cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"]) or "the document"
            raise MalformedFileError(
                f"{path} is not a calibration ({where}: {first['msg']}): restore it, or make it "
                "again"
            ) from error
        if bank is not None:
            calibration.require_bank(bank)
        return calibration

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file atomically: readers see the old file or the whole new one."""
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(self.model_dump_json(indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _limit(self, reference: str, progress: float | None, multiplier: float) -> float:
        times = self.grid if progress is None else (progress,)
        levels = [self._at(reference, time) for time in times]
        return max(mu + multiplier * sigma for mu, sigma in levels)

    def _at(self, reference: str, progress: float) -> tuple[float, float]:
        return self._interpolated(self.bands, self.sigma_min, reference, progress)

    def _gain_at(self, reference: str, progress: float) -> tuple[float, float]:
        if self.gain is None:
            raise CalibrationError(
                "this calibration is of an older format and has no band of gains: make it again"
            )
        return self._interpolated(self.gain.bands, self.gain.sigma_min, reference, progress)

    def _interpolated(
        self, bands: dict[str, Band], sigma_min: float, reference: str, progress: float
    ) -> tuple[float, float]:
        """Interpolated μ and max(σ, σ_min)."""
        if reference not in bands:
            raise CalibrationError(
                f"{reference!r} is not among the calibrated behaviours "
                f"({', '.join(sorted(bands))}): calibrate with this bank"
            )
        band = bands[reference]
        mu = float(np.interp(progress, self.grid, band.mu))
        sigma = float(np.interp(progress, self.grid, band.sigma))
        return mu, max(sigma, sigma_min)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        gained = self.gain.bands if self.gain else {}
        curves = [c for b in (*self.bands.values(), *gained.values()) for c in (b.mu, b.sigma)]
        curves += [self.support.smallest_norm, self.support.largest_norm]
        if len(self.grid) < 2 or any(a >= b for a, b in pairwise(self.grid)):
            raise ValueError("grid must increase")
        if any(len(c) != len(self.grid) for c in curves):
            raise ValueError("every curve must have as many points as the grid")
        if not self.bands or self.sigma_min <= 0 or not 0 < self.alpha <= MAX_ALPHA:
            raise ValueError(f"needs bands, sigma_min > 0 and alpha in (0, {MAX_ALPHA}]")
        if self.gain and (
            set(gained) != set(self.bands) or self.gain.sigma_min <= 0 or not 0 < self.gain.span < 1
        ):
            raise ValueError("gain needs the same behaviours, sigma_min > 0 and span in (0, 1)")
        if self.warn_multiplier > self.multiplier:
            raise ValueError("warn_multiplier must not exceed multiplier")
        return self
