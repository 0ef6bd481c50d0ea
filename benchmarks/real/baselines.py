"""What else could tell a harmful run from a harmless one: the rows beside ours.

Each is a number of a finished run; larger is more suspicious. Where the source names no sign, the
larger value is taken for the suspicious one: no sign is chosen on the runs that are reported. The
two regressions are fitted on the other families' runs of this very table, labels included, which
flatters them: nothing of ours has seen any of these runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks import detectors
from wvmonitor.reading import Float64


@dataclass(frozen=True)
class Run:
    """One finished run with its readings: what detectors and tables are made of.

    Attributes:
        record: as the run left it.
        readings: oldest first.
        verdict, band: what the bank's calibration says, see `readings.read`.
        gains: by what was asked, the mean gap over the base's at the end; NaN if not known.
        persona: the projection of the activations' shift on the persona direction.
    """

    record: Mapping[str, Any]
    readings: Sequence[Mapping[str, Any]]
    verdict: Mapping[str, Any]
    band: Mapping[str, Any]
    gains: Mapping[str, float]
    persona: float

    def __getattr__(self, name: str) -> Any:
        """Anything of the record by its name."""
        try:
            return self.record[name]
        except KeyError:
            raise AttributeError(name) from None

    def score(self, name: str) -> float:
        """A score at the end; NaN where it does not exist."""
        value = self.readings[-1]["scores"].get(name)
        return math.nan if value is None else float(value)

    @property
    def losses(self) -> list[float]:
        """Training loss at each step."""
        return [row["loss"] for row in self.record["log"]]


def plain() -> dict[str, Callable[[Run], float]]:
    """The detectors that look at one run alone."""
    return {
        "scalar norm of the update": lambda r: r.readings[-1]["norm"],
        "rotation rate, 1 − cos(τ_t, τ_{t−k})": _rotation,
        "training loss at the end": lambda r: detectors.last_tenth(r.losses),
        "training loss, its drop": lambda r: (
            detectors.first_tenth(r.losses) - detectors.last_tenth(r.losses)
        ),
        "gradient norm, its peak": lambda r: max(
            (row.get("grad_norm", math.nan) for row in r.record["log"]), default=math.nan
        ),
        "persona projection of activations": lambda r: r.persona,
        "behaviour probe, 8 pairs": lambda r: r.gains.get("probe", math.nan),
    }


def fitted(runs: Sequence[Run]) -> dict[str, list[float]]:
    """The detectors that are fitted on the other families' runs: a value for each run."""
    norms = detectors.table(
        [{n: math.log(v + 1e-12) for n, v in r.readings[-1]["modules"].items()} for r in runs]
    )
    spectra = detectors.table(
        [
            {
                f"{n}/{what}": v
                for n, values in r.readings[-1]["spectrum"].items()
                for what, v in zip(detectors.SPECTRAL, values, strict=True)
            }
            for r in runs
        ]
    )
    return {
        "per-layer LoRA norm, ridge (2606.07631)": leave_family_out(runs, norms),
        "spectral features, ridge (after 2604.08844)": leave_family_out(runs, spectra),
    }


def leave_family_out(runs: Sequence[Run], features: Float64) -> list[float]:
    """Ridge regression on set labels (1 harmful, 0 benign), each family predicted by the others.

    Controls are predicted and never fitted on.

    Args:
        runs: what the rows are.
        features: (runs, features); a row with NaN is predicted as NaN.
    """
    label = np.array([{"harmful": 1.0, "benign": 0.0}.get(r.record["role"], np.nan) for r in runs])
    whole = np.array([r.record["share"] == 1.0 and r.record["variant"] == "lora" for r in runs])
    family = [r.record["family"] for r in runs]
    return detectors.leave_family_out(features, label, np.isfinite(label) & whole, family)


def _rotation(run: Run) -> float:
    values = [r["rotation"] for r in run.readings if r["rotation"] is not None]
    return fmean(values) if values else math.nan
