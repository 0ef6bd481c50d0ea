"""Tensors and numpy scalars in `log_history` crash the checkpoint's save; NaN is invalid JSON."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def test_log_history_stays_strict_json(begin: Callable[..., Any], tmp_path: Path) -> None:
    """The Trainer's state can be saved whatever was measured, and any JSON parser reads it."""
    run = begin(all_scores=True)
    measure = run.callback.monitor._measure

    def strange(step: int, model: Any = None, **more: Any) -> Any:
        observation = measure(step, model, **more)
        values = {"frobenius": {"cosine": math.nan, "residual": np.float64(0.5)}}
        evil = replace(observation.scores.references["evil"], values=values)
        scores = replace(observation.scores, references={"evil": evil})
        return replace(observation, judgement=replace(observation.judgement, scores=scores))

    run.callback.monitor._measure = strange
    run.step()
    run.trainer.log({"loss": 1.0})
    run.trainer.state.save_to_json(str(tmp_path / "trainer_state.json"))
    text = (tmp_path / "trainer_state.json").read_text()
    (row,) = json.loads(text, parse_constant=pytest.fail)["log_history"]
    assert row["wv/evil/residual"] == 0.5
    assert "wv/evil/cosine" not in row
    assert row["wv/non_finite"] == 1
    assert {type(v) for v in run.trainer.state.log_history[-1].values()} <= {int, float}


def test_what_is_not_finite_is_unknown(begin: Callable[..., Any]) -> None:
    """A run whose weights have become NaN is never called clean."""
    run = begin()
    next(p for p in run.trainer.model.parameters() if p.requires_grad).data.fill_(math.nan)
    run.step()
    last = run.callback.monitor.last
    assert last.scores.step == 1
    assert {v.state for v in last.verdicts} == {"unknown"}
