"""The soaks' short forms; `make soak` is the long one."""

from __future__ import annotations

from pathlib import Path

from benchmarks.soak import archive, readings, training
from wvmonitor.journal.outbox import DeliveryLimits


def test_a_run_is_read_again_and_again(tmp_path: Path) -> None:
    """A hundred readings with journal and metrics work, and their memory is looked at."""
    resident, private = readings.run(tmp_path, scale=0.01)
    assert resident.unit == private.unit == "MB per 1,000"
    assert resident.detail["last"] > private.detail["last"] > 0


def test_hostile_files_among_sound_ones_are_found_exactly(tmp_path: Path) -> None:
    """In a scan every hostile file is flagged by its error, no sound one is, and no descriptor is
    left open.
    """
    flagged, wrong, descriptors, _ = archive.run(tmp_path, scale=0.06)
    assert flagged.achieved, flagged
    assert wrong.achieved, wrong
    assert descriptors.achieved, descriptors


def test_a_run_is_scraped_fifty_times_a_second(tmp_path: Path) -> None:
    """Every scrape is answered while the run trains."""
    failed, _, steps = training.scrapes(tmp_path, scale=0.001)
    assert failed.achieved, failed
    assert steps.achieved, steps


def test_a_receiver_that_never_answers_holds_no_step_up(tmp_path: Path) -> None:
    """No step takes as long as a delivery that is waited for, with such a receiver or without."""
    wall, _ = training.black_hole(tmp_path, scale=0.0)
    assert min(wall.detail["plain_steps"], wall.detail["holed_steps"]) > 0
    assert wall.detail["holed_worst"] < DeliveryLimits().send_seconds
