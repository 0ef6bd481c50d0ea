"""`wvmonitor steer`: move a model along references, or undo a drift."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from wvmonitor.cli.base import base_option


def command(
    model: Annotated[
        Path, typer.Argument(help="Folder of a base, a fine-tuned checkpoint or an adapter.")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder to write; must not exist yet.")],
    references: Annotated[
        str | None,
        typer.Option(metavar="BANK", help="Folder of references; the bundled ones if left out."),
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=K", help="Add K times a reference, or the change of a fine-tune's folder."
        ),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=K]",
            help="Take K times a reference out; without K, the dose that is measured.",
        ),
    ] = None,
    base: Annotated[
        Path | None, base_option("Folder of what a fine-tuned MODEL was made from")
    ] = None,
    to_dose: Annotated[float, typer.Option(help="The dose that removing leaves.")] = 0.0,
    as_adapter: Annotated[
        bool, typer.Option("--as-adapter", help="Write a LoRA adapter for MODEL, not a copy of it.")
    ] = False,
    float32: Annotated[bool, typer.Option("--float32", help="Write the model in float32.")] = False,
    lossy: Annotated[
        bool,
        typer.Option("--lossy", help="Keep the model's dtype, whatever it rounds away."),
    ] = False,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Largest rank of an adapter that is written.")
    ] = None,
    understood: Annotated[
        bool, typer.Option("--i-understand", help="Add a behaviour that is harmful.")
    ] = False,
    only_biases: Annotated[bool, typer.Option("--only-biases", help="Move biases alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Write θ + k·w: a model steered along references, or with a drift taken out.

    What is written is like MODEL. Where its dtype would round away more than 3 % of the edit, it is
    an adapter for MODEL, or a model in float32 where no adapter can hold it.

    For example:

      wvmonitor steer runs/my-run/checkpoint-60 --base my-base --remove evil --out repaired

      wvmonitor steer my-base --remove sycophancy=1 --as-adapter --out frank-adapter
    """
    from wvmonitor.references.bank import ReferenceBank
    from wvmonitor.references.bundled import bundled_path
    from wvmonitor.steering.edit import carry_out, plan

    if sum((as_adapter, float32, lossy)) > 1:
        raise typer.BadParameter("--as-adapter, --float32 and --lossy: decide for one")
    bank = ReferenceBank.load(references or bundled_path("tiny-organism", "bank"))
    edit = plan(
        model,
        bank,
        add={n: _required(n, k) for n, k in _amounts(add).items()},
        remove=_amounts(remove),
        base=base,
        to_dose=to_dose,
        allow_harmful=understood,
        only_biases=only_biases,
    )
    for caution in edit.cautions:
        print(f"wvmonitor: {caution}", file=sys.stderr)
    done = carry_out(
        edit,
        model,
        bank,
        out,
        base=base,
        adapter=as_adapter,
        rank=rank,
        float32=float32,
        lossy=lossy,
    )
    if as_json:
        found = {
            "path": str(done.path),
            "amounts": dict(edit.amounts),
            "doses": dict(edit.doses),
            "unverified": list(edit.unproven),
            "parameters": len(done.parameters),
            "norm": done.norm,
            "lost": done.lost,
            "form": done.form,
            "why": done.why,
            "cautions": list(edit.cautions),
        }
        print(json.dumps(found, indent=2))
        return
    for name, k in edit.amounts.items():
        before = f" (its dose was {edit.doses[name]:.3g})" if name in edit.doses else ""
        print(f"{k:+.4g} × {name}{before}")
    for name in edit.unproven:
        print(f"{name} has not passed its own behavioural check: try the result before you use it")
    print(
        f"{done.path}: {len(done.parameters)} parameters moved, ‖k·w‖ = {done.norm:.4g}, "
        f"{done.lost:.2%} of it lost to rounding or rank"
    )
    if done.why:
        written = {"adapter": "an adapter for MODEL", "float32": "a model in float32"}[done.form]
        print(f"this is {written}: {done.why}; --lossy writes it in that dtype all the same")


def _amounts(given: list[str] | None) -> dict[str, float | None]:
    amounts: dict[str, float | None] = {}
    for text in given or []:
        name, equals, number = text.partition("=")
        if name in amounts:
            raise typer.BadParameter(f"{name} is given twice")
        amounts[name] = _number(text, number) if equals else None
    return amounts


def _number(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise typer.BadParameter(f"{text!r}: K must be a finite number, as in evil=0.5")
    return value


def _required(name: str, k: float | None) -> float:
    if k is None:
        raise typer.BadParameter(f"how much of {name}? say --add {name}=K")
    return k
