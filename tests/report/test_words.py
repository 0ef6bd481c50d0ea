"""Numbers with sensible digits, names made harmless."""

from __future__ import annotations

import math

import pytest

from wvmonitor.report.series import Point, thin
from wvmonitor.report.words import clean, dose_words, figure, listed, percent


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.41234, "0.412"),
        (-0.0353, "−0.0353"),
        (0.0198, "0.0198"),  # beside a threshold of 0.0202: both were 0.020
        (0.00123, "0.00123"),
        (1.2345, "1.23"),
        (123.4, "123"),
        (0.0000123, "1.2×10⁻⁵"),
        (-4.56e7, "−4.6×10⁷"),
        (0.0, "0"),
        (None, "–"),
        (math.nan, "not finite"),
        (-math.inf, "not finite"),
    ],
)
def test_figure(value: float | None, words: str) -> None:
    """A number is shown with about three digits, and what is no number is said to be none."""
    assert figure(value) == words


@pytest.mark.parametrize(
    ("dose", "words"),
    [
        (0.42, "as if steered by 0.4 × evil"),
        (1.13, "as if steered by 1.1 × evil"),
        (0.03, "as if steered by 0.03 × evil, next to nothing"),
        (-0.31, "as if steered by −0.3 × evil, away from it"),
        (-0.0001, "as if not steered by evil at all"),
        (None, ""),
        (math.nan, ""),
    ],
)
def test_dose_words(dose: float | None, words: str) -> None:
    """A dose reads as a sentence, with no more digits than its noise allows."""
    assert dose_words(dose, "evil") == words


def test_percent_never_rounds_to_all_or_nothing() -> None:
    """A share is not rounded up to all of it, nor down to nothing."""
    assert [percent(v) for v in (0.0, 0.001, 0.5, 0.999, 1.0, math.nan)] == [
        "0 %", "< 1 %", "50 %", "> 99 %", "100 %", "–",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("runs/a", "runs/a"),
        ("a\x1b[31mred", "a⟨U+001B⟩[31mred"),
        ("gpj.\u202eexe", "gpj.⟨U+202E⟩exe"),
        ("two\nlines\tand", "two lines and"),
        ("\ud800", "⟨U+D800⟩"),
        ("\ufeff\u200b", "⟨U+FEFF⟩⟨U+200B⟩"),
        ("مراقبة", "مراقبة"),
        ("x" * 1000, "x" * 399 + "…"),
    ],
)
def test_clean(name: str, shown: str) -> None:
    """A name cannot hide, reorder or colour the words around it."""
    assert clean(name) == shown


def test_listed() -> None:
    """Names are listed as one would say them."""
    assert [listed(list(names)) for names in ("", "a", "ab", "abc")] == [
        "", "a", "a and b", "a, b and c",
    ]  # fmt: skip


@pytest.mark.parametrize("spans", [1, 7, 50])
def test_thinning_keeps_what_matters(spans: int) -> None:
    """However far a curve is thinned, its alarms, extremes, gaps and ends stay in the picture."""
    points = [Point(float(s), math.sin(s / 50), 0.5, "ok") for s in range(5000)]
    points[1234] = Point(1234.0, 3.0, 0.5, "alarm")
    points[1235] = Point(1235.0, -3.0, 0.5, "ok")
    points[4000] = Point(4000.0, math.nan, math.nan, "unknown")
    kept = thin(points, spans)
    assert len(kept) <= 9 * spans
    assert {points[0], points[1234], points[1235], points[-1]} <= set(kept)
    assert any(p.state == "unknown" and math.isnan(p.score) for p in kept)
    assert [p.step for p in kept] == sorted(p.step for p in kept)


def test_a_short_course_is_not_thinned() -> None:
    """Where there is room for every reading, every reading is drawn."""
    points = [Point(float(s), 0.1, 0.5, "ok") for s in range(20)]
    assert thin(points, 10) == points
