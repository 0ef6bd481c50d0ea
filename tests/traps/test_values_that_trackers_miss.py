"""From `callbacks=[...]` a change of `logs` comes too late for every tracker."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class Tracker(TrainerCallback):
    """Keeps the rows that W&B, TensorBoard or MLflow would send."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.rows.append(dict(logs))


def test_values_join_the_rows_of_the_trainer(begin: Callable[..., Any]) -> None:
    """Trackers and log_history see the scores in the loss's own row; no row is added or lost."""
    tracker = Tracker()
    run = begin(tracker)
    run.step()
    assert run.trainer.control.should_log, "warming has become ok: the first change is one, too"
    run.trainer.control.should_log = False
    run.step()
    assert not run.trainer.control.should_log, "a row would end the loss's averaging window"
    run.trainer.log({"loss": 1.0})
    run.trainer.log({"loss": 2.0})
    first, second = tracker.rows
    assert first["loss"] == 1
    assert "wv/evil/response_cosine" in first
    assert second == {"loss": 2.0} | {k: v for k, v in second.items() if k == "epoch"}
    assert len(run.trainer.state.log_history) == 2
    (row, _), key = run.trainer.state.log_history, "wv/evil/response_cosine"
    assert row[key] == first[key]
