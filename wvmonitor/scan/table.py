"""The scan for people: a table where there is a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from wvmonitor.detection.finding import is_on_a_part
from wvmonitor.outputs.scan_record import SCAN_SCORES, CheckpointResult, ReferenceResult
from wvmonitor.scan.results import FailOn, exit_code, reaches, unjudged
from wvmonitor.scan.text import number, visible
from wvmonitor.scan.trajectory import sentence, trajectories

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_STYLES = {"alarm": "bold red", "warn": "yellow", "unknown": "magenta", "warming": "cyan"}


def write_table(results: Iterable[CheckpointResult], out: TextIO, fail_on: FailOn) -> None:
    """Write the results for people, and what they amount to in a last line."""
    console = _terminal(out)
    if console is not None:
        collected = list(results)
        console.print(_table(collected))
        for line in _remarks(collected):
            console.print(line, markup=False, highlight=False)
    else:
        collected = []
        for result in results:
            collected.append(result)
            for line in plain_lines(result):
                print(line, file=out, flush=True)
    for trajectory in trajectories(collected):
        print(visible(sentence(trajectory)), file=out)
    print(summary(collected, fail_on), file=out)


def _terminal(out: TextIO) -> Console | None:
    """The terminal behind a stream, if there is one; rich is slow to import for a pipe."""
    if not (out.isatty() or os.environ.keys() & {"FORCE_COLOR", "TTY_COMPATIBLE"}):
        return None
    from rich.console import Console

    console = Console(file=out)
    return console if console.is_terminal else None


def plain_lines(result: CheckpointResult) -> list[str]:
    """One line a behaviour: verdict, checkpoint, step, behaviour, scores, why it is not ok."""
    path = visible(result.path)
    step = "" if result.step is None else f"  step {result.step}"
    lines = []
    if result.error is not None:
        lines = [f"{'error':<8}{path}{step}  {result.error.type}: {visible(result.error.message)}"]
    elif not result.references:
        lines = [f"{result.verdict:<8}{path}{step}  the bank holds no behaviour to judge by"]
    lines += [
        f"{r.verdict:<8}{path}{step}  {visible(name)}  {_scores(r)}  dose {number(r.dose)}  "
        f"threshold {number(r.threshold)} ({r.calibration})"
        + (f"  {visible(r.words)}" if _needs_words(r) else "")
        for name, r in result.references.items()
    ]
    return lines + [f"{'note':<8}{path}{step}  {note}" for note in _notes(result)]


def _notes(result: CheckpointResult) -> list[str]:
    """What must be known beside the verdicts; what is the error already is not said twice."""
    unsaid = () if result.error is not None else result.notices
    return [visible(n) for n in (*(notice.message for notice in unsaid), *result.warnings)]


def summary(results: Sequence[CheckpointResult], fail_on: FailOn) -> str:
    """What a scan amounts to, in a line."""
    code = exit_code(results, fail_on)
    bad = sum(any(reaches(r.verdict, fail_on) for r in x.references.values()) for x in results)
    open_ = len(unjudged(results))
    parts = [f"{len(results)} checkpoint{'' if len(results) == 1 else 's'}"]
    if bad:
        parts.append(f"{bad} at or above {fail_on}")
    if open_:
        parts.append(f"{open_} not judged")
    warned = 0 if bad else sum(x.verdict == "warn" for x in results)
    if warned:
        parts.append(f"{warned} at warn")
    passed = f"passes at {fail_on}" if warned else _quiet(results)
    words = {0: passed, 1: f"fails at {fail_on}", 2: "not clean: something was not judged"}
    return f"{', '.join(parts)}: {words[code]}"


def _quiet(results: Sequence[CheckpointResult]) -> str:
    """What it proves that nothing was raised: only a calibration makes it clean."""
    rests_on = {r.calibration for x in results for r in x.references.values()}
    if rests_on - {"calibrated", "provisional"}:
        return "nothing above the rule of thumb, which proves little without a calibration"
    if any(is_on_a_part(r.reason) for x in results for r in x.references.values()):
        return "nothing raised in the part that was judged, which is not most of the change"
    if "provisional" in rests_on:
        return "nothing above the provisional thresholds"
    return "clean"


def _table(results: Sequence[CheckpointResult]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(header_style="bold", pad_edge=False)
    table.add_column("checkpoint", overflow="fold")
    table.add_column("step", justify="right")
    table.add_column("‖τ‖", justify="right")
    table.add_column("seen", justify="right")
    table.add_column("behaviour", overflow="fold")
    geometries = list(
        dict.fromkeys(g for x in results for r in x.references.values() for g in r.scores)
    )
    for geometry in geometries:
        table.add_column(f"{geometry}\n{' '.join(SCAN_SCORES)}", justify="right")
    table.add_column("dose", justify="right")
    table.add_column("verdict")
    for result in results:
        head = [
            escape(visible(result.path)),
            "–" if result.step is None else str(result.step),
            number(result.norm),
            "–" if result.coverage is None else f"{result.coverage:.0%}",
        ]
        rows = list(result.references.items())
        if not rows:
            table.add_row(*head, "–", *("–" for _ in geometries), "–", _styled("unknown"))
        for name, r in rows:
            values = [_columns(r, g) for g in geometries]
            table.add_row(*head, escape(visible(name)), *values, number(r.dose), _styled(r.verdict))
            head = [""] * len(head)
    return table


def _remarks(results: Sequence[CheckpointResult]) -> list[str]:
    """Why, for everything that is not ok."""
    lines = []
    for result in results:
        path = visible(result.path)
        if result.error is not None:
            lines.append(f"{path}: {result.error.type}: {visible(result.error.message)}")
        lines += [
            f"{path}: {visible(name)} {r.verdict}: {visible(r.words)}"
            for name, r in result.references.items()
            if _needs_words(r)
        ]
        lines += [f"{path}: note: {note}" for note in _notes(result)]
    return lines


def _needs_words(result: ReferenceResult) -> bool:
    """Whether the state alone would hide something, as `ok` above its threshold or on a part."""
    beyond = (
        result.score is not None
        and result.threshold is not None
        and result.score >= result.threshold
    )
    return beyond or result.verdict != "ok" or is_on_a_part(result.reason)


def _styled(verdict: str) -> str:
    style = _STYLES.get(verdict, "green")
    return f"[{style}]{verdict}[/{style}]"


def _columns(reference: ReferenceResult, geometry: str) -> str:
    values = {str(g): v for g, v in reference.scores.items()}.get(geometry, {})
    return " ".join(_fixed(values.get(name)) for name in SCAN_SCORES)


def _fixed(value: float | None) -> str:
    return "     –" if value is None else f"{value:6.3f}"


def _scores(reference: ReferenceResult) -> str:
    return "  ".join(
        f"{geometry} " + ", ".join(f"{name} {number(values.get(name))}" for name in SCAN_SCORES)
        for geometry, values in reference.scores.items()
    )
