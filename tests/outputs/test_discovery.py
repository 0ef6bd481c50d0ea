"""Prometheus finds every monitor of a machine by the files they write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from wvmonitor.outputs.prometheus import PrometheusExporter


def targets(folder: Path) -> list[str]:
    """What Prometheus would scrape."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(target for (one,) in found for target in one["targets"])


def test_a_monitor_is_found_for_as_long_as_it_serves(tmp_path: Path) -> None:
    """Each monitor has a file with its real port, and takes it away at the end."""
    first = PrometheusExporter(port=0, discovery=tmp_path / "targets")
    second = PrometheusExporter(port=first.port, discovery=tmp_path / "targets")
    assert targets(tmp_path / "targets") == sorted(
        f"127.0.0.1:{exporter.port}" for exporter in (first, second)
    )
    first.close()
    assert targets(tmp_path / "targets") == [f"127.0.0.1:{second.port}"]
    second.close()
    assert targets(tmp_path / "targets") == []


def test_what_kill_9_leaves_is_cleared_away(tmp_path: Path) -> None:
    """The next monitor of the machine removes the files of processes that are gone."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from wvmonitor.outputs.prometheus import PrometheusExporter\n"
        "PrometheusExporter(port=0, discovery=Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert len(targets(tmp_path)) == 1
    exporter = PrometheusExporter(port=0, discovery=tmp_path)
    assert targets(tmp_path) == [f"127.0.0.1:{exporter.port}"]
    exporter.close()


def test_a_monitor_of_another_container_keeps_its_file(tmp_path: Path) -> None:
    """Containers that share the host's name and network number their processes by themselves: what
    answers is alive, whatever its number is here.
    """
    other = PrometheusExporter(port=0, discovery=tmp_path)
    (file,) = tmp_path.glob("*.json")
    (said,) = json.loads(file.read_text())
    said["labels"]["__meta_wvmonitor_pid"] = str(2**22 + 1)  # no process has it
    file.write_text(json.dumps([said]))
    exporter = PrometheusExporter(port=0, discovery=tmp_path)
    assert len(targets(tmp_path)) == 2
    exporter.close()
    other.close()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, caplog: object) -> None:
    """Metrics are served all the same."""
    (tmp_path / "file").write_text("")
    exporter = PrometheusExporter(port=0, discovery=tmp_path / "file")
    assert exporter.port is not None
    assert "will not find these metrics" in caplog.text  # type: ignore[attr-defined]
    exporter.close()
