"""The values that join a trainer's own log, and so reach W&B, TensorBoard, MLflow and the rest.

By default, of each behaviour, what its verdict rests on:

| key | meaning |
|---|---|
| `wv/<reference>/<score>` | the deciding score: cosine, residual, margin; Frobenius geometry |
| `wv/<reference>/response_<score>` | the same in the response geometry |
| `wv/<reference>/dose` | the steering coefficient that explains the drift |
| `wv/<reference>/threshold` | what the deciding score is held against at this progress |
| `wv/<reference>/verdict` | 0 ok, 1 warn, 2 alarm, −1 warming, −2 unknown |
| `wv/<reference>/worst` | the worst verdict so far, for summaries: 0 only if it never rose |
| `wv/step` | the optimiser step whose weights these values speak of |
| `wv/non_finite` | how many values were NaN or infinite and left out; absent at 0 |

With `all_scores`, also every score of every reference and control in every geometry, and:

| key | meaning |
|---|---|
| `wv/verdict` | the verdict that most needs someone to look, same numbers |
| `wv/norm` | ‖τ‖ |
| `wv/coverage`, `wv/response_coverage` | share of ‖τ‖² that scores look at |
| `wv/measure_seconds` | how long this reading took |

With `per_layer`, `wv/<reference>/layer_<l>`: ⟨τ_l, w_l⟩ / ‖τ‖, behaviours only.

Trackers that sort a Trainer's keys by their origin (W&B, TensorBoard, Trackio, Comet) put `train/`
before each: a panel asks for `train/wv/evil/verdict`, where MLflow and `log_history` hold
`wv/evil/verdict`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from wvmonitor.outputs.exporter import VERDICT_CODES, Observation, layer_projections

logger = logging.getLogger(__name__)


def log_values(
    observation: Observation, *, all_scores: bool = False, per_layer: bool = False
) -> dict[str, float]:
    """The observation as flat keys and plain Python floats, every one of them finite.

    NaN would make a trainer's JSON invalid, and a tensor or numpy scalar would break its
    checkpoint; so non-finite values are left out, counted in `wv/non_finite`, and logged.
    """
    values: dict[str, float] = {}
    dropped = []
    for key, value in _pairs(observation, all_scores=all_scores, per_layer=per_layer):
        number = float(value)
        if math.isfinite(number):
            values[key] = number
        else:
            dropped.append(f"{key}={number}")
    if dropped:
        values["wv/non_finite"] = float(len(dropped))
        logger.warning("step %s: not logged: %s", observation.scores.step, ", ".join(dropped))
    return values


def _pairs(
    observation: Observation, *, all_scores: bool, per_layer: bool
) -> Iterator[tuple[str, float]]:
    scores = observation.scores
    judged = observation.judgement.verdicts
    for name, reference in scores.references.items():
        if not all_scores and name not in judged:
            continue
        decides = None if all_scores else (judged[name].geometry, judged[name].score_name)
        for geometry, by_score in reference.values.items():
            prefix = "" if geometry == "frobenius" else f"{geometry}_"
            for score, value in by_score.items():
                if decides in (None, (geometry, score)):
                    yield f"wv/{name}/{prefix}{score}", value
        if reference.dose is not None:
            yield f"wv/{name}/dose", reference.dose
    for verdict in observation.verdicts:
        if verdict.threshold is not None:
            yield f"wv/{verdict.reference}/threshold", verdict.threshold
        yield f"wv/{verdict.reference}/verdict", VERDICT_CODES[verdict.state]
        worst = observation.judgement.state.of(verdict.reference).worst
        if worst is not None:
            yield f"wv/{verdict.reference}/worst", VERDICT_CODES[worst.state]
    if scores.step is not None:
        yield "wv/step", scores.step
    if per_layer:
        for name, layers in layer_projections(observation.reading).items():
            if name in scores.references and scores.references[name].kind == "behaviour":
                for layer, value in layers.items():
                    yield f"wv/{name}/layer_{layer}", value
    if not all_scores:
        return
    yield "wv/verdict", VERDICT_CODES[observation.judgement.overall]
    yield "wv/norm", scores.norm
    for geometry, share in scores.coverage.items():
        yield f"wv/{'' if geometry == 'frobenius' else f'{geometry}_'}coverage", share
    yield "wv/measure_seconds", observation.measure_seconds
