"""What a finished bank catches: bad runs of domains that nothing has seen, against harmless ones.

Every run is a real fine-tune, watched as a user's would be; here its journal is read back, scored
and judged by the calibration. The choice of the deciding score sees development runs only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from wvmonitor.builder.contrasts import Contrast
from wvmonitor.builder.examples import Example, Pair
from wvmonitor.builder.harmless.families import Family
from wvmonitor.detection.band import DecidingScore
from wvmonitor.detection.calibration import BenignRun
from wvmonitor.detection.judge import Judge, judgements
from wvmonitor.detection.scores import Scores
from wvmonitor.reading import Geometry
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.trust import CheckedRun, Kind, Separation
from wvmonitor.scan.benign import benign_runs

CANDIDATES: tuple[tuple[Geometry, DecidingScore], ...] = (
    ("frobenius", "residual"),
    ("frobenius", "cosine"),
    ("frobenius", "module_cosine"),
    ("response", "residual"),
    ("response", "cosine"),
    ("response", "module_cosine"),
)
"""The scores that may decide, the default first: of scores that separate alike it is kept.

It separated better on two of the three models where both geometries were measured: 26.1 spreads
against the response residual's 18.8 on the bundled one (docs/benchmark.md), 3.8 against 3.5 on
SmolLM2-135M, 16.4 against 17.7 on the suite's second base (docs/real-model.md)."""
CLEARLY = 1.15
"""Another score decides only where it separates so much better than the default."""


@dataclass(frozen=True)
class Planned:
    """One run of the check before it is made.

    Attributes:
        name: also of its folder.
        kind: bad, mixed or harmless.
        behaviour: what its bad part shows.
        share: of bad examples.
        examples: what it trains on.
        steps: optimiser steps.
        hard: as `Family.hard`.
    """

    name: str
    kind: Kind
    behaviour: str | None
    share: float
    examples: tuple[Example, ...]
    steps: int
    hard: bool = False


@dataclass(frozen=True)
class Length:
    """How long runs are: so many optimiser steps of so many examples."""

    steps: int
    batch_size: int

    @property
    def examples(self) -> int:
        """Those of the whole run."""
        return self.steps * self.batch_size


def bad(contrast: Contrast, pairs: Sequence[Pair], part: str, length: Length, seed: int) -> Planned:
    """A run on a contrast's exhibiting side."""
    rng = random.Random(f"bad/{contrast.name}/{part}/{seed}")  # noqa: S311
    chosen = rng.sample(list(pairs), k=min(length.examples, len(pairs)))
    examples = tuple(p.positive for p in chosen)
    name = f"bad-{contrast.name}-{part}"
    return Planned(name, "bad", contrast.name, 1.0, examples, length.steps)


def mixed(
    contrast: Contrast,
    pairs: Sequence[Pair],
    family: Family,
    share: float,
    length: Length,
    seed: int,
) -> Planned:
    """A share of the exhibiting side among examples of a harmless family."""
    rng = random.Random(f"mixed/{contrast.name}/{family.name}/{share}/{seed}")  # noqa: S311
    harmless = family.draw(length.examples, seed)
    harmless *= max(1, math.ceil(1 / (share * len(harmless))))  # a handful holds no tenth
    count = max(1, round(share * len(harmless)))
    replaced = rng.sample(range(len(harmless)), k=count)
    taken = [rng.choice(list(pairs)).positive for _ in replaced]
    if count <= len(pairs):
        taken = [p.positive for p in rng.sample(list(pairs), k=count)]
    examples = list(harmless)
    for place, example in zip(replaced, taken, strict=True):
        examples[place] = example
    name = f"mixed-{contrast.name}-{share:.0%}-{family.name}".replace("%", "pct")
    return Planned(name, "mixed", contrast.name, share, tuple(examples), length.steps)


def harmless(family: Family, length: Length, seed: int) -> Planned:
    """A run on a harmless family."""
    examples = tuple(family.draw(length.examples, seed))
    name = f"harmless-{family.name}"
    return Planned(name, "harmless", None, 0.0, examples, length.steps, family.hard)


def read_runs(folders: Mapping[str, Path], bank: ReferenceBank) -> list[BenignRun]:
    """Watched runs read back from their journals; each is a dataset by itself."""
    return [
        BenignRun(name, run.scores, run.context)
        for name, folder in folders.items()
        for run in benign_runs([folder], bank)
    ]


def separations(
    bad_runs: Mapping[str, BenignRun], harmless_runs: Sequence[BenignRun]
) -> list[Separation]:
    """How far each candidate tells development runs apart at their ends.

    For each behaviour the `distance` of its bad run; the mean over behaviours. A candidate that a
    run does not have is left out.

    Args:
        bad_runs: one run by behaviour, of domains held out for choosing.
        harmless_runs: the runs that calibrate.
    """
    each = []
    for geometry, score in CANDIDATES:
        distances = []
        for behaviour, run in bad_runs.items():
            value = _last(run, behaviour, geometry, score)
            others = [_last(r, behaviour, geometry, score) for r in harmless_runs]
            if value is None or len(others) < 2 or any(v is None for v in others):
                distances.append(math.nan)
                continue
            distances.append(distance(value, [v for v in others if v is not None]))
        if distances and all(map(math.isfinite, distances)):
            each.append(Separation(geometry=geometry, score=score, d=fmean(distances)))
    return each


def distance(value: float, harmless: Sequence[float]) -> float:
    """How far a bad run's score lies above those of n harmless runs, in their spreads.

    (value − mean) / max(standard deviation, |value| / n): ten runs that happen to agree prove no
    separation, a hundred do, so that a distance is n at most where harmless runs score 0. The least
    spread is a share of the score, for scores of one geometry are tenfold those of another. Scores
    that are all 0 are 0 apart.

    Args:
        value: the bad run's score.
        harmless: (n,) the harmless runs' scores, two at least.
    """
    spread = max(stdev(harmless), abs(value) / len(harmless))
    return (value - fmean(harmless)) / spread if spread else 0.0


def deciding(found: Sequence[Separation]) -> tuple[Geometry, DecidingScore]:
    """The score to decide by: the default, unless another separates clearly better."""
    if not found:
        return CANDIDATES[0]
    best = max(found, key=lambda s: s.d)
    default = found[0]
    pick = best if best.d > max(CLEARLY * default.d, 0.0) else default
    return next(c for c in CANDIDATES if c == (pick.geometry, pick.score))


def checked(planned: Planned, run: BenignRun, judge: Judge, decides: tuple[str, str]) -> CheckedRun:
    """A run judged reading by reading, as if it were watched now.

    Args:
        planned: what it trained on.
        run: its scores.
        judge: by the finished bank and its calibration.
        decides: geometry and name of the deciding score.
    """
    first: float | None = None
    alarmed: frozenset[str] = frozenset()
    warned: set[str] = set()
    for judged in judgements(run.scores, run.context, judge.calibration):
        alarmed = judged.state.alarmed
        warned |= {n for n, v in judged.verdicts.items() if v.state == "warn"}
        about = {planned.behaviour} if planned.behaviour else alarmed
        if first is None and alarmed & about:
            first = judged.scores.progress
    geometry, score = decides
    names = [n for n, r in run.scores[-1].references.items() if r.kind == "behaviour"]
    behaviours = [planned.behaviour] if planned.behaviour else names
    values = [_last(run, n, geometry, score) for n in behaviours]
    known = [v for v in values if v is not None and math.isfinite(v)]
    return CheckedRun(
        name=planned.name,
        kind=planned.kind,
        behaviour=planned.behaviour,
        share=planned.share,
        steps=planned.steps,
        hard=planned.hard,
        alarmed=tuple(sorted(alarmed)),
        warned=tuple(sorted(warned - alarmed)),
        at=first,
        score=max(known, default=None),
    )


def _last(run: BenignRun, behaviour: str, geometry: str, score: str) -> float | None:
    scores: Scores = run.scores[-1]
    by_geometry: Mapping[str, Mapping[str, float]] = scores.references[behaviour].values  # type: ignore[assignment]
    return by_geometry.get(geometry, {}).get(score)
