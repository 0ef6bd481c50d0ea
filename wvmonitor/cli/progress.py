"""One bar with the time left for each stage of what is being made, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wvmonitor.builder.stages import Ticker

_STAGES = {
    "generate": "answers",
    "judge": "judged",
    "sweep": "learning rates",
    "finetune": "fine-tuning steps",
    "probe": "probe tokens",
    "behaviour": "doses checked",
    "blame": "examples, both passes",
    "harmless": "harmless examples",
}


@contextmanager
def bars() -> Iterator[Ticker]:
    """A ticker that shows; where nobody watches a terminal, in lines for a log."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bars = Progress(
        TextColumn("{task.description:>21}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[str, TaskID] = {}

    def tick(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            title = _STAGES.get(stage, stage)
            tasks[stage] = bars.add_task(title, total=total, completed=done)
        bars.update(tasks[stage], completed=done, total=total)

    with bars:
        yield tick


def _lines() -> Ticker:
    """A line at the beginning of a stage, at every tenth of it, and at its end."""
    began: dict[str, tuple[float, int]] = {}
    reported: dict[str, int] = {}

    def tick(stage: str, done: int, total: int) -> None:
        start, found = began.setdefault(stage, (time.monotonic(), done))
        tenth = 10 * done // max(total, 1)
        if reported.get(stage) != tenth:
            reported[stage] = tenth
            spent = time.monotonic() - start
            name = _STAGES.get(stage, stage)
            left = ""
            if found < done < total:  # what was there before took no time
                left = f", about {spent * (total - done) / (done - found):.0f} s left"
            print(f"{name}: {done} of {total} ({spent:.0f} s{left})", file=sys.stderr, flush=True)

    return tick
