"""One self-contained HTML page: which training examples push towards a behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from wvmonitor.report.document import page
from wvmonitor.report.svg import Scale, add, markup, picture, tick
from wvmonitor.report.words import clean, count, figure, percent

WIDE, NARROW = (1080.0, 48), (332.0, 24)
"""Width and bars of the histogram; the page shows one of the two, as there is room."""

SHOWN = 100
"""So many examples are in the page, those that push most; the JSON Lines file holds all."""


@dataclass(frozen=True)
class Line:
    """One example in the page.

    Attributes:
        index: its place in the data, from 0.
        push: nats that one unit of the reference spares, by answer token or over the answer.
        loss: mean loss per answer token, in nats.
        prompt, answer: what it says.
    """

    index: int
    push: float
    loss: float
    prompt: str
    answer: str


def render_blame(
    lines: Sequence[Line],
    reference: str,
    behaviour: str,
    *,
    data: str,
    gate: str = "",
    shown: int = SHOWN,
    unjudged: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
    generated: datetime | None = None,
) -> str:
    """The page as HTML.

    Args:
        lines: every example that was judged, those that push most first.
        reference: the reference's name.
        behaviour: what a model that moves along it does.
        data: what the examples are, for the heading.
        gate: what a threshold says of them, in a sentence; "" where there is none.
        shown: so many are in the table.
        unjudged: why examples could not be judged.
        provenance: where it comes from, for the foot of the page.
        generated: the time on the page; now, if left out.
    """
    return page(
        "blame.html.jinja",
        generated=generated,
        title=f"What in {data} pushes towards {reference}",
        headline=" ".join(filter(None, (_headline(lines, reference, behaviour), gate))),
        gated=bool(gate),
        charts=[
            _histogram(lines, reference, *WIDE, css="wide"),
            _histogram(lines, reference, *NARROW, css="narrow"),
        ]
        if len(lines) > 1
        else [],
        lines=[
            (rank + 1, line.index, figure(line.push), figure(line.loss), line.prompt, line.answer)
            for rank, line in enumerate(lines[:shown])
        ],
        left_out=max(len(lines) - shown, 0),
        unjudged=unjudged[:SHOWN],
        unjudged_count=len(unjudged),
        provenance=list((provenance or {}).items()),
    )


def _headline(lines: Sequence[Line], reference: str, behaviour: str) -> str:
    if not lines:
        return "No example could be judged. That is not a clean result."
    middle = sorted(line.push for line in lines)[len(lines) // 2]
    towards = sum(line.push > 0 for line in lines) / len(lines)
    return (
        f"Of {count(len(lines), 'example')}, {percent(towards)} push towards {clean(reference)} "
        f"({clean(behaviour)}), the first by {figure(lines[0].push)}, the one in the middle by "
        f"{figure(middle)}."
    )


def _histogram(
    lines: Sequence[Line], reference: str, width: float, bars: int, *, css: str
) -> Markup:
    """How many examples push how much; counts on a square-root scale, so that few are seen."""
    pushes = [line.push for line in lines]
    low, high = min(pushes), max(pushes)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    counts = [0] * bars
    for push in pushes:
        counts[min(int((push - low) / (high - low) * bars), bars - 1)] += 1
    height, floor = 220.0, 186.0
    root = picture(
        f"push-{css}", width, height, f"Examples by how much they push towards {clean(reference)}",
        f"Pushes lie between {figure(low)} and {figure(high)} nats. The examples that "
        "push most are in the table below.",
        f"chart {css}",
    )  # fmt: skip
    x, most = Scale(low, high, 12.0, width - 12.0), max(counts)
    bar = (width - 24.0) / bars
    for index, number in enumerate(counts):
        tall = (floor - 16.0) * (number / most) ** 0.5
        start = low + index * (high - low) / bars
        box = add(
            root, "rect", x=x(start) + 0.5, y=floor - tall, width=bar - 1, height=tall,
            class_="bar" if start + (high - low) / bars > 0 else "bar against",
        )  # fmt: skip
        add(box, "title", f"{count(number, 'example')} from {figure(start)}")
    add(root, "line", x1=12.0, x2=width - 12.0, y1=floor, y2=floor, class_="axis")
    ticks = x.ticks(8 if width > 500 else 4)
    for value in ticks:
        add(root, "text", tick(value, ticks), x=x(value), y=floor + 18, class_="tick middle")
    return markup(root)
