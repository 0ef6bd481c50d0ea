"""The page of benchmark results: what it says is what the committed files say."""

import json
import re

from benchmarks.report import PAGE, RESULTS, with_tables


def test_the_page_shows_the_committed_results():
    """Its tables are those that `python -m benchmarks.report` makes, and of no quick run."""
    page = PAGE.read_text("utf-8")
    assert with_tables(page, RESULTS) == page
    shown = set(re.findall(r"<!-- (\w+) -->", page)) - {"end"}
    assert shown
    for name in shown:
        assert json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["quick"] is False
