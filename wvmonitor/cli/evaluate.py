"""`wvmonitor eval`: what a model does, as it is or steered along references."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from wvmonitor.cli.base import base_option

Format = Literal["table", "json", "csv"]
"""How the numbers are written."""


def command(
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK",
            help="sycophancy, world_affecting, gcd, refusal, capability, emergent_misalignment, or "
            "all.",
        ),
    ],
    *,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Folder or Hub name, or an adapter; the bundled one if left out."
        ),
    ] = None,
    base: Annotated[str | None, base_option("Folder of what MODEL was made from")] = None,
    references: Annotated[
        str | None,
        typer.Option(metavar="BANK", help="Folder of references; the bundled ones if left out."),
    ] = None,
    steer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=K]", help="Add K times a reference; without K, swept."),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="K1,K2,…", help="Evaluate for each K of the references without one."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=DATA", help="A JSONL file, or a public set by name."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Inspect model that judges what rules do not decide."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many rows of each task.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often each row is asked.")] = 1,
    log_dir: Annotated[
        Path | None, typer.Option(help="Folder for Inspect's logs, answers included.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0 is greedy; the model's own if left out.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer.")] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System prompt before every question.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Most prompts in one batch.")] = 64,
    device: Annotated[str | None, typer.Option(help="As torch names it.")] = None,
    format_: Annotated[Format, typer.Option("--format", help="How it is written.")] = "table",
) -> None:
    """Measure a model's behaviour, every number with its 95 % interval; no model is written.

    With --steer it is measured under θ + k·w, in memory; with --sweep for one k after the other.
    Exit codes: 0; 2 where something could not be read; 4 wrong usage.

    For example:

      wvmonitor eval sycophancy capability --steer sycophancy --sweep=-1,0,1

      wvmonitor eval all --model runs/my-adapter --base my-base --judge openai/gpt-4o
    """
    import warnings

    from wvmonitor.evals import require_inspect

    require_inspect()
    warnings.simplefilter("ignore", FutureWarning)  # the libraries' own, of no use to a user
    from wvmonitor.evals import loading, run, tables
    from wvmonitor.evals.judge import check_judge
    from wvmonitor.evals.tasks import TASKS
    from wvmonitor.references.bank import ReferenceBank
    from wvmonitor.references.bundled import bundled_path

    names, rows = list(TASKS) if tasks == ["all"] else tasks, _by_task(data)
    run.check(names, rows)
    steerings = run.steerings(steer or [], sweep)
    if judge is not None:
        check_judge(judge)
    options = run.Options(
        data=rows,
        judge=judge,
        limit=limit,
        epochs=epochs,
        log_dir=log_dir,
        temperature=temperature,
        max_tokens=max_tokens,
        system=system,
        seed=seed,
        batch_size=batch_size,
    )
    where = model or str(bundled_path("tiny-organism", "base"))
    bank = (
        ReferenceBank.load(references or bundled_path("tiny-organism", "bank")) if steer else None
    )
    loaded, tokenizer = loading.load(where, base, device=device)
    if bank is not None:
        loading.check_base(bank, loaded, where, base)
    found = list(
        run.sweep(names, loaded, tokenizer, bank, steerings, options, name=Path(where).name)
    )
    tables.WRITERS[format_](found, sys.stdout)


def _by_task(given: list[str] | None) -> dict[str, str]:
    by_task = {}
    for text in given or []:
        task, equals, data = text.partition("=")
        if not equals or not data:
            raise typer.BadParameter(
                f"{text!r}: say which task's data it is, as in gcd=pairs.jsonl"
            )
        by_task[task] = data
    return by_task
