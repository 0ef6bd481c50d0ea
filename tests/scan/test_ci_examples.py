"""The pipeline snippets that ship: what they run is run here, on good and on drifted weights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from wvmonitor import ReferenceBank
from wvmonitor.references.bundled import bundled_path
from wvmonitor.steering.edit import carry_out, plan

ROOT = Path(__file__).parents[2]
BASE = bundled_path("tiny-organism", "base")
BANK = bundled_path("tiny-organism", "bank")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one adapter that is evil by construction."""
    root = tmp_path_factory.mktemp("repository")
    bank = ReferenceBank.load(BANK)
    edit = plan(BASE, bank, add={"evil": 1.0}, remove={}, allow_harmful=True)
    carry_out(edit, BASE, bank, root / "adapters" / "bad", adapter=True, rank=8)
    return root


def run(command: str, repository: Path) -> subprocess.CompletedProcess[str]:
    """A line of a pipeline, in a shell, with this interpreter's `wvmonitor`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"REFERENCES": str(BANK), "BASE": str(BASE), "PATH": path}
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=repository,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_github_action_fails_on_drift_with_an_annotation(repository: Path) -> None:
    """The workflow parses, asks for no rights, and its last step is a gate."""
    text = (ROOT / "examples/ci/github-action.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    step = workflow["jobs"]["weights"]["steps"][-1]
    done = run(step["run"], repository)
    assert done.returncode == 1, done.stderr
    assert re.search(r"^::error ", done.stdout, re.MULTILINE)


def test_the_gitlab_job_fails_on_drift_with_a_test_report(repository: Path) -> None:
    """The report is the JUnit file that the job names."""
    job = yaml.safe_load((ROOT / "examples/ci/gitlab-ci.yml").read_text())["weights"]
    done = run(job["script"][-1], repository)
    assert done.returncode == 1, done.stderr
    written = repository / job["artifacts"]["reports"]["junit"]
    report = ElementTree.parse(written).getroot()  # noqa: S314  we wrote it
    assert report.findall(".//failure")


def test_the_pre_commit_hook_judges_the_files_it_matches(repository: Path) -> None:
    """pre-commit hands over the weights' files; the hook finds the adapter around them."""
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    files = [str(p.relative_to(repository)) for p in repository.rglob("*.safetensors")]
    matched = [f for f in files if re.search(hook["files"], f)]
    assert matched == ["adapters/bad/adapter_model.safetensors"]
    done = run(
        f'{hook["entry"]} --references "$REFERENCES" --base "$BASE" {matched[0]}', repository
    )
    assert done.returncode == 1, done.stderr
