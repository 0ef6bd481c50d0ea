"""An observation with everything in it, and an alert to send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from wvmonitor.detection.judgement import Judgement
from wvmonitor.detection.scores import ReferenceScores, Scores
from wvmonitor.detection.verdict import State, Verdict
from wvmonitor.journal.alerts import Alert
from wvmonitor.outputs.exporter import Observation
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
    verdict = Verdict(
        "evil", State(state), "above", cosine, 0.15, "calibrated", step,
        geometry="frobenius", score_name="cosine",
    )  # fmt: skip
    judgement = Judgement(
        reading, scores, {"evil": verdict}, component_shares=reading.component_shares()
    )
    return Observation(run, judgement, 0.02, 1_700_000_000.5)


@pytest.fixture
def make_observation() -> Callable[..., Any]:
    """Builds an observation."""
    return build


@pytest.fixture
def make_alert() -> Callable[..., Alert]:
    """Builds an alert."""

    def build(**values: Any) -> Alert:
        return Alert(**{
            "key": "k" * 32, "run": "r", "reference": "evil", "status": "firing",
            "severity": "alarm", "replaces": None, "reason": "score 0.2 above 0.1", "score": 0.2,
            "threshold": 0.1, "calibration": "calibrated", "step": 40, "since": 1_700_000_000.0,
            "time": 1_700_000_100.0, **values,
        })  # fmt: skip

    return build
