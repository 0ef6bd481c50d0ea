"""An observation with everything in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from wvmonitor.detection.scores import ReferenceScores, Scores
from wvmonitor.detection.verdict import Verdict
from wvmonitor.exporters.exporter import Observation
from wvmonitor.reading import Products, Reading


def build(
    step: int = 40, cosine: float = 0.2, state: str = "warn", run: str = "r1", layers: int = 2
) -> Observation:
    """One observation of a model with two parameters a layer."""
    size = 2 * layers + 1
    reading = Reading(
        references=("evil", "language"),
        parameters=(
            *(f"model.layers.{i // 2}.mlp.{'up' if i % 2 else 'down'}" for i in range(2 * layers)),
            "lm_head.weight",
        ),
        components=(*["blocks"] * (2 * layers), "head"),
        geometries={
            "frobenius": Products(
                products=np.arange(2.0 * size).reshape(size, 2),
                squared_norms=np.full(size, 4.0),
                covered=np.array([True] * (2 * layers) + [False]),
            )
        },
        bank="f" * 64,
        step=step,
        progress=0.25,
    )
    scores = Scores(
        references={
            "evil": ReferenceScores(
                "evil",
                "behaviour",
                {
                    "frobenius": {"cosine": cosine, "residual": 0.1},
                    "response": {"cosine": float(np.float64(0.6))},
                },
                dose=0.4,
            ),
            "language": ReferenceScores(
                "language", "control", {"frobenius": {"cosine": float("nan")}}
            ),
        },
        norm=reading.norm(),
        coverage={"frobenius": 0.8, "response": 0.7},
        step=step,
        progress=0.25,
    )
    verdict = Verdict("evil", state, "above", cosine, 0.15, "calibrated", step)  # type: ignore[arg-type]
    return Observation(
        run, reading, scores, (verdict,), 0.02, 1_700_000_000.5, ("frobenius", "cosine")
    )


@pytest.fixture
def make_observation() -> Callable[..., Any]:
    """Builds an observation."""
    return build
