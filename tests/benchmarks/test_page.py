"""The page of benchmark results: what it says is what the committed files say."""

import json
import re

from benchmarks.beside import together
from benchmarks.report import PAGE, RESULTS, with_tables


def test_the_page_shows_the_committed_results():
    """Its tables are those that `python -m benchmarks.report` makes, and of no quick run."""
    page = PAGE.read_text("utf-8")
    assert with_tables(page, RESULTS) == page
    shown = set(re.findall(r"<!-- (\w+) -->", page)) - {"end"}
    assert shown
    for name in shown:
        assert json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["quick"] is False


def test_an_older_version_stands_beside_this_one_with_the_noise_of_the_run(tmp_path):
    """Its values are a column of their own, and rows it did not have are left empty there."""
    machine = {"cpu": "C", "cores": 2, "torch": "2", "load_average": [0.1]}
    machine |= {"float32_matrix_gflops": 1.0, "memory_gb_per_s": 1.0}

    def document(**values):
        rows = [
            {"name": name, "value": value, "unit": "s", "target": "", "achieved": None}
            for name, value in values.items()
        ]
        return {"when": "2026-01-01", "machine": machine, "figures": rows, "remarks": []}

    first, before = document(a=1.0, b=2.0, c=1.0), document(a=3.0, c=1.0)
    again = document(a=1.02, b=1.0, c=1.1)
    made = together(first, before, again, "0123456789")
    (tmp_path / "x.json").write_text(json.dumps(made))
    page = with_tables("<!-- x -->\n<!-- end -->", tmp_path)
    assert "| what | measured | before | target |  |\n|---|---|---|---|---|" in page
    assert "| a | 1 s | 3 s |  |  |\n| b | 2 s |  |  |  |" in page
    assert "commit `0123456`" in page
    assert "differ by 10% in the median row, by 50% at most" in page
