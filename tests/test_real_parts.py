"""A suite that left out the real programs says so, and fails where that must not be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("ci", "code"), [("false", 0), ("true", 1)])
def test_a_real_part_that_is_skipped_is_loud(tmp_path: Path, ci: str, code: int) -> None:
    """One line with the count, and a failure with CI=true."""
    bare = {**os.environ, "CI": ci, "PATH": str(tmp_path)}  # where no program is
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "tests/observability/test_rules.py", "-k", "shipped_configuration or durations"],
        cwd=Path(__file__).parents[1], env=bare, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    assert "NOT TESTED: 1 tests of the real Prometheus" in done.stdout
