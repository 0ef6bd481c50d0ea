"""The page's charts: score curves, measured behaviour, sparklines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np
from markupsafe import Markup

from wvmonitor.report.series import STATES, Point, drawable, thin, worst_by_span
from wvmonitor.report.svg import (
    Scale,
    add,
    data,
    line,
    markup,
    number,
    picture,
    spread,
    steps,
    tick,
)
from wvmonitor.report.view import BehaviourPoint
from wvmonitor.report.words import figure, percent, short

LEFT, TOP, STRIP = 46.0, 22.0, 8.0
LETTER, BOLD = 6.6, 8.2
"""Pixels of a letter of the charts' 12-pixel words."""

DOTS = 64
"""Up to so many readings each one gets a dot of its own."""


GLYPHS = {
    "ok": "M0-2.4A2.4 2.4 0 1 1-.01-2.4Z",
    "warming": "M0-2.4A2.4 2.4 0 1 1-.01-2.4Z",
    "warn": "M0-4.4 4.2 3H-4.2Z",
    "alarm": "M-3.6-3.6H3.6V3.6H-3.6Z",
    "unknown": "M0-4.4 4.4 0 0 4.4-4.4 0Z",
}
"""Marks of single readings: round, triangle, square, diamond."""


@dataclass(frozen=True)
class Frame:
    """What the charts of one run share: their size and the steps they span.

    Attributes:
        css: "wide" or "narrow": the page shows one of the two, as there is room.
        width: pixels.
        first, last: steps.
        right: pixels at the right, for the lines' names.
        name: characters of a line's name.
        detail: a course is thinned to so many spans.
    """

    css: str
    width: float
    first: float
    last: float
    right: float
    name: int
    detail: int

    def x(self) -> Scale:
        """Steps to pixels."""
        room = 0.0 if self.last > self.first else 0.5
        return Scale(self.first - room, self.last + room, LEFT + 4, self.width - self.right)


@dataclass(frozen=True)
class Line:
    """A named course of one reference."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Marks:
    """Steps to point out in a chart, each None or empty where there is none."""

    alarm: float | None = None
    onset: float | None = None
    checkpoints: Sequence[int] = ()
    stops: Sequence[int] = ()


def label_room(labels: Sequence[str], bold: Sequence[str]) -> float:
    """Pixels to keep free at the right for these labels."""
    widths = [LETTER * len(label) for label in labels] + [BOLD * len(label) for label in bold]
    return 14 + max(widths, default=4 * LETTER)


def end_label(line: Line, name: int) -> str:
    """A line's name, cut to `name` characters, with its newest value."""
    values = [p.score for p in line.points if not math.isnan(p.score)]
    return f"{short(line.name, name)} {figure(values[-1] if values else None)}"


def rate_label(label: str, points: Sequence[BehaviourPoint], name: int, *, alone: bool) -> str:
    """A measured rate's newest value, with its name where there are several."""
    rates = [p.rate for p in points if not math.isnan(drawable(p.rate))]
    value = percent(rates[-1] if rates else None)
    return value if alone else f"{short(label, name)} {value}"


def score_range(courses: Sequence[Sequence[Point]]) -> tuple[float, float]:
    """The values that the scores and thresholds of all `courses` span, and 0."""
    low, high = 0.0, 0.0
    for course in courses:
        if course:
            values = np.array([(p.score, p.threshold) for p in course])
            low = min(low, float(np.fmin.reduce(values, axis=None, initial=0.0)))
            high = max(high, float(np.fmax.reduce(values, axis=None, initial=0.0)))
    size = high - low or 1.0
    return low - (0.06 * size if low < 0 else 0), high + 0.08 * size


def score_chart(
    uid: str,
    main: Line,
    others: Sequence[Line],
    frame: Frame,
    values: tuple[float, float],
    marks: Marks,
    *,
    title: str,
    description: str,
    height: float = 220.0,
) -> Markup:
    """One run's deciding score with its threshold, verdicts below it, other references thin."""
    bottom = height - 38
    x, y = frame.x(), Scale(*values, bottom, TOP)
    drawn = thin(main.points, frame.detail)
    root = picture(uid, frame.width, height, title, description, f"chart {frame.css}")
    _grid(root, x, y, [tick(t, y.ticks(4)) for t in y.ticks(4)], y.ticks(4))
    _threshold(root, drawn, x, y, bottom)
    for other in others:
        pixels = [(x(p.step), y(p.score)) for p in thin(other.points, frame.detail // 2)]
        add(root, "path", d=line(pixels), class_="other")
        for a, b in pixels if len(pixels) == 1 else ():
            if not math.isnan(b):
                add(root, "circle", cx=a, cy=b, r="2.6", class_="dot-other")
    _checkpoints(root, marks, x, bottom)
    _mark(root, marks.onset, x, frame, bottom, "onset", None)
    for stop in marks.stops:
        _mark(root, float(stop), x, frame, bottom, "stop", "stopped")
    words = None if marks.alarm is None else f"first alarm, step {marks.alarm:,.0f}"
    _mark(root, marks.alarm, x, frame, bottom, "alarm", words)
    css = "score" if len(drawn) <= 4 * DOTS else "score fine"
    add(root, "path", d=line([(x(p.step), y(p.score)) for p in drawn]), class_=css)
    _dots(root, drawn, x, y, marks, few=len(main.points) <= DOTS)
    _strip(root, main.points, x, bottom + 4)
    _names(root, main, others, drawn, y, frame, bottom)
    _steps(root, x, bottom + STRIP + 6, frame)
    root.set("data-hover", _hover(drawn, x, y))
    root.set("data-plot", data([TOP, bottom]))
    return markup(root)


def behaviour_chart(
    uid: str,
    curves: Mapping[str, Sequence[BehaviourPoint]],
    base_rates: Mapping[str, tuple[float, float]],
    frame: Frame,
    marks: Marks,
    *,
    title: str,
    description: str,
    height: float = 132.0,
) -> Markup:
    """Measured behaviour over the same steps: each rate with its 95 % interval as a band.

    A dashed line is the upper end of the base's own interval, where that is known.
    """
    bottom = height - 28
    x, y = frame.x(), Scale(0.0, 1.0, bottom, TOP)
    root = picture(uid, frame.width, height, title, description, f"chart {frame.css}")
    _grid(root, x, y, ["0 %", "50 %", "100 %"], [0.0, 0.5, 1.0])
    _mark(root, marks.alarm, x, frame, bottom, "alarm", None)
    words = None if marks.onset is None else f"behaviour appears, step {marks.onset:,.0f}"
    _mark(root, marks.onset, x, frame, bottom, "onset", words)
    for label in curves:
        if label in base_rates:
            height_of_base = number(y(drawable(base_rates[label][1])))
            edge = add(
                root, "path", d=f"M{number(LEFT)} {height_of_base}H{number(x.end)}", class_="limit"
            )
            add(edge, "title", f"the base's own rate is at most {percent(base_rates[label][1])}")
    ends: list[tuple[str, float]] = []
    for index, (label, points) in enumerate(curves.items()):
        pixels = [(x(p.step), y(drawable(p.rate))) for p in points]
        bounds = [
            (x(p.step), y(drawable(p.low)), y(drawable(p.high)))
            for p in points
            if not math.isnan(drawable(p.low) + drawable(p.high) + drawable(p.rate))
        ]
        if len(bounds) > 1:
            outline = [(a, h) for a, _, h in bounds] + [(a, b) for a, b, _ in reversed(bounds)]
            add(root, "path", d=line(outline) + "Z", class_="interval")
        else:
            for a, b, h in bounds:
                add(root, "path", d=f"M{number(a)} {number(b)}V{number(h)}", class_="whisker")
        add(root, "path", d=line(pixels), class_=f"rate rate{index % 4}")
        for a, b in pixels if len(pixels) <= DOTS else ():
            if not math.isnan(b):
                add(root, "circle", cx=a, cy=b, r="2.2", class_="dot-rate")
        if seen := [b for _, b in pixels if not math.isnan(b)]:
            ends.append((rate_label(label, points, frame.name, alone=len(curves) == 1), seen[-1]))
    for (words, _), at in zip(ends, spread([e for _, e in ends], 13, TOP, bottom), strict=True):
        add(root, "text", words, x=frame.width - frame.right + 8, y=at + 4, class_="name")
    _steps(root, x, bottom + 4, frame)
    return markup(root)


def sparkline(points: Sequence[Point], values: tuple[float, float]) -> Markup:
    """A course in the size of a word, with its threshold; the numbers stand beside it."""
    width, height = 132.0, 26.0
    first, last = (points[0].step, points[-1].step) if points else (0.0, 1.0)
    x = Scale(first - (last == first), last + (last == first), 4, width - 4)
    y = Scale(*values, height - 4, 4)
    root = Element(
        "svg",
        {
            "viewBox": f"0 0 {number(width)} {number(height)}",
            "class": "spark",
            "aria-hidden": "true",
        },
    )
    if values[0] < 0 < values[1]:
        add(root, "path", d=f"M4 {number(y(0))}H{number(width - 4)}", class_="zero")
    drawn = thin(points, 60)
    limits = [(x(p.step), y(p.threshold)) for p in drawn]
    if len(drawn) == 1 and not math.isnan(limits[0][1]):
        limits = [(x(first) - 9, limits[0][1]), (x(first) + 9, limits[0][1])]
    add(root, "path", d=line(limits), class_="limit")
    pixels = [(x(p.step), y(p.score)) for p in drawn]
    add(root, "path", d=line(pixels), class_="score")
    if drawn and not math.isnan(pixels[-1][1]):
        a, b = pixels[-1]
        add(
            root, "path", d=GLYPHS.get(drawn[-1].state, GLYPHS["ok"]),
            transform=f"translate({number(a)} {number(b)})",
            class_=f"at {drawn[-1].state or 'none'}",
        )  # fmt: skip
    return markup(root)


def _grid(root: Element, x: Scale, y: Scale, words: Sequence[str], values: Sequence[float]) -> None:
    for text, value in zip(words, values, strict=True):
        css = "axis" if value == 0 else "grid"
        add(root, "path", d=f"M{number(LEFT)} {number(y(value))}H{number(x.end)}", class_=css)
        add(root, "text", text, x=LEFT - 7, y=y(value) + 4, class_="tick end")


def _threshold(root: Element, drawn: Sequence[Point], x: Scale, y: Scale, bottom: float) -> None:
    """The band below the threshold, where benign runs stay, and its edge."""
    pixels = [(x(p.step), y(p.threshold)) for p in drawn]
    for stretch in steps(pixels):
        if len(stretch) == 1:  # a single reading: the limit as a short line
            stretch = [(stretch[0][0] - 24, stretch[0][1]), (stretch[0][0] + 24, stretch[0][1])]
        floor = [(stretch[-1][0], bottom), (stretch[0][0], bottom)]
        add(root, "path", d=line([*stretch, *floor]) + "Z", class_="benign")
        add(root, "path", d=line(stretch), class_="limit")


def _mark(
    root: Element,
    step: float | None,
    x: Scale,
    frame: Frame,
    bottom: float,
    kind: str,
    words: str | None,
) -> None:
    """A vertical line at a step, its words above it, as near as they fit into the picture."""
    if step is None or not x.low <= step <= x.high:
        return
    at = x(step)
    add(root, "path", d=f"M{number(at)} {number(TOP - 4)}V{number(bottom)}", class_=f"mark {kind}")
    if words:
        start = max(0.0, min(at - 3, frame.width - BOLD * len(words)))
        add(root, "text", words, x=start, y=TOP - 9, class_=f"mark-name {kind}")


def _checkpoints(root: Element, marks: Marks, x: Scale, bottom: float) -> None:
    inside = [c for c in marks.checkpoints if x.low <= c <= x.high]
    for step in inside[:: max(1, math.ceil(len(inside) / 200))]:
        at = number(x(step))
        triangle = add(root, "path", d=f"M{at} {number(bottom)}l-4-7h8Z", class_="checkpoint")
        add(triangle, "title", f"checkpoint, step {step}")


def _dots(
    root: Element, drawn: Sequence[Point], x: Scale, y: Scale, marks: Marks, *, few: bool
) -> None:
    for index, point in enumerate(drawn):
        first_alarm = point.step == marks.alarm
        if math.isnan(point.score) or not (few or first_alarm or index == len(drawn) - 1):
            continue
        place = f"translate({number(x(point.step))} {number(y(point.score))})"
        mark = add(
            root, "path", d=GLYPHS.get(point.state, GLYPHS["ok"]), transform=place,
            class_=f"at {point.state or 'none'}",
        )  # fmt: skip
        add(mark, "title", f"step {point.step:.0f}: {figure(point.score)}, {point.state}")


def _strip(root: Element, points: Sequence[Point], x: Scale, top: float) -> None:
    """The verdict's course: the taller the graver, hatched where unknown."""
    heights = {"ok": 2.0, "warming": 2.0, "unknown": STRIP, "warn": 5.0, "alarm": STRIP}
    judged = [p for p in points if p.state]
    runs = worst_by_span(judged, 240)
    for index, (first, last, state) in enumerate(runs):
        following = runs[index + 1][0] if index + 1 < len(runs) else None
        start = x(first) - (2 if index == 0 else 0)
        end = x(last) + 2 if following is None else x(following)
        tall = heights[state]
        block = add(
            root, "rect", x=start, y=top + STRIP - tall, width=max(end - start, 1.5), height=tall,
            class_=f"strip {state}",
        )  # fmt: skip
        place = f"step {first:.0f}" if first == last else f"steps {first:.0f} to {last:.0f}"
        add(block, "title", f"{state}: {place}")


def _names(
    root: Element,
    main: Line,
    others: Sequence[Line],
    drawn: Sequence[Point],
    y: Scale,
    frame: Frame,
    bottom: float,
) -> None:
    """Each line's name at its right end, instead of a legend; the main one's with its value."""
    labels: list[tuple[str, float, str]] = []
    for course, words, css in [
        (main, end_label(main, frame.name), "name main"),
        *((o, short(o.name, frame.name), "name") for o in others),
    ]:
        ends = [p.score for p in course.points if not math.isnan(p.score)]
        if ends:
            labels.append((words, y(ends[-1]), css))
    limits = [p.threshold for p in drawn if not math.isnan(p.threshold)]
    if limits:
        labels.append(("threshold", y(limits[-1]), "name limit-name"))
    places = spread([place for _, place, _ in labels], 13, TOP + 2, bottom - 2)
    for (words, _, css), place in zip(labels, places, strict=True):
        add(root, "text", words, x=frame.width - frame.right + 8, y=place + 4, class_=css)


def _steps(root: Element, x: Scale, top: float, frame: Frame) -> None:
    ticks = [
        t
        for t in x.ticks(10 if frame.width > 700 else 6 if frame.width > 400 else 4)
        if float(t).is_integer()
    ]
    for value in ticks or [frame.last]:
        add(root, "text", f"{value:,.0f}", x=x(value), y=top + 15, class_="tick middle")
    add(root, "text", "step", x=LEFT - 7, y=top + 15, class_="tick end")


def _hover(drawn: Sequence[Point], x: Scale, y: Scale) -> str:
    """[x, y, step, score, threshold, state] of every drawn reading, for the page's script."""
    return data(
        [
            [
                round(x(p.step), 1),
                None if math.isnan(p.score) else round(y(p.score), 1),
                int(p.step),
                figure(None if math.isnan(p.score) else p.score),
                figure(None if math.isnan(p.threshold) else p.threshold),
                STATES.index(p.state) if p.state in STATES else -1,
            ]
            for p in drawn
        ]
    )
