"""A stop that only the process knew of is forgotten when the run is started again."""

from collections.abc import Callable
from typing import Any


def test_a_stop_outlives_the_process(begin: Callable[..., Any]) -> None:
    """A run that was stopped is stopped again before its first step, whoever starts it."""
    first = begin(run="one")
    first.callback.monitor.journal.latch_stop("drifts towards evil")
    first.callback.monitor.close()
    assert not first.trainer.control.should_training_stop
    again = begin(run="one")
    assert again.trainer.control.should_training_stop
    assert again.callback.monitor.stop_latched() == "drifts towards evil"
    again.callback.monitor.close()
    assert not begin(run="another").trainer.control.should_training_stop
