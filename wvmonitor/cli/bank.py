"""`wvmonitor bank`: one command to a bank that can be trusted as far as it says."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wvmonitor.cli.progress import bars

if TYPE_CHECKING:
    from wvmonitor.builder.bank_job import BankPlan
    from wvmonitor.builder.prepare import Prepared


def command(
    model: Annotated[str, typer.Argument(help="The base: a folder, a Hub id, or tiny-organism.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="The bank's folder.")],
    revision: Annotated[str | None, typer.Option(help="Of a Hub model.")] = None,
    work: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where artefacts are kept: OUT.work.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Contrasts of your own, or persona (the paper's way); ours if left out.",
        ),
    ] = None,
    behaviour: Annotated[
        list[str] | None, typer.Option(help="Only this one; give as many as you want.")
    ] = None,
    harmless: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA",
            help="Harmless data of your own: a folder of .jsonl files, a file, a dataset's name.",
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="A run's folder or a YAML of its settings: harmless runs are trained like it.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The least that is worth anything.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option(help="Time on this machine, as in 1h or 40m.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Fine-tunes side by side; by default one a core.")
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="The share of harmless runs that may raise the alarm.")
    ] = 0.05,
    score: Annotated[
        str | None,
        typer.Option(
            metavar="GEOMETRY/SCORE",
            help="What decides, as in response/residual; development runs choose if left out.",
        ),
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            metavar="JUDGE",
            help="Of answers with --data persona: rules, model (the base itself), or an address.",
        ),
    ] = "auto",
    judge_model: Annotated[
        str | None, typer.Option(help="What the address calls its model.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    private: Annotated[
        bool, typer.Option("--private", help="Only you may read the files (mode 0600).")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and its costs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Make a bank for a base model: references, controls, calibration, power check, report.

    What is finished is kept and reused: run the same command again to go on. The exit code is 1
    where the bank catches less than half of the bad runs that it was tried on.

    For example:

      wvmonitor bank tiny-organism --out my-bank --quick

      wvmonitor bank Qwen/Qwen2.5-7B-Instruct --out banks/qwen --dry-run
    """
    import warnings

    warnings.simplefilter("ignore", FutureWarning)  # the libraries' own, of no use here
    from wvmonitor.builder.bank_job import BankOptions
    from wvmonitor.builder.prepare import make_bank, plan_bank
    from wvmonitor.builder.scale import QUICK, parse_hours

    if quick and budget:
        raise typer.BadParameter("--quick and --budget both say how much: give one of them")
    options = BankOptions(
        model=model,
        out=out,
        revision=revision,
        work=work,
        data=data,
        behaviours=tuple(behaviour or ()),
        harmless=tuple(harmless or ()),
        like=like,
        scale=QUICK if quick else None,
        budget=parse_hours(budget) if budget else None,
        jobs=jobs,
        seed=seed,
        alpha=alpha,
        score=score,
        judge=judge,
        judge_model=judge_model,
        private=private,
    )
    plan = plan_bank(options)
    if dry_run or not as_json:
        _show_plan(plan, as_json=as_json)
    if dry_run:
        return
    try:
        with bars() as tick:
            made = make_bank(replace(options, scale=plan.scale), tick)  # the machine's speed varies
    except KeyboardInterrupt:
        print("what is finished is kept: the same command goes on from there", file=sys.stderr)
        raise
    _show(made, as_json=as_json)
    if made.trust.weakness():
        raise typer.Exit(1)


def _show_plan(plan: BankPlan, *, as_json: bool) -> None:
    if as_json:
        found = {
            "scale": plan.scale.name,
            "stages": [
                {"stage": c.name, "what": c.what, "steps": c.steps, "seconds": c.seconds}
                for c in plan.costs
            ],
            "seconds": plan.seconds,
            "jobs": plan.machine.jobs,
            "device": plan.machine.device,
            "behaviours": plan.behaviours,
            "controls": plan.controls,
            "families": plan.families,
            "notes": plan.notes,
        }
        print(json.dumps(found, indent=2))
        return
    m = plan.machine
    print(
        f"a {plan.scale.name} bank: {', '.join(plan.behaviours)}; controls "
        f"{', '.join(plan.controls)}; {len(plan.families)} harmless families at hand"
    )
    print(f"this machine: {m.device}, {m.flops / 1e9:,.0f} GFLOP/s a process, {m.jobs} at once")
    for c in plan.costs:
        print(f"{c.name:>16}  {c.what:<40} {c.steps:>7} steps  {_time(c.seconds):>8}")
    print(f"{'in all':>16}  {'':<40} {sum(c.steps for c in plan.costs):>7} steps  "
          f"{_time(plan.seconds):>8}")  # fmt: skip
    for note in plan.notes:
        print(f"note: {note}")


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _show(made: Prepared, *, as_json: bool) -> None:
    from wvmonitor.references.store import REPORT_FILE

    trust = made.trust
    if as_json:
        found = {
            "bank": str(made.folder),
            "fingerprint": made.fingerprint,
            "trust": trust.model_dump(mode="json"),
        }
        print(json.dumps(found, indent=2))
        return
    guarantee = "no calibration" if trust.alpha is None else (
        f"{trust.status} calibration from {len(trust.calibrated_on)} harmless runs at "
        f"{trust.alpha:.0%}"
    )  # fmt: skip
    print(f"{made.folder}: {guarantee}; {trust.score} ({trust.geometry}) decides")
    print(f"power check: {trust.sentence()}")
    for note in trust.notes:
        print(f"note: {note}")
    if weakness := trust.weakness():
        typer.secho(f"weak: {weakness}", fg="red", bold=True)
    print(f"how far to trust it: {made.folder / REPORT_FILE}")
    print(f'next: WVMonitorCallback.attach(trainer, references="{made.folder}")')
