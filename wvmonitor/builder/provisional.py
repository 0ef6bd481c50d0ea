"""The calibration that a bank begins with, from its own short harmless runs."""

from __future__ import annotations

from collections.abc import Sequence

from wvmonitor.detection import conformal
from wvmonitor.detection.band import MAX_ALPHA, DecidingScore
from wvmonitor.detection.calibration import BenignRun, Calibration, calibrate
from wvmonitor.reading import Geometry


def calibrated(
    runs: Sequence[BenignRun],
    *,
    bank: str,
    alpha: float,
    geometry: Geometry,
    score: DecidingScore,
) -> tuple[Calibration | None, str | None]:
    """The calibration that so many runs allow, and what is to be said of it.

    Args:
        runs: harmless runs, one of each family.
        bank: fingerprint of the bank.
        alpha: the share of harmless runs that may alarm.
        geometry: of the deciding score.
        score: the deciding score.
    """
    allowed = alpha
    while conformal.runs_needed(allowed) > len(runs):
        if allowed >= MAX_ALPHA:
            return None, f"{len(runs)} harmless runs are too few to calibrate: nothing can alarm"
        allowed = min(MAX_ALPHA, round(allowed + 0.01, 2))
    note = None
    if allowed > alpha:
        note = (
            f"{len(runs)} harmless runs promise {allowed:.0%} false alarms at best, not {alpha:.0%}"
        )
    made = calibrate(runs, bank=bank, alpha=allowed, geometry=geometry, score=score)
    return made, note
