"""Which checkpoints a run goes back to, and which it moves: its own, and none is ever lost."""

from __future__ import annotations

import json
from pathlib import Path

from wvmonitor.integrations.checkpoints import KEPT, KeptCheckpoints, riding_in


def saved(folder: Path, step: int, run: str, weights: str = "") -> Path:
    """A whole checkpoint of a run."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "wvmonitor.json").write_text(json.dumps({"run": run}))
    (checkpoint / "trainer_state.json").write_text("{}")
    (checkpoint / "model.safetensors").write_text(weights)
    return checkpoint


def test_a_run_goes_back_to_no_other_run_s_checkpoint(tmp_path: Path) -> None:
    """What an earlier run of the folder kept is not this one's last ok checkpoint."""
    saved(tmp_path / KEPT / "ok", 100, "first")
    saved(tmp_path / KEPT / "ok", 8, "first")
    kept = KeptCheckpoints(tmp_path)
    assert kept.last_ok("second", 10) is None
    own = saved(tmp_path / KEPT / "ok", 6, "second")
    assert kept.last_ok("second", 10) == own
    assert kept.last_ok("second", 5) is None


def test_what_is_set_aside_takes_no_other_checkpoint_s_place(tmp_path: Path) -> None:
    """An earlier run's alarm at the same step, and its checkpoints, stay as they are."""
    saved(tmp_path / KEPT / "alarm", 30, "first", "first's")
    earlier = saved(tmp_path, 100, "first")
    saved(tmp_path, 30, "second", "second's")
    (moved,) = KeptCheckpoints(tmp_path).set_aside_after(20, "second")
    assert not moved.exists()
    assert earlier.is_dir()
    held = {p.read_text() for p in (tmp_path / KEPT / "alarm").glob("*/model.safetensors")}
    assert held == {"first's", "second's"}


def test_a_damaged_record_says_nothing_and_ends_nothing(tmp_path: Path) -> None:
    """A run that asks for no remedy resumes, whatever lies beside its checkpoint."""
    checkpoint = saved(tmp_path, 3, "run")
    for damaged in ("{", "[]", '{"inoculated": {"evil": "1"}}', '{"inoculated": 3}'):
        (checkpoint / "wvmonitor.json").write_text(damaged)
        assert riding_in(checkpoint) == {}
    (checkpoint / "wvmonitor.json").write_text('{"inoculated": {"evil": 1}}')
    assert riding_in(checkpoint) == {"evil": 1.0}
