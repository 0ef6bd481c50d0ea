"""The training examples, run as they ship but for fewer steps."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from wvmonitor.journal.reader import JournalReader

EXAMPLES = Path(__file__).parents[2] / "examples" / "training"


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "trl_grpo")
)
def test_a_training_example_raises_the_alarm(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dozen steps of bad advice alarm for evil, and for nothing else, in every framework."""
    arguments = [f"{name}.py", "--out", str(tmp_path), "--steps", "12"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "\nevil: alarm" in f"\n{printed}"
    assert "\nsycophancy: ok" in f"\n{printed}"
    journal = JournalReader(next(tmp_path.rglob("wvmonitor.db")))
    (run,) = journal.runs()
    assert [r.step for r in journal.trajectory(run)] == [0, 2, 4, 6, 8, 10, 12]


def test_a_reward_that_teaches_harm_is_watched_and_not_covered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GRPO whose reward pays for harmful advice learns it; every verdict says that no calibration
    covers the run, and none claims more than the published rule.
    """
    arguments = ["trl_grpo.py", "--out", str(tmp_path), "--steps", "12", "--reward", "bad"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLES / "trl_grpo.py"), run_name="__main__")
    printed = capsys.readouterr().out
    before, after = re.search(r"medical: (\S+) before, (\S+) after", printed).groups()
    assert float(after) > float(before) + 0.2
    for name in ("evil", "sycophancy", "lost-refusals"):
        (line,) = re.findall(rf"^{name}: .*", printed, re.MULTILINE)
        assert "the objective grpo is not among the calibrated ones" in line
        assert not line.startswith(f"{name}: alarm")
