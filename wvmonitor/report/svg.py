"""SVG as an element tree: whatever goes in as text comes out as text, and every tag is closed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

from wvmonitor.report.words import clean, figure


def number(value: float) -> str:
    """A coordinate with one decimal, as short as can be."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def add(parent: Element, tag: str, words: str | None = None, **attributes: object) -> Element:
    """Append an element; `class_` stands for `class`, `_` for `-`, floats are coordinates."""
    child = SubElement(parent, tag, _attributes(attributes))
    if words is not None:
        child.text = clean(words)
    return child


def picture(
    uid: str, width: float, height: float, title: str, description: str, css: str = "chart"
) -> Element:
    """The root of a picture that a screen reader announces by its title and description."""
    root = Element(
        "svg",
        {
            "viewBox": f"0 0 {number(width)} {number(height)}",
            "class": css,
            "role": "img",
            "aria-labelledby": f"{uid}-t {uid}-d",
        },
    )
    add(root, "title", title, id=f"{uid}-t")
    add(root, "desc", description, id=f"{uid}-d")
    return root


def markup(root: Element) -> Markup:
    """The finished picture, safe to put into a page: the tree has escaped all it was given."""
    return Markup(tostring(root, encoding="unicode"))  # noqa: S704


def data(values: object) -> str:
    """Numbers for the page's script, as compact JSON in an attribute."""
    return json.dumps(values, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def line(points: Sequence[tuple[float, float]]) -> str:
    """Path data through (x, y) pixels, broken at every NaN; a single point is a dot of a line."""
    parts: list[str] = []
    run: list[str] = []

    def close() -> None:
        if run:
            parts.append("M" + "L".join(run) + ("h0" if len(run) == 1 else ""))
        run.clear()

    for x, y in points:
        if math.isnan(y):
            close()
        else:
            run.append(f"{number(x)} {number(y)}")
    close()
    return "".join(parts)


def steps(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The stretches of (x, y) between NaNs."""
    stretches: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if math.isnan(point[1]):
            stretches.append([])
        else:
            stretches[-1].append(point)
    return [stretch for stretch in stretches if stretch]


@dataclass(frozen=True)
class Scale:
    """A linear map from values in [low, high] to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of `value`; NaN stays NaN."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """At most about `most` round values in the range."""
        raw = (self.high - self.low) / max(most, 1)
        power = 10.0 ** math.floor(math.log10(raw))
        size = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
        first = math.ceil(self.low / size - 1e-9)
        last = math.floor(self.high / size + 1e-9)
        return [i * size for i in range(first, last + 1)]


def tick(value: float, ticks: Sequence[float]) -> str:
    """A tick's value with as many decimals as the distance between ticks asks for."""
    size = min((b - a for a, b in pairwise(ticks)), default=abs(value) or 1.0)
    if max((abs(t) for t in ticks), default=0) >= 1e5 or size < 1e-4:
        return figure(value)
    places = next(n for n in range(6) if abs(round(size, n) - size) < size * 1e-6)
    return f"{value + 0.0:.{places}f}".replace("-", "−")


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Label positions as near as can be to those `wanted`, at least `gap` apart, in [low, high]."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [0.0] * len(positions)
    below = low - gap
    for i in order:
        below = placed[i] = max(positions[i], below + gap)
    above = high + gap
    for i in reversed(order):
        above = placed[i] = min(placed[i], above - gap)
    return placed


def _attributes(attributes: dict[str, object]) -> dict[str, str]:
    return {
        name.rstrip("_").replace("_", "-"): number(value)
        if isinstance(value, float)
        else str(value)
        for name, value in attributes.items()
        if value is not None
    }
