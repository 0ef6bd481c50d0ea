"""The soaks' short forms; `make soak` is the long one."""

from __future__ import annotations

from pathlib import Path

from benchmarks.soak import archive, readings


def test_a_run_is_read_again_and_again(tmp_path: Path) -> None:
    """A hundred readings with journal and metrics work, and their memory is looked at."""
    (figure,) = readings.run(tmp_path, scale=0.01)
    assert figure.unit == "MB per 1,000"
    assert figure.detail["last"] > 0


def test_hostile_files_among_sound_ones_are_found_exactly(tmp_path: Path) -> None:
    """In a scan every hostile file is flagged by its error, no sound one is, and no descriptor is
    left open.
    """
    flagged, wrong, descriptors, _ = archive.run(tmp_path, scale=0.06)
    assert flagged.achieved, flagged
    assert wrong.achieved, wrong
    assert descriptors.achieved, descriptors
