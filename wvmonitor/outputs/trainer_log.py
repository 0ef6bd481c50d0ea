"""The values that join a trainer's own log, and so reach W&B, TensorBoard, MLflow and the rest.

| key | meaning |
|---|---|
| `wv/<reference>/<score>` | a score in the Frobenius geometry: cosine, residual, margin, window |
| `wv/<reference>/response_<score>` | the same score in the response geometry |
| `wv/<reference>/dose` | the steering coefficient that explains the drift |
| `wv/<reference>/threshold` | what the deciding score is held against at this progress |
| `wv/<reference>/verdict` | 0 ok, 1 warn, 2 alarm, −1 warming, −2 unknown |
| `wv/<reference>/layer_<l>` | ⟨τ_l, w_l⟩ / ‖τ‖, behaviours only, where `per_layer` is asked for |
| `wv/verdict` | the verdict that most needs someone to look, same numbers |
| `wv/norm` | ‖τ‖ |
| `wv/coverage`, `wv/response_coverage` | share of ‖τ‖² that scores look at |
| `wv/measure_seconds` | how long this reading took |
| `wv/non_finite` | how many values were NaN or infinite and left out; absent at 0 |
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from wvmonitor.outputs.exporter import VERDICT_CODES, Observation, layer_projections, overall

logger = logging.getLogger(__name__)


def log_values(observation: Observation, *, per_layer: bool = False) -> dict[str, float]:
    """The observation as flat keys and plain Python floats, every one of them finite.

    NaN would make a trainer's JSON invalid, and a tensor or numpy scalar would break its
    checkpoint; so non-finite values are left out, counted in `wv/non_finite`, and logged.
    """
    values: dict[str, float] = {}
    dropped = []
    for key, value in _pairs(observation, per_layer=per_layer):
        number = float(value)
        if math.isfinite(number):
            values[key] = number
        else:
            dropped.append(f"{key}={number}")
    if dropped:
        values["wv/non_finite"] = float(len(dropped))
        logger.warning("step %s: not logged: %s", observation.scores.step, ", ".join(dropped))
    return values


def _pairs(observation: Observation, *, per_layer: bool) -> Iterator[tuple[str, float]]:
    scores = observation.scores
    for name, reference in scores.references.items():
        for geometry, by_score in reference.values.items():
            prefix = "" if geometry == "frobenius" else f"{geometry}_"
            for score, value in by_score.items():
                yield f"wv/{name}/{prefix}{score}", value
        if reference.dose is not None:
            yield f"wv/{name}/dose", reference.dose
    for verdict in observation.verdicts:
        if verdict.threshold is not None:
            yield f"wv/{verdict.reference}/threshold", verdict.threshold
        yield f"wv/{verdict.reference}/verdict", VERDICT_CODES[verdict.state]
    if per_layer:
        for name, layers in layer_projections(observation.reading).items():
            if name in scores.references and scores.references[name].kind == "behaviour":
                for layer, value in layers.items():
                    yield f"wv/{name}/layer_{layer}", value
    yield "wv/verdict", VERDICT_CODES[overall(observation.verdicts)]
    yield "wv/norm", scores.norm
    for geometry, share in scores.coverage.items():
        yield f"wv/{'' if geometry == 'frobenius' else f'{geometry}_'}coverage", share
    yield "wv/measure_seconds", observation.measure_seconds
