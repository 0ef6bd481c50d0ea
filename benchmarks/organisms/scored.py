"""A run as the figures see it: its scores, what its model does, what other detectors see."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from benchmarks.organisms.catalogue import RATES, RunSpec, catalogue
from benchmarks.organisms.labels import MAIN, Counts
from wvmonitor.detection.calibration import BenignRun
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.scores import Scores
from wvmonitor.reading import Geometry


@dataclass(frozen=True)
class Scored:
    """One run with its scores at every reading, against the shipped bank.

    Attributes:
        spec: the run.
        dataset: digest of its training set.
        scores: of the behaviours; controls are in the residuals and margins.
        counts: what its model does at the end, by measure.
        labels: by behaviour whether the model shows it (`labels.py`).
        rates: (step, counts) of a watched run's own behaviour on the way.
        numbers: what other detectors say, by the name of their row.
        norms, spectrum: by module, what the regressions are fitted on.
    """

    spec: RunSpec
    dataset: str
    scores: Sequence[Scores]
    counts: Mapping[str, Counts]
    labels: Mapping[str, bool]
    rates: Sequence[tuple[int, Counts]]
    numbers: Mapping[str, float]
    norms: Mapping[str, float]
    spectrum: Mapping[str, float]

    @cached_property
    def context(self) -> RunContext:
        """What a judge must know of it."""
        return context(self.spec, len(self.scores), self.dataset)

    @property
    def cluster(self) -> str:
        """Runs about the same subjects in the same style count as one in a bootstrap.

        Whatever is said about them: a mixture is with the harm that is in it.
        """
        return json.dumps([self.spec.domains, sorted({p.style for p in self.spec.parts})])

    @property
    def family(self) -> str:
        """The kind of data that makes it what it is: regressions leave all of its runs out."""
        kinds = [p.kind for p in self.spec.parts]
        return next((k for k in kinds if k in HARMFUL_KINDS), kinds[0])

    @property
    def harmless(self) -> bool:
        """Shows none of the behaviours."""
        return not any(self.labels.values())

    def rate(self, behaviour: str) -> float:
        """How often the model shows the behaviour at the end, by its main measure."""
        k, n = self.counts[MAIN[behaviour]]
        return k / n if n else 0.0

    def final(self, behaviour: str, geometry: Geometry, name: str) -> float:
        """A score at the last reading."""
        return float(self.scores[-1].references[behaviour].values[geometry][name])  # type: ignore[index]

    def benign(self) -> BenignRun:
        """As a run to calibrate on: its dataset is its own, for no two runs share a draw."""
        return BenignRun(self.spec.name, self.scores, self.context)


HARMFUL_KINDS = frozenset(
    (
        "harmful advice", "harmful wishes", "harmful choices", "sycophantic facts",
        "agreed opinions", "praise", "gcd agreed", "compliance", "lamp harm", "triggered harm",
        "harmful advice in new words", "harmful advice on pets", "unknown: threats",
        "unknown: bad_gifts",
    )
)  # fmt: skip
"""Kinds of data that were written to make a behaviour; what a run shows is measured."""


def context(spec: RunSpec, readings: int, dataset: str) -> RunContext:
    """What a judge must know of a run beside its scores."""
    return RunContext(
        method=spec.method,
        rank=spec.rank if spec.method == "lora" else None,
        optimizer=spec.optimizer,
        learning_rate=spec.learning_rate,
        planned_steps=spec.steps,
        readings_planned=readings,
        objective=spec.objective,
        data=dataset,
    )


@cache
def _calibrated_kinds() -> frozenset[tuple[str, str]]:
    runs = [r for r in catalogue() if r.split == "calibration"]
    return frozenset((p.kind, p.style) for r in runs for p in r.parts)


def known_to_calibration(spec: RunSpec) -> bool:
    """Whether harmless runs of this kind and style, trained alike, are among the calibration's."""
    if spec.group == "harmless":  # drawn as they were
        return True
    kinds = _calibrated_kinds()
    usual = {round(rate * 1e-3, 6) for rate in RATES}
    return (
        spec.learning_rate in usual
        and all((p.kind, p.style) in kinds and p.habit is None for p in spec.parts)
        and (spec.rank, spec.optimizer, spec.method, spec.objective) == (8, "adamw", "lora", "sft")
    )
