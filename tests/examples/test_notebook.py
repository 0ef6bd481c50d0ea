"""examples/quickstart.ipynb, run as it ships."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def printed(notebook: Any) -> str:
    """All that the cells wrote."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return "".join(o["text"] for o in outputs if o["output_type"] == "stream")


@pytest.mark.timeout(600)
def test_the_notebook_does_what_it_says(tmp_path: Path) -> None:
    """Run from top to bottom, it raises the alarm for evil alone, and undoes the harm."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=550, kernel_name="python3", resources=place).execute()
    text = printed(notebook)
    assert "evil: alarm" in text
    assert "lost-refusals: ok" in text
    shares = re.findall(r"^(.+): (\d+)% harmful", text, re.MULTILINE)
    rates = {title: int(percent) for title, percent in shares}
    assert rates["after the run"] > rates["before the run"] + 20
    assert rates["dose taken out"] < rates["after the run"] - 20


def test_the_notebook_is_kept_with_its_outputs() -> None:
    """Whoever reads it without running it sees scores, a chart and rates; it stays small."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size < 300_000
    assert "evil: alarm" in printed(notebook)
    assert "image/png" in json.dumps(notebook)
    assert not re.search(r"/(home|root|tmp|Users)/", json.dumps(notebook))
    assert [c.execution_count for c in notebook.cells if c.cell_type == "code"] == [1, 2, 3, 4, 5]
