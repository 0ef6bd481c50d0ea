"""The Grafana dashboard that is shipped."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.observability.programs import EXAMPLES

FOLDER = EXAMPLES / "grafana"


def test_the_shipped_dashboard_is_what_the_script_makes() -> None:
    """The checked-in JSON is the script's own output with the pinned SDK."""
    pytest.importorskip("grafana_foundation_sdk", reason="comes with the extra `dashboard`")
    made = subprocess.run(
        [sys.executable, str(FOLDER / "make_dashboard.py"), "-"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout == (FOLDER / "wvmonitor.json").read_text()


def test_every_panel_says_what_it_shows() -> None:
    """Panels have numbers of their own, titles, explanations and a data source one can choose."""
    dashboard = json.loads((FOLDER / "wvmonitor.json").read_text())
    panels = [p for p in dashboard["panels"] if p["type"] != "row"]
    assert len({p["id"] for p in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(p["title"] and p["description"] and p["targets"] for p in panels)
    assert {p["datasource"]["uid"] for p in panels} == {"${datasource}"}
    assert [v["name"] for v in dashboard["templating"]["list"]] == [
        "datasource",
        "run",
        "reference",
        "runbooks",
    ]
