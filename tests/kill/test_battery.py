"""kill −9: the short form; `make kill` is the long one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_killed_work_loses_nothing_and_goes_on() -> None:
    """After kill −9 at a random moment of a training, a scan or a build, all that was said to
    be done is there once, every alert is delivered, and the end is that of undisturbed work.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill.battery", "--points", "4", "--seed", "3"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = re.findall(r"(\w+): (\d+) points, (\d+) killed in the middle, 0 problems", done.stdout)
    assert [name for name, *_ in found] == ["training", "scan", "build"]
    assert int(found[0][1]) >= 2
    assert all(int(kills) > 0 for *_, kills in found)
