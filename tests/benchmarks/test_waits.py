"""What the benchmark of waits measures of a process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.waits import _run, _Version


def test_the_peak_of_memory_is_the_commands_own(tmp_path: Path) -> None:
    """Whatever this process has held, and whatever a smaller command holds beside it."""
    np.ones(300_000_000, np.uint8)
    version = _Version(tmp_path, tmp_path / "digests")
    small, large = (
        _run(("-S", "-c", f"print(len(b'x' * {n}))"), version, tmp_path) for n in (1, 100_000_000)
    )
    assert small[0].strip() == "1"
    assert small[2] < 100 < large[2] < 200


def test_a_command_that_fails_ends_the_benchmark(tmp_path: Path) -> None:
    """With its exit code and what it said."""
    version = _Version(tmp_path, tmp_path / "digests")
    with pytest.raises(RuntimeError, match="ended with 1: no such journal"):
        _run(("-S", "-c", "raise SystemExit('no such journal')"), version, tmp_path)
