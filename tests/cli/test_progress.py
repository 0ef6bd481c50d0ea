"""Progress in lines, as a log has it."""

import time

from wvmonitor.cli import progress


def test_what_was_there_before_says_nothing_of_the_time_left(monkeypatch, capsys):
    """A stage that goes on at half its steps is timed by the steps that it still makes."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with progress.bars() as tick:
        tick("runs", 50, 100)
        now = 130.0
        tick("runs", 60, 100)
        now = 250.0
        tick("runs", 100, 100)
    assert capsys.readouterr().err.splitlines() == [
        "runs: 50 of 100 (0 s)",
        "runs: 60 of 100 (30 s, about 120 s left)",
        "runs: 100 of 100 (150 s)",
    ]
