"""Small real readings, and a program that journals them until it is killed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from wvmonitor.detection.judgement import BehaviourState, Judgement, JudgeState
from wvmonitor.detection.scores import ReferenceScores, Scores
from wvmonitor.detection.verdict import State, Verdict
from wvmonitor.reading import Products, Reading

REFERENCES = ("evil", "language")


def entry(step: int | None, state: str = "ok", cosine: float = 0.01, seed: int = 0) -> Judgement:
    """What `Journal.record` takes for one step."""
    rng = np.random.default_rng((step or 0) + 1000 * seed)
    products = Products(
        products=rng.normal(size=(3, 2)),
        squared_norms=np.array([0.5, np.nan, 1e-300]),
        covered=np.array([True, False, True]),
        lagged=rng.normal(size=3),
    )
    reading = Reading(
        references=REFERENCES,
        parameters=("model.layers.0.q", "model.layers.0.k", "lm_head"),
        components=("blocks", "blocks", "head"),
        geometries={"frobenius": products},
        bank="f" * 64,
        step=step,
        progress=None if step is None else step / 1000,
        changed_fraction=0.25,
        lag_step=0,
        warnings=("δ < resolution",),
    )
    scores = Scores(
        references={
            "evil": ReferenceScores(
                "evil", "behaviour", {"frobenius": {"cosine": cosine, "margin": 0.1}}, dose=0.3
            ),
            "language": ReferenceScores(
                "language", "control", {"frobenius": {"cosine": float("nan")}}
            ),
        },
        norm=float("inf") if cosine == float("inf") else 1.25,
        coverage={"frobenius": 0.75},
        step=step,
        progress=reading.progress,
        warnings=("w",),
    )
    verdict = Verdict(
        "evil", State(state), "because", cosine, 0.1, "calibrated", step,
        geometry="frobenius", score_name="cosine",
    )  # fmt: skip
    evil = BehaviourState(running_maximum=float(step or 0), consecutive=2, alarmed=True)
    return Judgement(reading, scores, {"evil": verdict}, JudgeState({"evil": evil}))


@pytest.fixture
def make_entry() -> Callable[..., Judgement]:
    """A judged reading of one step."""
    return entry
