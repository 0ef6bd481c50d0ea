"""What a release is made of."""

import os
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


def test_the_projects_own_workflow_runs_what_there_is() -> None:
    """Every step is a script of ours or a target of the Makefile; no rights are asked for."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    for command in [step["run"] for step in steps]:
        name, *target = command.removeprefix("sudo CI=true ").split()
        if name == "make":
            asked = ["make", "--dry-run", "--always-make", *target]
            subprocess.run(asked, cwd=ROOT, check=True, capture_output=True)
        else:
            assert os.access(ROOT / name, os.X_OK)
    assert {step["run"] for step in steps} == {
        "sudo CI=true .ci/programs",
        ".ci/run",
        "make release-check",
    }
