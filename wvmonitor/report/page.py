"""One self-contained HTML page for a run, several runs, or a scan.

`render` makes the page from `RunView`s, which `from_journal` and `from_scan` read and a demo can
put together in memory. The page needs no network and works without its script; what is said of a
run is what its verdicts said, nothing is judged anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from markupsafe import Markup

from wvmonitor.report import charts, sentences, tables
from wvmonitor.report.document import page
from wvmonitor.report.findings import Finding, Outcome, judge
from wvmonitor.report.heat import heat_chart, heat_words
from wvmonitor.report.series import STATES, severity
from wvmonitor.report.view import RunView
from wvmonitor.report.words import clean, figure, geometry_name, percent, short

DETAILED = 60
"""So many runs get charts and details, the gravest first; the table at the top names all."""

SIDE_BY_SIDE = 4
"""Up to so many runs are seen at one glance without a table of them."""

OTHERS = 3
"""Other behaviours drawn thin beside the leading one."""


def render(
    runs: Sequence[RunView],
    *,
    title: str = "wvmonitor report",
    provenance: Mapping[str, str] | None = None,
    generated: datetime | None = None,
) -> str:
    """The page as HTML.

    The gravest run comes first, and else the order stays. `provenance` is for the foot of the page
    (label -> value); the time on the page is now, if left out.
    """
    outcomes = sorted((judge(view) for view in runs), key=lambda o: -severity(o.state))
    detailed = min(len(outcomes), DETAILED)
    frames = _frames(outcomes, detailed)
    states = Counter(o.state for o in outcomes)
    return page(
        "page.html.jinja",
        generated=generated,
        title=title,
        state=max(states, key=severity) if states else "unknown",
        states=STATES,
        counts=[(s, states[s]) for s in reversed(STATES) if states[s]],
        headline=sentences.headline(outcomes),
        glance=_glance(outcomes, detailed) if len(outcomes) > SIDE_BY_SIDE else [],
        left_out=len(outcomes) - detailed,
        runs=[
            _panel(f"r{index + 1}", outcome, axes, alone=len(outcomes) == 1)
            for index, (outcome, axes) in enumerate(
                zip(outcomes[:detailed], frames[:detailed], strict=True)
            )
        ],
        provenance=list((provenance or {}).items()),
        percent=percent,
    )


@dataclass(frozen=True)
class Axes:
    """What a run's charts are drawn on: two sizes of the same steps, and the scores' range."""

    frames: tuple[charts.Frame, ...]
    values: tuple[float, float]


def _frames(outcomes: Sequence[Outcome], detailed: int) -> list[Axes]:
    """Each run's axes: shared, so that runs compare, unless one would flatten the others."""
    alone = len(outcomes) == 1
    detail = 300 if alone else 160 if detailed <= SIDE_BY_SIDE else max(30, 1600 // detailed)
    spans, ranges = [], []
    for outcome in outcomes:
        shown = [f for f in (outcome.leading, *_others(outcome)) if f is not None]
        steps = [p.step for f in shown for p in f.points]
        steps += [float(p.step) for curve in outcome.view.behaviour.values() for p in curve]
        spans.append((min(steps, default=0.0), max(steps, default=1.0)))
        ranges.append(charts.score_range([f.points for f in shown]))
    read = [span for span, o in zip(spans, outcomes, strict=True) if o.view.rows]
    if read and max(last for _, last in read) <= 1.5 * min(last for _, last in read):
        spans = [(min(first for first, _ in read), max(last for _, last in read))] * len(spans)
    sizes = sorted(high - low for low, high in ranges)
    if sizes and sizes[-1] <= 6 * sizes[len(sizes) // 2]:
        shared = (min(low for low, _ in ranges), max(high for _, high in ranges))
        ranges = [shared] * len(ranges)
    sizes_and_names = {
        "wide": (1080.0 if alone else 532.0, 20, detail),
        "narrow": (332.0, 12, min(detail, 80)),
    }
    room = {css: _label_room(outcomes, name) for css, (_, name, _) in sizes_and_names.items()}
    return [
        Axes(
            tuple(
                charts.Frame(css, width, *span, right=room[css], name=name, detail=detail)
                for css, (width, name, detail) in sizes_and_names.items()
            ),
            values,
        )
        for span, values in zip(spans, ranges, strict=True)
    ]


def _label_room(outcomes: Sequence[Outcome], name: int) -> float:
    """Pixels at the right of every chart for the longest label of any of them."""
    labels: list[str] = ["threshold"]
    bold: list[str] = []
    for outcome in outcomes:
        leading, curves = outcome.leading, outcome.view.behaviour
        if leading:
            bold.append(charts.end_label(charts.Line(leading.reference, leading.points), name))
        labels += [short(f.reference, name) for f in _others(outcome)]
        labels += [
            charts.rate_label(label, curve, name, alone=len(curves) == 1)
            for label, curve in curves.items()
        ]
    return charts.label_room(labels, bold)


def _others(outcome: Outcome) -> list[Finding]:
    """The behaviours drawn thin beside the leading one."""
    return [f for f in outcome.findings[1:] if f.kind == "behaviour"][:OTHERS]


def _panel(uid: str, outcome: Outcome, axes: Axes, *, alone: bool) -> dict[str, Any]:
    """Everything the template shows of one run."""
    view, leading = outcome.view, outcome.leading
    acknowledged = [
        (f.reference, f.acknowledged) for f in outcome.findings if f.acknowledged is not None
    ]
    drawn = _drawn(uid, outcome, axes, alone=alone)
    return {
        "uid": uid,
        "name": view.name,
        "note": view.note,
        "state": outcome.state,
        "first": sentences.read_first(outcome),
        "why": sentences.why(outcome),
        "onset": sentences.onset_words(outcome),
        "measured": next(iter(view.behaviour)) if len(view.behaviour) == 1 else "",
        "calibration": leading.last.calibration if leading and leading.last else None,
        "acknowledged": acknowledged,
        "problems": view.problems,
        "deciding": outcome.deciding_name,
        "leading": leading.reference if leading else "",
        "readout": sentences.readout(leading),
        **drawn,
        "references": tables.references(outcome),
        "cosines": [f"{s}, {geometry_name(g)}" for g, s in tables.cosine_columns(outcome)],
        "heat": [
            {
                "reference": heat.reference,
                "geometry": geometry_name(heat.geometry),
                "step": heat.step,
                "words": heat_words(heat),
                "chart": heat_chart(f"{uid}-h{index}", heat),
                "layers": heat.layers,
                "rows": list(zip(heat.modules, zip(*heat.shares, strict=True), strict=True)),
            }
            for index, heat in enumerate(view.heat_maps)
            if heat.layers
        ],
        "cautions": tables.cautions(outcome),
        "facts": tables.facts(outcome),
        "norm": charts.sparkline(*tables.norm_course(view)),
        "events": tables.events(view),
        "readings": tables.readings(outcome),
        "behaviour_rows": [
            (label, p.step, percent(p.rate), percent(p.low), percent(p.high))
            for label, curve in view.behaviour.items()
            for p in curve
        ],
    }


def _drawn(uid: str, outcome: Outcome, axes: Axes, *, alone: bool) -> dict[str, list[Markup]]:
    """The run's two charts, each in two sizes, or none of it where there is nothing to draw."""
    view, leading = outcome.view, outcome.leading
    alarm = leading.first_alarm if leading else None
    marks = charts.Marks(
        alarm=alarm.step if alarm else None,
        onset=view.onset_step,
        checkpoints=view.checkpoints,
        stops=tables.stops(view),
    )
    drawn: dict[str, list[Markup]] = {"chart": [], "behaviour": []}
    for frame in axes.frames:
        if leading and any(p.score == p.score or p.state for p in leading.points):
            drawn["chart"].append(
                charts.score_chart(
                    f"{uid}-s-{frame.css}",
                    charts.Line(leading.reference, leading.points),
                    [charts.Line(f.reference, f.points) for f in _others(outcome)],
                    frame,
                    axes.values,
                    marks,
                    title=f"{outcome.deciding_name} of {leading.reference} by step, "
                    f"{clean(view.name)}",
                    description=sentences.chart_words(outcome, leading),
                    height=300.0 if alone and frame.css == "wide" else 220.0,
                )
            )
        if view.behaviour:
            drawn["behaviour"].append(
                charts.behaviour_chart(
                    f"{uid}-b-{frame.css}",
                    view.behaviour,
                    view.base_rates,
                    frame,
                    marks,
                    title=f"Measured behaviour by step, {clean(view.name)}",
                    description=sentences.behaviour_words(view),
                    height=154.0 if alone else 132.0,
                )
            )
    return drawn


def _glance(outcomes: Sequence[Outcome], detailed: int) -> list[dict[str, Any]]:
    """One line for each run."""
    leads = [o.leading for o in outcomes]
    values = charts.score_range([f.points for f in leads if f])
    return [
        {
            "uid": f"r{index + 1}" if index < detailed else None,
            "name": outcome.view.name,
            "note": outcome.view.note,
            "state": outcome.state,
            "reference": lead.reference if lead else "–",
            "score": figure(lead.score if lead else None),
            "threshold": figure(lead.threshold if lead else None),
            "dose": tables.dose_cell(lead),
            "since": "–" if lead is None or lead.since is None else f"{lead.since}",
            "spark": charts.sparkline(lead.points, values) if lead else "",
        }
        for index, (outcome, lead) in enumerate(zip(outcomes, leads, strict=True))
    ]
