"""Calibrations that grow: provisional from the first harmless runs, calibrated when it can be.

A calibration keeps what it needs of its runs, so that every harmless run that is watched later can
be added to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from wvmonitor.detection import conformal
from wvmonitor.detection.band import Calibration, DecidingScore
from wvmonitor.detection.benign import BenignRun, Deciding, KeptRun
from wvmonitor.detection.calibration import calibrated_from, collected
from wvmonitor.detection.provisional import provisional_from
from wvmonitor.detection.repeats import require_different_data
from wvmonitor.detection.support import SLACK
from wvmonitor.errors import CalibrationError
from wvmonitor.reading import Geometry

COMMON = 0.25
"""A length counts as the runs' own if at least this share of them are as long."""


def calibrate_as_far_as_possible(
    runs: Sequence[BenignRun],
    *,
    bank: str,
    alpha: float = 0.05,
    geometry: Geometry = "response",
    score: DecidingScore = "residual",
    by_their_ends: bool = True,
) -> Calibration:
    """A conformal calibration where there are enough runs of one length, else a provisional one.

    Args:
        runs: harmless runs, one of each dataset.
        bank: fingerprint of the bank.
        alpha: the share of harmless runs that may alarm.
        geometry: of the deciding score.
        score: the deciding score.
        by_their_ends: False believes that runs that end alike have datasets of their own.

    Raises:
        CalibrationError: there are too few runs even for that, two of one dataset, or one that
            cannot be used.
    """
    like, usable = collected(runs, bank, alpha, geometry, score)
    require_different_data(usable, by_their_ends=by_their_ends)
    return _of(usable, like, alpha)


def _of(runs: Sequence[KeptRun], like: Deciding, alpha: float) -> Calibration:
    whole = of_full_length(runs)
    if len(whole) >= conformal.runs_needed(alpha, len(like.behaviours)):
        return calibrated_from(whole, like, alpha)
    return provisional_from(runs, like, alpha)


def of_full_length(runs: Sequence[KeptRun]) -> list[KeptRun]:
    """Those as long as runs here are: as long as at least a quarter of them."""
    lengths = sorted((r.length for r in runs), reverse=True)
    usual = lengths[int(COMMON * (len(lengths) - 1))]
    long = [r for r in runs if r.length * SLACK >= usual]
    furthest = max(r.progress[-1] for r in long)
    return [r for r in long if r.progress[-1] * SLACK >= furthest]


def with_more(
    calibration: Calibration, runs: Sequence[BenignRun], *, by_their_ends: bool = True
) -> Calibration:
    """The calibration with more harmless runs in it; calibrated as soon as their number allows.

    Raises:
        CalibrationError: it is of an older format and holds no runs, one of the new runs cannot be
            used or is of a dataset that it holds already, or it would guarantee less than before.
    """
    if not calibration.runs:
        raise CalibrationError(
            "this calibration does not hold its runs (an older version made it), so none can be "
            "added: make it again from all runs with `wvmonitor calibrate`"
        )
    repeated = sorted({r.dataset for r in runs} & {r.dataset for r in calibration.runs})
    if repeated:
        raise CalibrationError(
            f"the calibration holds a run of {', '.join(repeated)} already: seeds of one dataset "
            "are not independent runs, add runs of other data"
        )
    like, usable = collected(
        runs, calibration.bank, calibration.alpha, calibration.geometry, calibration.score
    )
    mine = Deciding(
        calibration.bank,
        calibration.geometry,
        calibration.score,
        calibration.components,
        calibration.ridge,
        tuple(sorted(calibration.bands)),
    )
    if like != mine:
        raise CalibrationError(
            "the new runs were scored otherwise than the calibration's (behaviours, components or "
            "λ): read them again with the bank as it is"
        )
    together = [*calibration.runs, *usable]
    require_different_data(together, by_their_ends=by_their_ends)
    made = _of(together, like, calibration.alpha)
    if calibration.status == "calibrated" and made.status == "provisional":
        raise CalibrationError(
            "with these longer runs the calibration would be provisional again, for there are too "
            "few of their length: make a calibration of its own for them"
        )
    return made
