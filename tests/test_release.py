"""What a release is made of."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from wvmonitor import __version__

ROOT = Path(__file__).parent.parent


def test_the_sdist_is_the_whole_project(tmp_path: Path) -> None:
    """From the source distribution alone everything can be built, tested and documented."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    build = ["-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run([sys.executable, *build], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(tmp_path / f"wvmonitor-{__version__}.tar.gz") as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {n for n in tracked.stdout.split("\0") if n and (ROOT / n).exists()} <= held


def test_the_citation_names_this_version_and_the_paper() -> None:
    """CITATION.cff follows the version, and the paper of the method is in it."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__
    (paper,) = citation["references"]
    assert paper["title"] == "Steering Language Models with Weight Arithmetic"
    assert paper["url"].endswith("2511.05408")
    assert [a["family-names"] for a in paper["authors"]] == ["Fierro", "Roger"]
