"""An organisation's adapters on the Hub: huggingface_hub itself, against a loopback server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.references.hub_server import TOKEN, Hub, Repository
from wvmonitor.scan.organisation import organisation_of


def files_of(folder: Path, inside: str = "") -> dict[str, bytes]:
    """A folder's files as a repository has them."""
    return {f"{inside}{p.name}": p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def hub(good_adapter: Path, bad_adapter: Path, tiny_base: Path) -> Iterator[Hub]:
    """Four repositories of a team: two adapters, one in a subfolder, and a whole model."""
    server = Hub()
    for name, files in {
        "good": files_of(good_adapter),
        "bad": files_of(bad_adapter),
        "below": {"README.md": b"# it", **files_of(good_adapter, "adapter/")},
        "whole": files_of(tiny_base),
    }.items():
        server.repositories[f"team/{name}"] = Repository(private=name == "good")
        server.repositories[f"team/{name}"].commit(files)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def command(hub: Hub, tiny_bank_folder: Path, tiny_base: Path, tmp_path: Path) -> Callable:
    """Runs `wvmonitor scan` in a process whose Hub is that server."""

    def run(*arguments: str | Path, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        hub.requests.clear()
        hub.ranges.clear()
        hub.whole.clear()
        given = ["--references", str(tiny_bank_folder), "--base", str(tiny_base)]
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": token,
            "HF_HOME": str(tmp_path / "home"),
            "NO_PROXY": "127.0.0.1",
        }
        return subprocess.run(
            [sys.executable, "-m", "wvmonitor", "scan", *map(str, arguments), *given],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
            check=False,
        )

    return run


def test_every_adapter_of_an_organisation_is_judged_by_ranges_and_once(
    command: Callable, hub: Hub, tmp_path: Path
) -> None:
    """Adapters by their commits, subfolders included; whole models named; a second scan is free."""
    cache = tmp_path / "cache"
    asked = ("hf://team", "--cache", cache, "--fail-on", "warn", "--format", "json")
    first = command(*asked)
    assert first.returncode == 1, first.stderr
    results = json.loads(first.stdout)["checkpoints"]
    by_name = {r["path"].split("@")[0].removeprefix("hf://"): r for r in results}
    assert set(by_name) == {"team/good", "team/bad", "team/below"}
    assert [r["verdict"] for r in by_name.values() if r["path"].count("below")] == ["ok"]
    assert by_name["team/bad"]["verdict"] == "warn"
    assert by_name["team/good"]["verdict"] == "ok"
    commit = hub.repositories["team/bad"].main
    assert by_name["team/bad"]["path"] == f"hf://team/bad@{commit}"
    assert any("'team/whole'" in n["message"] for r in results for n in r["notices"])
    assert "team/bad/adapter_model.safetensors" in hub.ranges
    assert not [name for name in hub.whole if name.endswith(".safetensors")]
    second = command(*asked)
    assert json.loads(second.stdout)["checkpoints"] == results
    assert not [name for name in hub.ranges if name.endswith(".safetensors")]


def test_what_cannot_be_seen_is_not_clean(command: Callable) -> None:
    """An organisation, or a repository, that is not there is not judged, and what to do is said."""
    asked = ("hf://nobody", "hf://team/gone", "--format", "json")
    found = command(*asked, token="wrong")  # noqa: S106  of nobody
    assert found.returncode == 2
    nobody, gone = json.loads(found.stdout)["checkpoints"]
    assert "none of the 0 repositories" in nobody["error"]["message"]
    assert "does not exist" in gone["error"]["message"]


def test_a_repository_is_scanned_by_its_name(command: Callable, hub: Hub) -> None:
    """hf://ORG/REPO reads a repository where it is."""
    found = command("hf://team/bad", "--fail-on", "warn")
    assert found.returncode == 1
    assert "hf://team/bad" in found.stdout
    assert hub.ranges


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("hf://team", "team"),
        ("hf://team/", "team"),
        ("hf://team/repo", None),
        ("hf://datasets", None),
        ("s3://team", None),
        ("team", None),
    ],
)
def test_an_organisation_is_told_from_a_repository(path: str, name: str | None) -> None:
    """Only hf://ORG is a whole organisation."""
    assert organisation_of(path) == name
