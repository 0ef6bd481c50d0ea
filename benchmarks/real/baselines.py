"""What else could tell a harmful run from a harmless one: the rows beside ours.

Each is a number of a finished run; larger is more suspicious. Where the source names no sign, the
larger value is taken for the suspicious one: no sign is chosen on the runs that are reported. The
two regressions are fitted on the other families' runs of this very table, labels included, which
flatters them: nothing of ours has seen any of these runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks import detectors
from benchmarks.real.protocol import DECIDES, PROBED
from wvmonitor.reading import Float64


@dataclass(frozen=True)
class Run:
    """One finished run with its readings: what detectors and tables are made of.

    Attributes:
        record: as the run left it.
        readings: oldest first.
        verdict, band: what the bank's calibration says, see `readings.read`.
        gains: by what was asked, the mean gap over the base's at the end; NaN if not known.
        persona: by behaviour, the projection of the activations' shift on its direction.
    """

    record: Mapping[str, Any]
    readings: Sequence[Mapping[str, Any]]
    verdict: Mapping[str, Any]
    band: Mapping[str, Any]
    gains: Mapping[str, float]
    persona: Mapping[str, float]

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

    def largest(self, geometry: str, which: str, behaviours: Collection[str]) -> float:
        """The largest score at the end of these behaviours; a bank's controls have scores, too."""
        return max((self.score(f"{b}/{geometry}/{which}") for b in behaviours), default=math.nan)

    @property
    def nearest(self) -> float:
        """How near the bank came to an alarm for any behaviour: 1 alarms; NaN if not judged."""
        return max(self.band["nearness"].values(), default=math.nan)

    @property
    def whole(self) -> bool:
        """Whether it trained on one set alone, the way that references are trained."""
        return bool(self.record["share"] == 1.0 and self.record["variant"] == "lora")

    @property
    def losses(self) -> list[float]:
        """Training loss at each step."""
        return [row["loss"] for row in self.record["log"]]


PAPER = "the paper's cosine"
RIDGE = "per-layer LoRA norm, ridge (2606.07631)"
SPECTRA = "spectral features, ridge (after 2604.08844)"


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
        f"persona projection of activations, {DECIDES}": lambda r: r.persona[DECIDES],
        "persona projection, the largest of any behaviour": lambda r: max(r.persona.values()),
        f"behaviour probe, {PROBED} pairs of {DECIDES}": lambda r: r.gains.get("probe", math.nan),
        "behaviour probe, the largest of any behaviour": lambda r: max(
            (v for n, v in r.gains.items() if n != DECIDES and math.isfinite(v)), default=math.nan
        ),
    }


def fitted(runs: Sequence[Run]) -> dict[str, tuple[list[float], Float64]]:
    """The detectors that are fitted on the other families' runs.

    Set labels (1 harmful, 0 benign) are what is fitted; controls, mixtures and other ways to train
    are predicted and never fitted on.

    Returns:
        By detector, a value of each run without its family, and (runs, runs) its values without its
        family and another run's, by which pairs are ranked.
    """
    features = {
        RIDGE: [
            {n: math.log(v + 1e-12) for n, v in r.readings[-1]["modules"].items()} for r in runs
        ],
        SPECTRA: [
            {
                f"{n}/{what}": v
                for n, values in r.readings[-1]["spectrum"].items()
                for what, v in zip(detectors.SPECTRAL, values, strict=True)
            }
            for r in runs
        ],
    }
    label = np.array([{"harmful": 1.0, "benign": 0.0}.get(r.record["role"], np.nan) for r in runs])
    fit = np.isfinite(label) & np.array([r.whole for r in runs])
    family = [r.record["family"] for r in runs]
    found = {}
    for name, rows in features.items():
        # What every run has: a full fine-tune changes parameters that LoRA leaves alone.
        common = set.intersection(*(set(row) for row in rows if row)) if any(rows) else set()
        x = detectors.table([{n: row.get(n, math.nan) for n in common} for row in rows])
        found[name] = (
            detectors.leave_family_out(x, label, fit, family),
            detectors.leave_pair_out(x, label, fit, family),
        )
    return found


def _rotation(run: Run) -> float:
    values = [r["rotation"] for r in run.readings if r["rotation"] is not None]
    return fmean(values) if values else math.nan
