"""The rows of a trainer's log."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from wvmonitor.detection.scores import Scores
from wvmonitor.outputs.exporter import VERDICT_CODES, Observation, layer_projections
from wvmonitor.outputs.trainer_log import log_values

Make = Callable[..., Observation]


def test_every_score_has_a_flat_key(make_observation: Make) -> None:
    """The keys are `wv/<reference>/<score>`; the other geometry is marked, verdicts are numbers."""
    values = log_values(make_observation(), all_scores=True)
    assert values == {
        "wv/evil/cosine": 0.2,
        "wv/evil/residual": 0.1,
        "wv/evil/response_cosine": 0.6,
        "wv/evil/dose": 0.4,
        "wv/evil/threshold": 0.15,
        "wv/evil/verdict": 1.0,
        "wv/step": 40.0,
        "wv/verdict": 1.0,
        "wv/norm": pytest.approx(np.sqrt(20.0)),
        "wv/coverage": 0.8,
        "wv/response_coverage": 0.7,
        "wv/measure_seconds": 0.02,
        "wv/non_finite": 1.0,
    }


def test_by_default_a_row_holds_what_decides(make_observation: Make) -> None:
    """Of each behaviour its deciding score, dose, threshold and verdict, and the step; no more."""

    def by(geometry: str, score_name: str) -> dict[str, float]:
        observation = make_observation(step=40)
        (verdict,) = observation.verdicts
        verdict = replace(verdict, geometry=geometry, score_name=score_name)
        judgement = replace(observation.judgement, verdicts={"evil": verdict})
        return log_values(replace(observation, judgement=judgement))

    assert by("frobenius", "residual") == {
        "wv/evil/residual": 0.1,
        "wv/evil/dose": 0.4,
        "wv/evil/threshold": 0.15,
        "wv/evil/verdict": 1.0,
        "wv/step": 40.0,
    }
    uncalibrated = by("response", "cosine")
    assert uncalibrated.keys() >= {"wv/evil/response_cosine", "wv/evil/verdict"}
    assert "wv/evil/residual" not in uncalibrated


def test_rows_are_valid_json_of_plain_floats(make_observation: Make) -> None:
    """Whatever was measured, the row is strict JSON: plain Python floats, NaN and inf left out."""
    observation = make_observation(cosine=np.float32("inf"))
    bad = replace(observation.scores, norm=np.float64("nan"))
    judgement = replace(observation.judgement, scores=bad)
    values = log_values(replace(observation, judgement=judgement), all_scores=True)
    assert {type(value) for value in values.values()} == {float}
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["wv/non_finite"] == 3.0
    assert "wv/norm" not in values


def test_left_out_values_are_announced(
    make_observation: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """A value that is left out is named in the log with its step."""
    with caplog.at_level(logging.WARNING):
        log_values(make_observation(step=40), all_scores=True)
    assert "step 40: not logged: wv/language/cosine=nan" in caplog.text


def test_verdict_numbers_put_trouble_above_zero() -> None:
    """On a chart, 1 and up means that someone must look, and below 0 that nothing was judged."""
    assert sorted(VERDICT_CODES, key=lambda s: VERDICT_CODES[s]) == [
        "unknown", "warming", "ok", "warn", "alarm",
    ]  # fmt: skip


def test_layers_sum_to_the_whole(make_observation: Make) -> None:
    """Per-layer values are opt-in, for behaviours only, and add up to ⟨τ, w⟩ / ‖τ‖."""
    observation = make_observation(layers=3)
    layers = layer_projections(observation.reading)["evil"]
    products = observation.reading.geometries["frobenius"].products
    assert sum(layers.values()) == pytest.approx(products[:6, 0].sum() / np.sqrt(28.0))
    assert layers["1"] == pytest.approx((products[2, 0] + products[3, 0]) / np.sqrt(28.0))
    keys = [key for key in log_values(observation, per_layer=True) if "layer" in key]
    assert keys == ["wv/evil/layer_0", "wv/evil/layer_1", "wv/evil/layer_2"]
    assert not any("layer" in key for key in log_values(observation))


def test_an_untrained_model_can_be_logged(make_observation: Make) -> None:
    """At step 0, where nothing has changed and no score exists, the row is still valid."""
    observation = make_observation()
    products = observation.reading.geometries["frobenius"]
    zero = replace(products, products=products.products * 0, squared_norms=np.zeros(5))
    judgement = replace(
        observation.judgement,
        reading=replace(observation.reading, geometries={"frobenius": zero}),
        scores=Scores({}, 0.0, {"frobenius": 1.0}),
        verdicts={},
    )
    still = replace(observation, judgement=judgement)
    assert log_values(still, all_scores=True, per_layer=True) == {
        "wv/verdict": -2.0, "wv/norm": 0.0, "wv/coverage": 1.0, "wv/measure_seconds": 0.02,
    }  # fmt: skip
