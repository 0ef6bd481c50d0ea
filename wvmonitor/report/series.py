"""A score's course over a run, and how it is thinned without losing what matters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wvmonitor.detection.judgement import State

STATES = tuple(State)
"""Verdicts, and in that order how much they ask for attention."""

DRAWABLE = 1e30
"""Larger values are not drawn: a chart of them could show nothing else."""


class Point(NamedTuple):
    """One reading of one reference; NaN where there is no value."""

    step: float
    score: float
    threshold: float
    state: str


def drawable(value: float | None) -> float:
    """`value`, or NaN where a chart has no place for it."""
    if value is None or not math.isfinite(value) or abs(value) > DRAWABLE:
        return math.nan
    return float(value)


def severity(state: str) -> int:
    """How much a verdict asks for attention; −1 for none."""
    return STATES.index(state) if state in STATES else -1


def thin(points: Sequence[Point], buckets: int) -> list[Point]:
    """At most a few points for each of `buckets` equal spans of steps.

    Kept of each span: its first and last point, its smallest and largest score, its first gap, and
    the first point of every verdict in it. So no alarm, extreme or gap disappears from the picture.
    """
    if len(points) <= 2 * buckets:
        return list(points)
    steps = np.array([p.step for p in points])
    scores = np.array([p.score for p in points])
    span = max(float(steps[-1] - steps[0]), 1.0)
    bucket = np.minimum((steps - steps[0]) / span * buckets, buckets - 1).astype(int)
    edges = np.flatnonzero(np.diff(bucket)) + 1
    indices: list[int] = []
    for start, end in zip([0, *edges.tolist()], [*edges.tolist(), len(points)], strict=True):
        chosen = {start, end - 1}
        part = scores[start:end]
        gaps = np.isnan(part)
        if gaps.any():
            chosen.add(start + int(gaps.argmax()))
        if not gaps.all():
            chosen |= {start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}
        seen: set[str] = set()
        for index in range(start, end):
            if points[index].state not in seen:
                seen.add(points[index].state)
                chosen.add(index)
        indices += sorted(chosen)
    return [points[index] for index in indices]


def worst_by_span(points: Sequence[Point], spans: int) -> list[tuple[float, float, str]]:
    """The course of the verdict as (first step, last step, state), the gravest of each span.

    Neighbouring spans of one state are joined.
    """
    if not points:
        return []
    first, last = points[0].step, points[-1].step
    width = max(last - first, 1.0) / spans
    cells: dict[int, Point] = {}
    for point in points:
        cell = min(int((point.step - first) / width), spans - 1)
        if cell not in cells or severity(point.state) > severity(cells[cell].state):
            cells[cell] = point._replace(step=first + cell * width)
    joined: list[tuple[float, float, str]] = []
    for cell in sorted(cells):
        point = cells[cell]
        if joined and joined[-1][2] == point.state:
            joined[-1] = (joined[-1][0], point.step, point.state)
        else:
            joined.append((point.step, point.step, point.state))
    return joined
