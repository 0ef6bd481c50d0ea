"""A run's checkpoints seen as one trajectory."""

from __future__ import annotations

from pathlib import Path

from tests.scan.calibrations import calibration_for
from wvmonitor.references import ReferenceBank
from wvmonitor.scan.scan import scan
from wvmonitor.scan.trajectory import sentence, trajectories


def test_the_step_to_go_back_to(drifting_run: Path, tiny_bank_folder: Path) -> None:
    """A run that turns bad says when, where it is heading, and which checkpoint is still good."""
    bank = ReferenceBank.load(tiny_bank_folder)
    (found,) = trajectories(list(scan([drifting_run], bank, calibration=calibration_for(bank))))
    assert found.checkpoints == 5
    assert found.verdict == "alarm"
    assert found.go_back_to == str(drifting_run / "checkpoint-4")
    assert found.go_back_to_step == 4
    evil, other = found.references["evil"], found.references["sycophancy"]
    assert (evil.first_warn, evil.first_alarm, evil.trend) == (6, 6, "rising")
    assert evil.slope > 0
    assert (other.first_warn, other.first_alarm) == (None, None)
    assert "alarm from step 6" in sentence(found)
    assert "go back to step 4" in sentence(found)


def test_lone_checkpoints_are_no_trajectory(good_adapter: Path, tiny_bank_folder: Path) -> None:
    """Adapters scanned by themselves make no trajectory."""
    assert trajectories(list(scan([good_adapter], ReferenceBank.load(tiny_bank_folder)))) == []


def test_a_quiet_run_needs_no_way_back(drifting_run: Path, tiny_bank_folder: Path) -> None:
    """A run that never crossed names no step to go back to, and what has no slope is unknown."""
    bank = ReferenceBank.load(tiny_bank_folder)
    results = list(scan([drifting_run], bank, behaviours=["sycophancy"]))
    (found,) = trajectories(results)
    assert found.go_back_to is None
    assert "go back" not in sentence(found)
    (single,) = trajectories(results[:1])
    assert single.references["sycophancy"].trend == "unknown"
