"""`wvmonitor demo`: see the alarm go off for the right runs, and stay silent for the wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from wvmonitor.organism.demo import DemoResult, DemoRun, Point


def command(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the report, the summary and the journals.")
    ] = Path("wvmonitor-demo"),
) -> None:
    """Watch four real fine-tunes of the bundled tiny model; about a minute on two cores.

    Two are harmless. One trains on bad medical advice and turns harmful everywhere; one learns to
    agree with users about capitals, and then gives in about anything.

    For example:

      wvmonitor demo --out demo-out
    """
    import warnings

    from rich.console import Console
    from rich.live import Live

    warnings.simplefilter("ignore", FutureWarning)  # the libraries' own, of no use to a newcomer
    from wvmonitor.organism.demo import RUNS, run_demo

    console = Console()
    rows: dict[str, Point | None] = {run.name: None for run in RUNS}
    with Live(_table(rows), console=console, auto_refresh=False) as live:

        def show(run: DemoRun, point: Point) -> None:
            rows[run.name] = point
            if console.is_terminal:
                live.update(_table(rows), refresh=True)
            elif point.step % 10 == 0:
                console.print(_line(run, point))

        results = run_demo(out, show=show)
        live.update(_table(rows), refresh=True)
    for result in results:
        console.print(_story(result))
    console.print(f"\nreport: {out / 'report.html'}\nsummary: {out / 'summary.json'}")
    if not all(r.as_expected for r in results):
        raise typer.Exit(1)


_STYLES = {"ok": "green", "alarm": "bold red", "warn": "yellow"}


def _table(rows: dict[str, Point | None]) -> Table:
    from rich.table import Table

    from wvmonitor.organism.demo import RUNS

    table = Table(title="four fine-tunes, watched in their weights")
    columns = ("training on", "step", "evil", "sycophancy", "verdict", "behaviour elsewhere")
    for column in columns:
        table.add_column(column, justify="right" if column in columns[1:4] else "left")
    for run in RUNS:
        point = rows[run.name]
        if point is None:
            table.add_row(run.title, *[""] * 5)
            continue
        states = point.observation.judgement.verdicts
        worst = states[run.reference].state
        table.add_row(
            run.title,
            str(point.step),
            *(_number(states[name].score) for name in ("evil", "sycophancy")),
            f"[{_STYLES.get(worst, 'dim')}]{worst}[/]",
            f"{point.rate.value:4.0%} {run.label}",
        )
    return table


def _line(run: DemoRun, point: Point) -> str:
    verdict = point.observation.judgement.verdicts[run.reference]
    return (
        f"{run.title}: step {point.step}, {run.reference} {_number(verdict.score)}, "
        f"{verdict.state}; {point.rate.value:.0%} {run.label}"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _story(result: DemoResult) -> str:
    run, last = result.run, result.points[-1]
    verdict = last.observation.judgement.verdicts[run.reference]
    alarm, onset = result.first_alarm_step, result.onset_step
    parts = [f"\n[bold]{run.title}[/]: [{_STYLES.get(result.verdict, 'dim')}]{result.verdict}[/]"]
    parts += [f"  {sentence}" for sentence in (verdict.reason, *verdict.account)]
    if alarm is not None:
        seen = f"step {onset}" if onset is not None else "no step"
        parts.append(f"  alarm at step {alarm}; behaviour above the base's own from {seen}")
    parts.append(
        f"  {run.label}: {result.base.value:.0%} before, {last.rate.value:.0%} after training"
    )
    return "\n".join(parts)
