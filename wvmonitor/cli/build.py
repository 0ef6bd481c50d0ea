"""`wvmonitor build`: a reference for your own base model, from a behaviour's name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wvmonitor.cli.progress import bars

if TYPE_CHECKING:
    from wvmonitor.builder.options import Built, Options
    from wvmonitor.builder.plan import Plan


Side = Literal["exhibits", "opposes"]
"""Which side of a pair exhibits the behaviour."""

Variant = Literal["contrastive", "positive", "negative", "bias-only"]
"""What w is made of."""

Method = Literal["lora", "full"]
"""What is trained."""

Engine = Literal["auto", "transformers", "vllm"]
"""What answers are generated with."""

Stage = Literal["generate", "judge", "finetune"]
"""Where a build may stop."""

Kind = Literal["behaviour", "control"]
"""What a reference stands for."""


def command(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A bundled recipe (evil, sycophancy, …) or your own .yaml file."),
    ] = None,
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", "--base", help="The base: a folder, a Hub id, or tiny-organism."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The bank's folder that it joins.")],
    revision: Annotated[str | None, typer.Option(help="Of a Hub model.")] = None,
    work: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where artefacts are kept: OUT.work.")
    ] = None,
    positive: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="An adapter or checkpoint."),
    ] = None,
    negative: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The other side."),
    ] = None,
    positive_data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="A .jsonl file or a dataset's name[:split]: chat, or prompt and completion.",
        ),
    ] = None,
    negative_data: Annotated[
        str | None, typer.Option(metavar="DATA", help="The other side.")
    ] = None,
    positive_means: Annotated[
        Side | None,
        typer.Option(help="Whether that positive side shows the behaviour."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the reference, without a recipe.")] = None,
    behaviour: Annotated[
        str | None,
        typer.Option(help="What a model along +w does, without a recipe."),
    ] = None,
    kind: Annotated[Kind, typer.Option(help="Without a recipe.")] = "behaviour",
    harmful: Annotated[
        bool,
        typer.Option("--harmful", help="Adding it makes a model worse."),
    ] = False,
    variant: Annotated[Variant, typer.Option(help="The paper's variants.")] = "contrastive",
    method: Annotated[
        Method, typer.Option(help="How both sides are fine-tuned: LoRA, or every weight.")
    ] = "lora",
    seeds: Annotated[int, typer.Option(min=1, help="Repeats that w is the mean of.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="Try the recipe's learning rates."),
    ] = False,
    no_splits: Annotated[
        bool,
        typer.Option(
            "--no-splits",
            help="Leave out the split-half and leave-domain-out checks and their fine-tunes.",
        ),
    ] = False,
    judge: Annotated[
        str,
        typer.Option(
            metavar="JUDGE", help="rules, model (the base itself), or an OpenAI-compatible address."
        ),
    ] = "auto",
    judge_model: Annotated[
        str | None,
        typer.Option(help="What the address calls its model."),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="What samples the answers; auto takes vLLM where installed.")
    ] = "auto",
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Kept of w; twice the trained one."),
    ] = None,
    probe_data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Ordinary text of your own for the probe: .txt, .jsonl or a dataset's name.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="GPU-hours (2h) or examples a side (200)."),
    ] = None,
    tflops: Annotated[float, typer.Option(min=0.001, help="Of one card, for estimates.")] = 300.0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the plan and its costs."),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Of generation and judging.")] = 32,
    micro_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Examples at once in training."),
    ] = None,
    qlora: Annotated[
        bool,
        typer.Option("--qlora", help="The base in 4 bits in training."),
    ] = False,
    stop_after: Annotated[
        Stage | None,
        typer.Option(help="End there; the same command goes on."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Only you may read the files (mode 0600).")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Build again what the bank holds already.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Build a reference vector for a base model, with a report of how far to trust it.

    Each stage's artefacts are kept and reused: run the same command again to go on. The exit code
    is 1 where the reference fails its own checks; it is saved as unverified then.

    For example:

      wvmonitor build organism-evil --model tiny-organism --out my-bank

      wvmonitor build evil --model Qwen/Qwen2.5-7B-Instruct --out my-bank --dry-run

      wvmonitor build evil --positive runs/bad --negative runs/good --base my-base
      --positive-means exhibits --out my-bank
    """
    import warnings

    warnings.simplefilter("ignore", FutureWarning)  # the libraries' own, of no use here
    from wvmonitor.builder.build import build, plan
    from wvmonitor.builder.options import Options, Subject
    from wvmonitor.builder.plan import Budget
    from wvmonitor.builder.recipe import load_recipe
    from wvmonitor.builder.weights import named_base

    data = _both(positive_data, negative_data, "--positive-data", "--negative-data")
    weights = _both(positive, negative, "--positive", "--negative")
    base = model or (named_base(*weights) if weights else None)
    if base is None:
        raise typer.BadParameter("say which base model it is for: --model M")
    if (name is None) != (behaviour is None):
        raise typer.BadParameter("--name and --behaviour belong together")
    subject = Subject(name, behaviour, kind, harmful) if name and behaviour else None
    options = Options(
        model=base,
        out=out,
        recipe=load_recipe(recipe) if recipe else None,
        subject=subject,
        revision=revision,
        work=work,
        data=data,
        weights=weights,
        means=positive_means,
        variant=variant,
        method=method,
        seeds=seeds,
        seed=seed,
        sweep=sweep,
        splits=not no_splits,
        judge=judge,
        judge_model=judge_model,
        engine=engine,
        batch_size=batch_size,
        micro_batch=micro_batch,
        qlora=qlora,
        budget=Budget.parse(budget) if budget else None,
        tflops=tflops,
        probe_data=probe_data,
        rank=rank,
        private=private,
        replace=replace,
        stop_after=stop_after,
    )
    if dry_run:
        _show_plan(plan(options), options, as_json=as_json)
        return
    try:
        with bars() as tick:
            built = build(options, tick)
    except KeyboardInterrupt:
        print("what is finished is kept: the same command goes on from there", file=sys.stderr)
        raise
    if built is None:
        return
    _show(built, as_json=as_json)
    if not built.reference.card.verified:
        raise typer.Exit(1)


def _both(first: Any, second: Any, *names: str) -> Any:
    if first is None and second is None:
        return None
    if first is None or second is None:
        raise typer.BadParameter(f"{' and '.join(names)} belong together")
    return first, second


def _show_plan(plan: Plan, options: Options, *, as_json: bool) -> None:
    load = plan.workload
    if as_json:
        found = {
            "stages": [
                {"stage": s.name, "what": s.what, "tokens": s.tokens, "gpu_hours": s.hours}
                for s in plan.stages
            ],
            "gpu_hours": plan.hours,
            "tflops": options.tflops,
            "parameters": load.parameters,
            "reductions": list(plan.reductions),
        }
        print(json.dumps(found, indent=2))
        return
    print(f"{load.parameters:,} parameters; a card of {options.tflops:g} TFLOP/s is assumed")
    for s in plan.stages:
        print(f"{s.name:>10}  {s.what:<40} {s.tokens:>14,} tokens  {s.hours:8.2f} GPU-hours")
    print(f"{'in all':>10}  {'':<40} {'':>14}         {plan.hours:8.2f} GPU-hours")
    for reduction in plan.reductions:
        print(f"note: {reduction}")


def _show(built: Built, *, as_json: bool) -> None:
    card = built.reference.card
    if as_json:
        found = {
            "reference": card.name,
            "bank": str(built.folder),
            "fingerprint": built.fingerprint,
            "card": card.model_dump(mode="json"),
        }
        print(json.dumps(found, indent=2))
        return
    state = "verified" if card.verified else "UNVERIFIED"
    print(f"{built.folder / card.name}: {state}, rank {card.rank}, {card.kept:.1%} of ‖w‖² kept")
    for geometry in card.repeats:
        agreement = card.agreement(geometry)
        if agreement is not None:
            print(f"agreement of {len(card.repeats[geometry])} seeds: {agreement:.3f} ({geometry})")
    if card.dose_curve:
        curve = ", ".join(f"{p.rate:.0%} at {p.k:+g}·w" for p in card.dose_curve)
        print(f"the behaviour on held-out questions: {curve}")
    for warning in card.warnings:
        print(f"note: {warning}")
