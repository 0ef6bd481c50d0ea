"""A small world of dense weights, and the reading and Gram matrix of it computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest

from wvmonitor.detection.calibration import BenignRun, Calibration, calibrate
from wvmonitor.detection.scores import ReferenceScores, Scores
from wvmonitor.detection.verdict import RunContext
from wvmonitor.reading import Component, Geometry, Gram, Products, Reading

SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (9, 4),
    "model.layers.0.attn.q_proj.weight": (5, 4),
    "model.layers.0.mlp.up_proj.weight": (6, 4),
    "model.layers.1.attn.q_proj.weight": (5, 4),
    "model.layers.1.mlp.experts": (3, 2, 4),  # no response geometry
    "model.layers.10.mlp.up_proj.weight": (6, 4),
    "model.norm.weight": (4,),
}
COMPONENT: dict[str, Component] = dict.fromkeys(SHAPES, "blocks") | {
    "model.embed_tokens.weight": "embeddings",
    "model.norm.weight": "norms",
}
ONLY_IN_RUN = "model.layers.0.mlp.up_proj.weight"
ONLY_IN_BANK = "model.layers.1.attn.q_proj.weight"
KINDS = {"evil": "behaviour", "flattery": "behaviour", "french": "control", "terse": "control"}

Weights = dict[str, np.ndarray]


@dataclass
class World:
    """Dense float64 weights of one run (now and earlier) and of every reference."""

    run: Weights
    earlier: Weights
    references: dict[str, Weights]
    probes: Weights
    kinds: Mapping[str, str]

    def vector(
        self, weights: Weights, geometry: Geometry, components: tuple[Component, ...] = ("blocks",)
    ) -> np.ndarray:
        """One long vector whose plain dot product is the inner product of the geometry."""
        pieces = []
        for name in SHAPES:
            if COMPONENT[name] not in components:
                continue
            value = weights.get(name, np.zeros(SHAPES[name]))
            if geometry == "frobenius":
                pieces.append(value.ravel())
            elif name in self.probes:
                pieces.append((value @ self.probes[name].T).ravel())
        return np.concatenate(pieces) if pieces else np.zeros(1)

    def piece(self, weights: Weights, name: str, geometry: Geometry) -> np.ndarray | None:
        value = weights.get(name, np.zeros(SHAPES[name]))
        if geometry == "frobenius":
            return value.ravel()
        return (value @ self.probes[name].T).ravel() if name in self.probes else None

    def reading(self, weights: Weights | None = None, *, reverse: bool = False) -> Reading:
        """The reading of the run, its parameters in an order of their own."""
        weights = self.run if weights is None else weights
        names = sorted(weights, reverse=reverse)
        geometries: dict[Geometry, Products] = {}
        for geometry in ("frobenius", "response"):
            products = np.zeros((len(names), len(self.references)))
            squares = np.full(len(names), np.nan)
            lagged = np.full(len(names), np.nan)
            for p, name in enumerate(names):
                mine = self.piece(weights, name, geometry)
                if mine is None:
                    continue
                squares[p] = mine @ mine
                lagged[p] = mine @ self.piece(self.earlier, name, geometry)
                for r, reference in enumerate(self.references.values()):
                    products[p, r] = mine @ self.piece(reference, name, geometry)
            covered = np.array(
                [
                    any(n in w for w in self.references.values())
                    and (geometry == "frobenius" or n in self.probes)
                    for n in names
                ]
            )
            geometries[geometry] = Products(products, squares, covered, lagged)
        return Reading(
            references=tuple(self.references),
            parameters=tuple(names),
            components=tuple(COMPONENT[n] for n in names),
            geometries=geometries,
            bank="bank",
            step=20,
            progress=0.5,
            lag_step=10,
        )

    def before(self) -> Reading:
        return replace(self.reading(self.earlier), step=10)

    def gram(self, shared: Mapping[Geometry, np.ndarray] | None = None) -> Gram:
        names = [n for n in SHAPES if any(n in w for w in self.references.values())]
        count = len(self.references)
        products: dict[Geometry, np.ndarray] = {}
        for geometry in ("frobenius", "response"):
            table = np.zeros((len(names), count, count))
            for p, name in enumerate(names):
                pieces = [self.piece(w, name, geometry) for w in self.references.values()]
                if pieces[0] is not None:
                    table[p] = np.array([[a @ b for b in pieces] for a in pieces])
            products[geometry] = table
        return Gram(
            references=tuple(self.references),
            kinds=tuple(self.kinds[r] for r in self.references),
            parameters=tuple(names),
            components=tuple(COMPONENT[n] for n in names),
            products=products,
            shared=shared or {},
        )


def _make_world(seed: int = 0, kinds: Mapping[str, str] = KINDS) -> World:
    rng = np.random.default_rng(seed)

    def weights(leave_out: str | None) -> Weights:
        return {n: rng.normal(size=s) for n, s in SHAPES.items() if n != leave_out}

    common = weights(None)
    references = {}
    for name in kinds:
        own = weights(ONLY_IN_RUN)
        references[name] = {n: v + 0.5 * common[n] for n, v in own.items()}
    run, earlier = weights(ONLY_IN_BANK), weights(ONLY_IN_BANK)
    run = {n: v + 0.4 * references["evil"].get(n, 0) for n, v in run.items()}
    probes = {
        n: rng.normal(size=(7, s[1]))
        for n, s in SHAPES.items()
        if len(s) == 2 and COMPONENT[n] == "blocks"
    }
    return World(run, earlier, references, probes, kinds)


@pytest.fixture(scope="session")
def make_world() -> Callable[..., World]:
    """Builds a world from a seed and the references' kinds."""
    return _make_world


@pytest.fixture(scope="session")
def world() -> World:
    """The world of seed 0; not to be changed."""
    return _make_world()


# --- judging: scores without weights ---------------------------------------------------------

CONTEXT = RunContext(
    method="lora", rank=8, optimizer="adamw", learning_rate=1e-4, planned_steps=100
)


def _make_scores(
    progress: float | None = 0.5,
    *,
    norm: float = 1.0,
    coverage: float = 1.0,
    geometry: Geometry = "response",
    name: str = "residual",
    ridge: float = 0.1,
    extra: Mapping[str, float] | None = None,
    **values: float,
) -> Scores:
    """Scores of behaviours, one deciding value each, and of a control that alarms nobody."""
    references = {
        r: ReferenceScores(r, "behaviour", {geometry: {name: v, **(extra or {})}})
        for r, v in values.items()
    }
    references["french"] = ReferenceScores("french", "control", {geometry: {name: 0.9}})
    return Scores(
        references=references,
        norm=norm,
        coverage={geometry: coverage},
        step=None if progress is None else round(100 * progress),
        progress=progress,
        ridge={geometry: ridge},
        bank="bank",
    )


@pytest.fixture(scope="session")
def make_scores() -> Callable[..., Scores]:
    """Builds scores from the deciding values of behaviours."""
    return _make_scores


def _benign_runs(
    count: int, *, readings: int = 20, seed: int = 0, context: RunContext = CONTEXT
) -> list[BenignRun]:
    """Benign runs of two behaviours: AR(0.95) scores around 0.02, norms that grow, up to twice as
    fast in one run as in another.
    """
    rng = np.random.default_rng(seed)
    runs = []
    for i in range(count):
        series = _ar(rng, readings, 2)
        scores = [
            _make_scores(
                (t + 1) / readings,
                norm=(0.2 + t / readings) * (1 + i / count),
                evil=float(a),
                flattery=float(b),
            )
            for t, (a, b) in enumerate(series)
        ]
        runs.append(BenignRun(f"dataset-{seed}-{i:04d}", scores, context))
    return runs


def _ar(rng: np.random.Generator, length: int, width: int, rho: float = 0.95) -> np.ndarray:
    """(length, width) AR(ρ) with a run effect, in units of a cosine."""
    noise = rng.normal(size=(length, width)) * np.sqrt(1 - rho**2)
    noise[0] = rng.normal(size=width)
    for t in range(1, length):
        noise[t] += rho * noise[t - 1]
    return 0.02 + 0.01 * rng.normal(size=width) + 0.01 * noise


@pytest.fixture(scope="session")
def benign_runs() -> Callable[..., list[BenignRun]]:
    """Builds benign runs, each of its own dataset."""
    return _benign_runs


@pytest.fixture(scope="session")
def calibration() -> Calibration:
    """39 benign runs, two behaviours, α = 5 %."""
    return calibrate(_benign_runs(39), bank="bank")


@pytest.fixture(scope="session")
def context() -> RunContext:
    """The kind of run that `calibration` was made from."""
    return CONTEXT
