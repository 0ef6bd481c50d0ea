"""How the command's process begins and ends."""

from __future__ import annotations

import atexit
import gc
import sys
from typing import Any

import pytest

from wvmonitor import __main__ as start
from wvmonitor.cli import app


@pytest.mark.parametrize(("command", "frozen"), [("scan", True), ("--help", True), ("trl", False)])
def test_a_command_ends_without_a_search_for_garbage_unless_it_runs_others_code(
    command: str, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever `wvmonitor trl` trains may count on how Python ends; no other command does."""
    at_exit: list[Any] = []
    monkeypatch.setattr(sys, "argv", ["wvmonitor", command])
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(start, "_collect_after_the_start", lambda: None)
    monkeypatch.setattr(app, "main", lambda: None)
    start.main()
    assert (gc.freeze in at_exit) is frozen
