"""Text from files and file names, made safe to show."""

from __future__ import annotations


def visible(text: object) -> str:
    """The text on one line with everything unprintable made visible as backslash escapes.

    Names of checkpoints come from strangers: control characters, ANSI escapes, line breaks,
    right-to-left overrides and bytes that are no UTF-8 must not reach a terminal or a report.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}g}"
