"""Words and figures of the page: numbers with sensible digits, names made harmless."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

NAME_LIMIT = 400
"""Longest text from outside that is shown whole; a name beyond it says nothing more."""

_JOINERS = "\u200c\u200d"  # zero width, but part of ordinary Persian, Hindi and emoji
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def clean(value: object, limit: int = NAME_LIMIT) -> str:
    """`value` as one line of visible text.

    Control characters (terminal escapes), bidirectional overrides and lone surrogates would change
    how the words around them are read, or could not be written at all: they are spelled out.
    """
    text = "" if value is None else str(value)
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t\r":
        return " "
    if character in _JOINERS or unicodedata.category(character) not in (
        "Cc",
        "Cf",
        "Cs",
        "Cn",
        "Co",
    ):
        return character
    return f"⟨U+{code:04X}⟩"


def short(value: object, limit: int) -> str:
    """`clean`, cut to `limit` characters for a place with little room."""
    text = clean(value)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def figure(value: float | None) -> str:
    """A score, norm or dose with about three digits: "0.412", "−0.0353", "1.2×10⁻⁵"."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e5 or size < 1e-4:
        mantissa, _, exponent = f"{size:.1e}".partition("e")
        text = f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    elif size < 0.1:
        text = f"{size:.3g}"
    else:
        text = f"{size:.{3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0}f}"
    return ("−" if value < 0 else "") + text


def percent(share: float | None) -> str:
    """A share of 1 in per cent, never rounded up to all of it or down to none."""
    if share is None or not math.isfinite(share):
        return "–"
    if 0 < share < 0.005:
        return "< 1 %"
    if 0.995 < share < 1:
        return "> 99 %"
    return f"{100 * share:.0f} %".replace("-", "−")


def dose_figure(dose: float | None) -> str:
    """A steering coefficient: one decimal is what its noise allows, two where it is small."""
    if dose is None or not math.isfinite(dose):
        return "–"
    size = abs(dose)
    if size < 0.005:
        return "0"
    text = f"{size:.2f}" if size < 0.095 else f"{size:.1f}" if size < 9.95 else figure(size)
    return ("−" if dose < 0 else "") + text


def dose_words(dose: float | None, reference: str) -> str:
    """The dose in words, or "" where it is not known."""
    if dose is None or not math.isfinite(dose):
        return ""
    text = f"as if steered by {dose_figure(dose)} × {clean(reference)}"
    if abs(dose) < 0.005:
        return f"as if not steered by {clean(reference)} at all"
    if abs(dose) < 0.05:
        return text + ", next to nothing"
    return text + (", away from it" if dose < 0 else "")


def count(number: int, noun: str) -> str:
    """`1 reading`, `30 readings`, `100,000 readings`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def geometry_name(geometry: str) -> str:
    """Frobenius was a person; response is a word."""
    return {"frobenius": "Frobenius"}.get(geometry, geometry)


def listed(items: Sequence[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def sentence(words: str) -> str:
    """`words` with a capital at the start and a full stop at the end."""
    words = words[:1].upper() + words[1:]
    return words if not words or words.endswith((".", "!", "?", "…")) else words + "."


def seconds(value: float) -> str:
    """A duration of measuring: "3.2 ms", "1.4 s"."""
    return f"{1e3 * value:.2g} ms" if value < 0.1 else f"{value:.2g} s"
