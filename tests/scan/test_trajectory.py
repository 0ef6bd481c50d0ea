"""A run's checkpoints seen as one trajectory."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.scan.calibrations import calibration_for
from wvmonitor.integrations.checkpoints import step_of
from wvmonitor.outputs.checkpoint_record import write_record
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


def test_what_rode_along_is_not_called_ok(
    drifting_run: Path, tiny_bank_folder: Path, tmp_path: Path
) -> None:
    """Of an inoculated run's checkpoints and of its final model; a damaged record is told."""
    bank = ReferenceBank.load(tiny_bank_folder)
    run = shutil.copytree(drifting_run, tmp_path / "run")
    saved = sorted(run.glob("checkpoint-*"), key=step_of)
    for checkpoint in saved:
        write_record(str(checkpoint), "run", {"sycophancy": 1.0})
    for path in saved[-1].glob("adapter_*"):
        shutil.copy2(path, run)
    calibration = calibration_for(bank)
    alone = list(scan([drifting_run], bank, calibration=calibration))
    found = list(scan([run], bank, calibration=calibration))
    for result in found:
        said = result.references["sycophancy"]
        assert (said.verdict, said.reason[:22]) == ("unknown", "inoculated against it,")
    for before, after in zip(alone, found, strict=False):
        assert before.references["sycophancy"].verdict == "ok"
        assert before.references["evil"].verdict == after.references["evil"].verdict
    assert len(found) == len(alone) + 1
    for damaged in ("{", "[]", None):
        (saved[0] / "wvmonitor.json").unlink()
        if damaged is None:
            (saved[0] / "wvmonitor.json").symlink_to(tmp_path / "nowhere")
        else:
            (saved[0] / "wvmonitor.json").write_text(damaged)
        first = next(iter(scan([run], bank, calibration=calibration)))
        assert any("whether the run was inoculated is not known" in w for w in first.warnings)
        assert first.error is None
    (saved[0] / "wvmonitor.json").unlink()
    (saved[0] / "wvmonitor.json").write_text('{"inoculated": {"sycophancy": 1%s}}' % ("0" * 400))
    first = next(iter(scan([run], bank, calibration=calibration)))
    assert (first.references["sycophancy"].verdict, first.error) == ("ok", None)
