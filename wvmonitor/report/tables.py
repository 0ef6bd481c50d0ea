"""The page's tables and lists: references, cautions, how it was measured, events, readings."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from wvmonitor.report import charts
from wvmonitor.report.findings import CALIBRATION, Finding, Outcome
from wvmonitor.report.series import Point, drawable, thin
from wvmonitor.report.view import RunView
from wvmonitor.report.words import (
    count,
    dose_figure,
    figure,
    geometry_name,
    listed,
    percent,
    seconds,
    sentence,
)

TABLE_SPANS = 24
"""A long run's readings are listed as at most a few for each of so many spans."""

COLUMNS = 4
"""Behaviours with columns of their own in the table of readings."""

MOST_CAUTIONS = 12

LOW_COVERAGE = 0.9
"""Below this share of ‖τ‖² a score covers a part of the change only, and the page says so."""


def cosine_columns(outcome: Outcome) -> list[tuple[str, str]]:
    """(geometry, "cosine") of each geometry, but for one that decides already."""
    columns = dict.fromkeys(key for f in outcome.findings for key in f.scores if key[1] == "cosine")
    return [key for key in columns if key != outcome.deciding]


def references(outcome: Outcome) -> list[dict[str, Any]]:
    """One line for each reference, the gravest first, controls last."""
    values = charts.score_range([f.points for f in outcome.findings])
    ordered = sorted(outcome.findings, key=lambda f: f.kind == "control")
    return [
        {
            "name": f.reference,
            "kind": f.kind,
            "state": f.state,
            "since": "" if f.since is None or len(f.points) < 2 else f"since step {f.since:,}",
            "score": figure(f.score),
            "threshold": figure(f.threshold),
            "dose": dose_cell(f),
            "cosines": [figure(f.scores.get(key)) for key in cosine_columns(outcome)],
            "spark": charts.sparkline(f.points, values),
            "acknowledged": f.acknowledged,
            "reason": sentence(f.last.reason) if f.last else "",
        }
        for f in ordered
    ]


def dose_cell(finding: Finding | None) -> str:
    """The dose as a multiple of the reference."""
    known = finding is not None and finding.dose is not None and math.isfinite(finding.dose)
    return f"{dose_figure(finding.dose)} ×" if finding and known else "–"


def cautions(outcome: Outcome) -> list[str]:
    """What a reader of the numbers must know: calibration, coverage, precision."""
    view = outcome.view
    # The first problem of a run that could not be judged stands at its head already.
    warnings: list[str] = list(view.problems[outcome.state == "unknown" :])
    kinds = dict.fromkeys(f.last.calibration for f in outcome.findings if f.last)
    warnings += [sentence(CALIBRATION[k]) for k in kinds if k in CALIBRATION and k != "calibrated"]
    geometry = outcome.deciding[0] if outcome.deciding else None
    for name, (least, _) in _coverage(view).items():
        if least < LOW_COVERAGE and geometry in (name, None):
            warnings.append(
                f"The scores see {percent(least)} of the change (‖τ‖², {geometry_name(name)} "
                "geometry): what the rest does is not judged."
            )
    steps_by_warning: dict[str, list[int]] = {}
    for row in view.rows:
        for warning in row.scores.warnings:
            steps_by_warning.setdefault(warning, []).append(row.step or 0)
    for warning, steps in list(steps_by_warning.items())[:MOST_CAUTIONS]:
        seen = "at least " if view.in_part else ""
        where = f" (from step {steps[0]:,}, {seen}{count(len(steps), 'reading')})"
        warnings.append(sentence(warning) + (where if len(view.rows) > 1 else ""))
    if len(steps_by_warning) > MOST_CAUTIONS:
        warnings.append(f"And {count(len(steps_by_warning) - MOST_CAUTIONS, 'more warning')}.")
    unknown = [r.step for r in view.rows if any(v.state == "unknown" for v in r.verdicts.values())]
    if unknown and outcome.state != "unknown":
        place = "" if unknown[0] is None else f", the first at step {unknown[0]:,}"
        seen = "At least " if view.in_part else ""
        warnings.append(f"{seen}{count(len(unknown), 'reading')} could not be judged{place}.")
    return warnings


def facts(outcome: Outcome) -> list[tuple[str, str]]:
    """How it was measured (label, value)."""
    view, rows = outcome.view, outcome.view.rows
    lines: list[tuple[str, str]] = []
    if outcome.deciding:
        lines.append(
            (
                "deciding score",
                f"{outcome.deciding[1]}, {geometry_name(outcome.deciding[0])} geometry",
            )
        )
    kinds = dict.fromkeys(f.last.calibration for f in outcome.findings if f.last)
    lines += [("threshold", CALIBRATION.get(kind, kind)) for kind in kinds]
    banks = dict.fromkeys(r.scores.bank for r in rows if r.scores.bank)
    lines += [("reference bank", bank) for bank in banks]
    if rows:
        lines.append(("readings", _interval(view)))
        components = dict.fromkeys(row.scores.components for row in rows)
        if set(components) - {()}:
            lines.append(
                ("scores look at", listed([f"{c}" for parts in components for c in parts]))
            )
    for geometry, (least, last) in _coverage(view).items():
        words = f"{percent(last)} of ‖τ‖²" + (f", least {percent(least)}" if least < last else "")
        lines.append((f"coverage, {geometry_name(geometry)}", words))
    if view.measure_seconds:
        median = statistics.median(view.measure_seconds)
        lines.append(("time a reading", f"{seconds(median)} (median)"))
    norms = [row.scores.norm for row in rows]
    if norms:
        course = (
            f"{figure(norms[0])} to {figure(norms[-1])}" if len(norms) > 1 else figure(norms[0])
        )
        lines.append(("norm ‖τ‖", course))
    return lines + list(view.facts)


def norm_course(view: RunView) -> tuple[list[Point], tuple[float, float]]:
    """‖τ‖ over the run, for a sparkline."""
    course = [
        Point(
            float(index if row.step is None else row.step), drawable(row.scores.norm), math.nan, ""
        )
        for index, row in enumerate(view.rows)
    ]
    return course, charts.score_range([course])


def events(view: RunView) -> list[tuple[str, str, str, str, str]]:
    """(time, step, what, reference, words) of what happened beside the readings."""
    return [
        (
            datetime.fromtimestamp(event.time, UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "–" if (step := _step_at(view, event.time)) is None else f"{step}",
            {"ack": "acknowledged", "stop-cleared": "stop cleared"}.get(event.kind, event.kind),
            event.reference or "–",
            event.detail,
        )
        for event in view.events
    ]


def stops(view: RunView) -> list[int]:
    """The steps at which the run was told to stop."""
    steps = [_step_at(view, event.time) for event in view.events if event.kind == "stop"]
    return [step for step in steps if step is not None]


def readings(outcome: Outcome) -> dict[str, Any]:
    """The readings as a table: all of a short run, the telling ones of a long one."""
    view = outcome.view
    shown = [f for f in outcome.findings if f.kind == "behaviour"][:COLUMNS]
    if not shown or not view.rows:
        return {"references": [], "rows": [], "note": ""}
    keep = {p.step for f in shown[:1] for p in thin(f.points, TABLE_SPANS)}
    courses = [{p.step: p for p in f.points} for f in shown]
    lines: list[Mapping[str, Any]] = []
    for index, row in enumerate(view.rows):
        step = float(index if row.step is None else row.step)
        if step not in keep:
            continue
        lines.append(
            {
                "step": "–" if row.step is None else f"{row.step}",
                "cells": [_cells(course.get(step)) for course in courses],
                "norm": figure(row.scores.norm),
            }
        )
    note = ""
    if len(lines) < view.total:
        note = (
            f"{len(lines)} of {count(view.total, 'reading')}: the first and last of each span "
            "of steps, its smallest and largest score, and the first of every verdict."
        )
    return {"references": [f.reference for f in shown], "rows": lines, "note": note}


def _cells(point: Point | None) -> tuple[str, str, str]:
    if point is None:
        return ("", "–", "–")
    values = [figure(None if math.isnan(v) else v) for v in (point.score, point.threshold)]
    return (point.state, values[0], values[1])


def _coverage(view: RunView) -> dict[str, tuple[float, float]]:
    """By geometry: (least, last) share of ‖τ‖² that the scores see."""
    shares: dict[str, tuple[float, float]] = {}
    for row in view.rows:
        for geometry, share in row.scores.coverage.items():
            if math.isfinite(share):
                shares[geometry] = (min(share, shares.get(geometry, (share, share))[0]), share)
    return shares


def _interval(view: RunView) -> str:
    steps = [row.step for row in view.rows if row.step is not None]
    words = f"{view.total:,}"
    if view.in_part:
        words += f", of which this page looks at {len(view.rows):,}: of each stretch the first, "
        words += "the smallest and largest scores, and where a verdict changed"
        words += f" (steps {steps[0]:,} to {steps[-1]:,})"
    elif len(steps) > 1:
        gaps = [b - a for a, b in pairwise(steps)]
        every = statistics.median_low(gaps)
        words += f", every {count(every, 'step') if every != 1 else 'step'}"
        words += f" (steps {steps[0]:,} to {steps[-1]:,})"
    elif steps:
        words += f", at step {steps[0]:,}"
    return words


def _step_at(view: RunView, time: float) -> int | None:
    """The last step that had been read by `time`, where it is known when they were made."""
    timed = [
        (wall_time, row.step)
        for wall_time, row in zip(view.wall_times, view.rows, strict=False)
        if row.step is not None
    ]
    index = bisect_right(timed, time, key=lambda item: item[0])
    return timed[index - 1][1] if index else None
