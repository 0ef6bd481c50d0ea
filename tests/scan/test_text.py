"""Text of strangers on its way to terminals and spreadsheets."""

from __future__ import annotations

import pytest

from wvmonitor.scan.text import cell


@pytest.mark.parametrize(
    "text", ["=1", " =1", "＝1", " ＝1", "+1", "＋1", "-1", "－1", "@SUM(1)", "＠x"]
)
def test_no_cell_is_a_formula(text: str) -> None:
    """A formula is none, however it is dressed."""
    assert cell(text).startswith("'")


@pytest.mark.parametrize("text", ["\t=1", "\u3000＝1", "\r\n=1"])
def test_what_is_no_plain_space_is_written_out(text: str) -> None:
    """Tabs, line breaks and wide spaces stand as escapes, behind which nothing is a formula."""
    assert cell(text).startswith("\\")


@pytest.mark.parametrize("value", ["a=b", "", " x", "runs/a-1", 1.5, None])
def test_what_is_none_stays_as_it_is(value: object) -> None:
    """Names, numbers and empty cells are not touched."""
    assert cell(value) == value
