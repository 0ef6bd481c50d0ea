"""Text from files and file names, made safe to show."""

from __future__ import annotations

import unicodedata
from typing import Any


def visible(text: object) -> str:
    """The text on one line with everything unprintable made visible as backslash escapes.

    Names of checkpoints come from strangers: control characters, ANSI escapes, line breaks,
    right-to-left overrides and bytes that are no UTF-8 must not reach a terminal or a report.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


def cell(value: Any) -> Any:
    """The value of a cell in a CSV file; text that a spreadsheet would run as a formula is quoted.

    Spaces before it, and the fullwidth forms of its signs, do not hide a formula from one.
    """
    if not isinstance(value, str):
        return value
    text = visible(value)
    first = unicodedata.normalize("NFKC", text).lstrip()[:1]
    return f"'{text}" if first in ("=", "+", "-", "@", "−") and first else text


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}g}"
