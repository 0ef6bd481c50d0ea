"""The folder in which artefacts are kept under a digest of what they depend on."""

from __future__ import annotations

from pathlib import Path

import pytest

from wvmonitor.builder.stages import Work


def test_what_another_process_has_made_meanwhile_is_kept(tmp_path: Path) -> None:
    """Two commands on one work folder: the slower one takes what the faster one has finished."""
    mine, theirs = Work(tmp_path), Work(tmp_path)

    def slow(folder: Path) -> None:
        (folder / "by").write_text("the slower one")
        theirs.tree("run", {"seed": 1}, lambda to: (to / "by").write_text("the faster one"))

    kept = mine.tree("run", {"seed": 1}, slow)
    assert (kept / "by").read_text() == "the faster one"
    assert [p.name for p in tmp_path.iterdir()] == [kept.name]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """What fails for another reason is told, and leaves nothing."""

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        Work(tmp_path).tree("run", {}, full)
    assert not list(tmp_path.iterdir())
