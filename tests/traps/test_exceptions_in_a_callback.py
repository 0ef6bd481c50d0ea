"""An exception in a callback ends the training that it was to watch."""

from collections.abc import Callable
from typing import Any

import pytest

from wvmonitor.errors import MonitorFailedError


def fail(*_: Any, **__: Any) -> None:
    """What a broken monitor does."""
    raise RuntimeError("planted")


def test_training_goes_on_without_its_monitor(
    begin: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A monitor that breaks is counted, gives up loudly, and the Trainer hears nothing of it."""
    run = begin(disable_after=2)
    run.callback.monitor.bank.measure = fail
    for _ in range(4):
        run.step()
    assert run.callback.monitor.failures == 2
    assert run.callback.monitor.disabled
    assert "NOT being watched" in caplog.text
    assert not run.trainer.control.should_training_stop


def test_training_ends_where_that_was_asked_for(begin: Callable[..., Any]) -> None:
    """With `on_monitor_failure="stop"` an unwatched run does not go on."""
    run = begin(on_monitor_failure="stop")
    run.callback.monitor.bank.measure = fail
    with pytest.raises(MonitorFailedError, match="planted"):
        run.step()
