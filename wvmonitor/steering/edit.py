"""An edit by name: behaviours added to a model or taken out of it, on disk.

What a fine-tune has picked up is taken out by its *dose*, the coefficient k for which k·w explains
the fine-tune's task vector (`detection.formulas.dose`). The plain projection ⟨τ,w⟩/⟨w,w⟩ would take
out too little: noise in w lengthens w but not the product. For the same reason the dose must be
measured again with *other* references of the behaviour to come out at the target: measured with the
very w that was subtracted, it counts that w's own noise and comes out below.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wvmonitor.detection.scores import score
from wvmonitor.errors import InputError
from wvmonitor.files.documents import read_json
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.reference import Reference
from wvmonitor.sources.adapters import read_adapter
from wvmonitor.sources.checkpoint import read_checkpoints
from wvmonitor.sources.identity import base_digest
from wvmonitor.steering.adapter import as_adapter
from wvmonitor.steering.checkpoints import steer_checkpoint
from wvmonitor.steering.folders import SteeredFolder
from wvmonitor.vectors import Origin, TaskVector

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Edit:
    """What is to be done to a model, or was.

    Attributes:
        amounts: k of each reference, by name; negative takes it out.
        doses: the dose that was measured before, of the references that are taken out by dose.
        unproven: references of `amounts` that have not passed their own behavioural check.
    """

    amounts: Mapping[str, float]
    doses: Mapping[str, float]
    unproven: tuple[str, ...] = ()


def plan(
    model: str | Path,
    bank: ReferenceBank,
    *,
    add: Mapping[str, float],
    remove: Mapping[str, float | None],
    base: str | Path | None = None,
    to_dose: float = 0.0,
    allow_harmful: bool = False,
) -> Edit:
    """How much of each reference an edit adds.

    Args:
        model: a base, a fine-tuned checkpoint or an adapter; its folder.
        bank: the references.
        add: k by name.
        remove: k by name to take out, or None for the dose that is measured.
        base: the base of a fine-tuned checkpoint or adapter.
        to_dose: what removing by dose leaves.
        allow_harmful: add behaviours whose card says that they are harmful.

    Raises:
        InputError: nothing to do, a behaviour named twice, a harmful one without
            `allow_harmful`, or a dose that is not known or is not above `to_dose`.
        UnknownReferenceError: a name that the bank does not hold.
        BaseMismatchError: the model was not made from the bank's base.
    """
    if not add and not remove:
        raise InputError("nothing to do: say --add NAME=K, or --remove NAME")
    if twice := sorted(set(add) & set(remove)):
        raise InputError(f"{', '.join(twice)} is both added and taken out: decide for one")
    cards = {name: bank[name].card for name in (*add, *remove)}
    raised = [n for n, k in add.items() if k > 0]
    raised += [n for n, k in remove.items() if k is not None and k < 0]
    harmful = [n for n in raised if cards[n].harmful]
    if harmful and not allow_harmful:
        raise InputError(
            f"adding {', '.join(harmful)} makes a model that behaves badly: say --i-understand if "
            "that is what you need (for a test, a red team, a control)"
        )
    amounts = dict(add)
    amounts.update({n: -k for n, k in remove.items() if k is not None})
    by_dose = [n for n, k in remove.items() if k is None]
    doses: dict[str, float] = {}
    if by_dose:
        doses = _doses(_change(model, base), bank, by_dose)
    elif not is_adapter(model):
        bank.relation_to(base_digest(model if base is None else base))
    for name, dose in doses.items():
        if dose <= to_dose:
            raise InputError(
                f"the dose of {name} in {model} is {dose:.3g}, not above {to_dose:g}: there is "
                "nothing to take out"
            )
        amounts[name] = to_dose - dose
    unproven = tuple(n for n in amounts if cards[n].verified is False)
    return Edit(amounts, doses, unproven)


def carry_out(
    edit: Edit,
    model: str | Path,
    bank: ReferenceBank,
    out: str | Path,
    *,
    base: str | Path | None = None,
    adapter: bool = False,
    rank: int | None = None,
) -> SteeredFolder:
    """Write the edited model: a folder like `model`, or an adapter where that is asked for.

    Args:
        edit: what `plan` gave.
        model: as for `plan`.
        bank: as for `plan`.
        out: a folder that does not exist yet.
        base: as for `plan`.
        adapter: write the edit as an adapter of `model` instead of a copy of it.
        rank: compress an adapter's updates to at most this rank.

    Raises:
        WVMonitorError: as `steer_checkpoint` and `as_adapter` say.
    """
    references: dict[Reference, float] = {bank[n]: k for n, k in edit.amounts.items()}
    if not adapter and not is_adapter(model):
        return steer_checkpoint(model, references, out)
    if not is_adapter(model) and len(references) == 1:
        ((reference, k),) = references.items()
        return as_adapter(reference, k, model, out, rank=rank)
    terms = [reference.vector * k for reference, k in references.items()]
    source = ", ".join(f"{k:+.4g} × {n}" for n, k in edit.amounts.items())
    under: str | Path = model
    if is_adapter(model):
        terms.insert(0, _change(model, base))
        source, under = f"the adapter {Path(model).name} {source}", _base_of(model, base)
    total = functools.reduce(operator.add, terms)
    shapes = {n: total.shape(n) for n in total.names()}
    return as_adapter(
        TaskVector(shapes, total.update, Origin(source=source)), 1.0, under, out, rank=rank
    )


def is_adapter(model: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (Path(model) / ADAPTER_CONFIG).is_file()


def _doses(change: TaskVector, bank: ReferenceBank, names: list[str]) -> dict[str, float]:
    scores = score(bank.measure(change), bank.gram)
    found = {}
    for name in names:
        dose = scores.references[name].dose
        if dose is None:
            raise InputError(
                f"the dose of {name} cannot be told: its reference has no independent repeats "
                f"(seeds or domains), so its noise is not known; say --remove {name}=K"
            )
        found[name] = dose
    return found


def _change(model: str | Path, base: str | Path | None) -> TaskVector:
    if is_adapter(model):
        return read_adapter(model, base)
    if base is None:
        raise InputError(
            f"to see what {model} has picked up, say what it was made from: --base FOLDER"
        )
    return read_checkpoints(base, model)


def _base_of(adapter: str | Path, base: str | Path | None) -> str | Path:
    if base is not None:
        return base
    name = read_json(Path(adapter) / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError(f"{adapter} does not say what it was made from: say --base FOLDER")
    return name
