"""The calibration as it is kept: the band, its guarantee, and the JSON file.

How it is made is in `calibration.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ValidationError, model_validator

from wvmonitor.detection.benign import AS_KEPT, KeptRun
from wvmonitor.detection.support import Support
from wvmonitor.errors import (
    CalibrationError,
    FormatVersionError,
    MalformedFileError,
    MissingPathError,
)
from wvmonitor.reading import Component, Geometry

FORMAT_VERSION = 3
"""Version 1 knew no band of gains; such files are read, and judge by the score alone. Up to version
2 one multiplier served all behaviours, and half of the runs fitted the centre; such files judge as
they did."""

MAX_ALPHA = 0.25
"""Largest α: above it a band would be noise, and `warn`, at twice α, the rule."""

DecidingScore = Literal["cosine", "residual", "margin", "module_cosine"]
Status = Literal["calibrated", "provisional"]


class Band(BaseModel):
    """Centre and spread of one behaviour's score on the progress grid."""

    model_config = AS_KEPT

    mu: tuple[float, ...]
    sigma: tuple[float, ...]


class GainBand(BaseModel):
    """The same of what the score has gained of late (`conformal.gains`).

    Attributes:
        span: how far back that looks, as a fraction of the run.
        bands: by behaviour; σ is in a unit in which the score's own multiplier is the gain's too.
        sigma_min: least σ that a gain is divided by, of older files.
    """

    model_config = AS_KEPT

    span: float
    bands: dict[str, Band]
    sigma_min: float = 0.0


class WindowBand(BaseModel):
    """What benign runs' windows score, for runs of unknown length (`edetector.py`).

    Attributes:
        mu, sigma: by behaviour; σ with its floor.
        block: windows in a block.
        blocks: how many blocks α is spent on; after them nothing can be judged.
        multiplier, warn_multiplier: by behaviour, of the alarm's and the warning's threshold
            μ + M·σ.
        maxima: by behaviour, M_i of the runs that set the thresholds, ascending.
        lags: least and largest window, in steps.
    """

    model_config = AS_KEPT

    mu: dict[str, float]
    sigma: dict[str, float]
    block: int
    blocks: int
    multiplier: dict[str, float]
    warn_multiplier: dict[str, float]
    maxima: dict[str, tuple[float, ...]]
    lags: tuple[int, int]

    @property
    def runs(self) -> int:
        """How many benign runs set the thresholds."""
        return len(next(iter(self.maxima.values())))

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_file(cls, document: Any) -> Any:
        return _for_every_behaviour(document, "mu")


class Calibration(BaseModel):
    """A trajectory band (design, section 5), as kept in its JSON file.

    Attributes:
        bank: fingerprint of the bank that the scores came from.
        status: what the thresholds rest on: a conformal band, or, of a few short runs, a prior.
        geometry, score, components, ridge: the deciding score, and what it was computed with.
        alpha: the share of benign runs that may alarm: a bound where `status` is "calibrated", an
            aim where it is "provisional".
        grid: progress of the band's points, from 0 to 1.
        bands: by behaviour.
        sigma_min: least σ that a score is divided by, of older files.
        multiplier: by behaviour, M_(k); the alarm's threshold is μ + M·σ.
        warn_alpha, warn_multiplier: the same for `warn`.
        maxima: by behaviour, M_i of the runs that set the band, ascending.
        rate_bound: 95 % upper bound of the share of benign runs that really alarm; None where
            nothing is guaranteed.
        folds: into how many parts the runs were cut, each held against the fit of the others; None
            in older files, where one half was held against the other.
        datasets: of all the runs, in alphabetical order.
        support: the kind of run that the calibration covers.
        gain: what the score gains of late, M_i being the larger of both; None in older files.
        windows: for runs of unknown length, where the benign runs had windows.
        runs: the benign runs themselves, so that more can be added; empty in older files.
    """

    model_config = AS_KEPT

    format_version: int = FORMAT_VERSION
    bank: str
    status: Status = "calibrated"
    geometry: Geometry
    score: DecidingScore
    components: tuple[Component, ...]
    ridge: float | None
    alpha: float
    grid: tuple[float, ...]
    bands: dict[str, Band]
    sigma_min: float = 0.0
    multiplier: dict[str, float]
    warn_alpha: float
    warn_multiplier: dict[str, float]
    maxima: dict[str, tuple[float, ...]]
    rate_bound: float | None
    folds: int | None = None
    datasets: tuple[str, ...]
    support: Support
    gain: GainBand | None = None
    windows: WindowBand | None = None
    runs: tuple[KeptRun, ...] = ()

    @property
    def n_band(self) -> int:
        """Runs that set the band: the n of the guarantee."""
        return len(next(iter(self.maxima.values())))

    def threshold(self, reference: str, progress: float | None) -> float:
        """The alarm's threshold μ + M·σ at this progress.

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
        """(value − μ)/σ at this progress; it alarms above the behaviour's `multiplier`."""
        mu, sigma = self._at(reference, progress)
        return (value - mu) / sigma

    def gain_thresholds(self, reference: str, progress: float) -> tuple[float, float]:
        """The thresholds of `warn` and of the alarm for what the score has gained of late.

        Raises:
            CalibrationError: this calibration has none, or the reference is not in it.
        """
        mu, sigma = self._gain_at(reference, progress)
        warn, alarm = self.warn_multiplier[reference], self.multiplier[reference]
        return mu + warn * sigma, mu + alarm * sigma

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
        if target.exists() and not target.is_file():  # a device or a pipe stays what it is
            target.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
            return
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(self.model_dump_json(indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _limit(
        self, reference: str, progress: float | None, multiplier: Mapping[str, float]
    ) -> float:
        times = self.grid if progress is None else (progress,)
        levels = [self._at(reference, time) for time in times]
        return max(mu + multiplier[reference] * sigma for mu, sigma in levels)

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
        """Interpolated μ and σ, σ with the floor that older files keep apart."""
        if reference not in bands:
            raise CalibrationError(
                f"{reference!r} is not among the calibrated behaviours "
                f"({', '.join(sorted(bands))}): calibrate with this bank"
            )
        band = bands[reference]
        mu = float(np.interp(progress, self.grid, band.mu))
        sigma = float(np.interp(progress, self.grid, band.sigma))
        return mu, max(sigma, sigma_min)

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_file(cls, document: Any) -> Any:
        """Up to format 2 every behaviour had the same multipliers, from all of them together."""
        document = _for_every_behaviour(document, "bands")
        if not isinstance(document, dict) or "fit_datasets" not in document:
            return document
        halves = {*document["fit_datasets"], *document["band_datasets"]}
        rest = {k: v for k, v in document.items() if k not in ("fit_datasets", "band_datasets")}
        return {**rest, "datasets": tuple(sorted(halves))}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        gained = self.gain.bands if self.gain else {}
        curves = [c for b in (*self.bands.values(), *gained.values()) for c in (b.mu, b.sigma)]
        curves += [self.support.smallest_norm, self.support.largest_norm]
        if len(self.grid) < 2 or any(a >= b for a, b in pairwise(self.grid)):
            raise ValueError("grid must increase")
        if any(len(c) != len(self.grid) for c in curves):
            raise ValueError("every curve must have as many points as the grid")
        if not self.bands or not 0 < self.alpha <= MAX_ALPHA:
            raise ValueError(f"needs bands, and alpha in (0, {MAX_ALPHA}]")
        if not _positive(self.bands, self.sigma_min):
            raise ValueError("every sigma must be positive")
        if self.gain and (
            set(gained) != set(self.bands)
            or not _positive(gained, self.gain.sigma_min)
            or not 0 < self.gain.span < 1
        ):
            raise ValueError("gain needs the same behaviours, positive sigmas and span in (0, 1)")
        if any(set(m) != set(self.bands) for m in (self.multiplier, self.warn_multiplier)):
            raise ValueError("every behaviour needs its multipliers")
        if set(self.maxima) != set(self.bands):
            raise ValueError("every behaviour needs its maxima")
        if any(self.warn_multiplier[b] > self.multiplier[b] for b in self.bands):
            raise ValueError("warn_multiplier must not exceed multiplier")
        if (self.rate_bound is None) != (self.status == "provisional"):
            raise ValueError("a provisional calibration promises no rate, any other does")
        return self


def _positive(bands: Mapping[str, Band], floor: float) -> bool:
    return all(max(sigma, floor) > 0 for band in bands.values() for sigma in band.sigma)


def _for_every_behaviour(document: Any, named_by: str) -> Any:
    """The document with one multiplier and one set of maxima a behaviour, where there was one."""
    if not isinstance(document, dict) or not isinstance(document.get(named_by), dict):
        return document
    shared = ("multiplier", "warn_multiplier", "maxima")
    return {
        key: dict.fromkeys(document[named_by], value)
        if key in shared and not isinstance(value, dict)
        else value
        for key, value in document.items()
    }
