"""The heat map: which layers and kinds of module carry a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from wvmonitor.report.svg import add, markup, picture
from wvmonitor.report.view import HeatMap
from wvmonitor.report.words import clean, listed, percent, short

ROOM_FOR_FIGURES = 34.0
"""Pixels of a cell's width from which on its share is written into it."""

NAME_ROOM = 148.0
TOTAL_ROOM = 92.0


def heat_words(heat: HeatMap) -> str:
    """Where most of it lies, as one sentence."""
    by_layer = [(layer, _sum(row)) for layer, row in zip(heat.layers, heat.shares, strict=True)]
    by_module = [
        (module, _sum([row[i] for row in heat.shares])) for i, module in enumerate(heat.modules)
    ]
    layers = _most(by_layer)
    modules = _most(by_module)
    noun = "layer" if len(layers) == 1 else "layers"
    return (
        f"Mostly {noun} {listed([clean(n) for n, _ in layers])}"
        f" ({percent(sum(s for _, s in layers))}); by kind of module, "
        f"{listed([f'{clean(n)} ({percent(s)})' for n, s in modules])}."
    )


def heat_chart(uid: str, heat: HeatMap, width: float = 1080.0) -> Markup:
    """Layers across, kinds of module down, with the totals of both at the edges."""
    room = width - NAME_ROOM - TOTAL_ROOM
    cell = min(room / len(heat.layers), 76.0)
    tall, top = 26.0, 26.0
    height = top + tall * len(heat.modules) + 40
    title = f"Which layers and modules carry {clean(heat.reference)}"
    root = picture(uid, width, height, title, heat_words(heat), "chart heat")
    largest = max((abs(s) for row in heat.shares for s in row if not math.isnan(s)), default=0) or 1
    figures = cell >= ROOM_FOR_FIGURES
    every = max(1, math.ceil(24 / cell))
    for column, layer in enumerate(heat.layers):
        if column % every == 0:
            middle = NAME_ROOM + (column + 0.5) * cell
            add(root, "text", short(layer, 8), x=middle, y=top - 9, class_="tick middle")
    add(root, "text", "layer", x=NAME_ROOM - 8, y=top - 9, class_="tick end")
    for index, module in enumerate(heat.modules):
        y = top + index * tall
        add(root, "text", short(module, 22), x=NAME_ROOM - 8, y=y + 17, class_="name end")
        for column, row in enumerate(heat.shares):
            share = row[index]
            if math.isnan(share):
                continue
            x = NAME_ROOM + column * cell
            box = add(
                root, "rect", x=x + 0.5, y=y + 0.5, width=max(cell - 1, 0.5), height=tall - 1,
                class_=f"cell {'against' if share < 0 else 'with'} h{_level(share, largest)}",
            )  # fmt: skip
            place = f"layer {heat.layers[column]}, {module}"
            add(box, "title", f"{place}: {_tenths(share)}")
            if figures:
                words = _tenths(share).removesuffix(" %")
                css = "cell-figure middle" + (" strong" if _level(share, largest) > 5 else "")
                add(root, "text", words, x=x + cell / 2, y=y + 17, class_=css)
        total = percent(_sum([row[index] for row in heat.shares]))
        end = NAME_ROOM + len(heat.layers) * cell
        add(root, "text", total, x=end + 12, y=y + 17, class_="name main")
    bottom = top + tall * len(heat.modules)
    add(root, "text", "whole layer", x=NAME_ROOM - 8, y=bottom + 20, class_="tick end")
    sums = [_sum(row) for row in heat.shares]
    if figures:
        for column, total_share in enumerate(sums):
            middle = NAME_ROOM + (column + 0.5) * cell
            words = percent(total_share)
            add(root, "text", words, x=middle, y=bottom + 20, class_="name main middle")
    else:  # too narrow for figures: bars
        most = max((abs(s) for s in sums), default=1) or 1
        for column, total_share in enumerate(sums):
            tall_bar = 30 * abs(total_share) / most
            bar = add(
                root, "rect", x=NAME_ROOM + column * cell + 0.5, y=bottom + 38 - tall_bar,
                width=max(cell - 1, 0.5), height=max(tall_bar, 0.5),
                class_="bar against" if total_share < 0 else "bar",
            )  # fmt: skip
            add(bar, "title", f"layer {heat.layers[column]}: {percent(total_share)}")
    return markup(root)


def _sum(shares: Sequence[float]) -> float:
    return sum(s for s in shares if not math.isnan(s))


def _most(shares: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The largest, until half of the whole or three of them."""
    ordered = sorted(shares, key=lambda item: -item[1])
    chosen: list[tuple[str, float]] = []
    for item in ordered[:3]:
        chosen.append(item)
        if sum(s for _, s in chosen) >= 0.5:
            break
    return chosen


def _level(share: float, largest: float) -> int:
    return min(9, int(10 * math.sqrt(abs(share) / largest)))


def _tenths(share: float) -> str:
    return f"{100 * share:.1f} %".replace("-", "−")
