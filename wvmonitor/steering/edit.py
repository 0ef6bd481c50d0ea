"""An edit by name: behaviours added to a model or taken out of it, on disk.

What a fine-tune has picked up is taken out by its *dose*, the coefficient k for which k·w explains
the fine-tune's task vector (`detection.formulas.dose`). The plain projection ⟨τ,w⟩/⟨w,w⟩ would take
out too little: noise in w lengthens w but not the product. For the same reason the dose must be
measured again with *other* references of the behaviour to come out at the target: measured with the
very w that was subtracted, it counts that w's own noise and comes out below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wvmonitor.detection.judge import Judge
from wvmonitor.detection.scores import ReferenceScores, Scores
from wvmonitor.errors import InputError, LossyEditError, NonFiniteError, UnsupportedAdapterError
from wvmonitor.files.documents import read_json
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.reference import Reference
from wvmonitor.sources.adapters import read_adapter
from wvmonitor.sources.checkpoint import read_checkpoints
from wvmonitor.sources.identity import base_digest
from wvmonitor.steering.adapter import as_adapter
from wvmonitor.steering.checkpoints import steer_checkpoint
from wvmonitor.steering.folders import LOSSY, SteeredFolder, check_outside
from wvmonitor.steering.weights import Steering
from wvmonitor.vectors import TaskVector

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Edit:
    """What is to be done to a model, or was.

    Attributes:
        amounts: k of each reference, by name, or of each fine-tune, by folder; negative takes it
            out.
        doses: the dose that was measured before, of the references that are taken out by dose.
        unproven: what has not passed a behavioural check of its own.
        cautions: why taking a dose out may not take the behaviour out.
    """

    amounts: Mapping[str, float]
    doses: Mapping[str, float]
    unproven: tuple[str, ...] = ()
    only_biases: bool = False
    cautions: tuple[str, ...] = ()


ALIKE = 0.15
"""A run is of a reference's shape where its residual score (controls out) is at least this."""

AGREE = 2.0
"""The two geometries give one dose, within this factor, for a run of a reference's shape."""


def plan(
    model: str | Path,
    bank: ReferenceBank,
    *,
    add: Mapping[str, float],
    remove: Mapping[str, float | None],
    base: str | Path | None = None,
    to_dose: float = 0.0,
    allow_harmful: bool = False,
    only_biases: bool = False,
) -> Edit:
    """How much of each reference an edit adds.

    Beside names of references, the folder of a fine-tune of the same base can be given: its own
    task vector, τ+ or τ−, is the non-contrastive variant of weight steering (section 3).

    Args:
        model: a base, a fine-tuned checkpoint or an adapter; its folder.
        bank: the references.
        add: k by name or folder.
        remove: k by name or folder to take out, or None for the dose that is measured.
        base: the base of a fine-tuned checkpoint or adapter.
        to_dose: what removing by dose leaves.
        allow_harmful: add behaviours whose card says that they are harmful.
        only_biases: move biases alone.

    Raises:
        InputError: nothing to do, a behaviour named twice, a harmful one without
            `allow_harmful`, or a dose that is not known or is not above `to_dose`.
        NonFiniteError: `to_dose` is not finite.
        UnknownReferenceError: a name that the bank does not hold.
        BaseMismatchError: the model was not made from the bank's base.
    """
    if not add and not remove:
        raise InputError("nothing to do: say --add NAME=K, or --remove NAME")
    if twice := sorted(set(add) & set(remove)):
        raise InputError(f"{', '.join(twice)} is both added and taken out: decide for one")
    if not math.isfinite(to_dose):
        raise NonFiniteError(f"the dose to leave must be finite, got {to_dose}")
    cards = {name: bank[name].card for name in (*add, *remove) if not _is_finetune(name, bank)}
    raised = [n for n, k in add.items() if k > 0]
    raised += [n for n, k in remove.items() if k is not None and k < 0]
    harmful = [n for n in raised if n in cards and cards[n].harmful]
    if harmful and not allow_harmful:
        raise InputError(
            f"adding {', '.join(harmful)} makes a model that behaves badly: say --i-understand if "
            "that is what you need (for a test, a red team, a control)"
        )
    amounts = dict(add)
    amounts.update({n: -k for n, k in remove.items() if k is not None})
    by_dose = [n for n, k in remove.items() if k is None]
    if unnamed := [n for n in by_dose if n not in cards]:
        raise InputError(
            f"{unnamed[0]} is a fine-tune and no reference, so there is no dose of it to measure: "
            f"say --remove {unnamed[0]}=K"
        )
    doses: dict[str, float] = {}
    cautions: list[str] = []
    if by_dose:
        scores = Judge.of(bank).statistics(bank.measure(_change(model, base))).scores
        doses = _doses(scores, by_dose)
        cautions = [text for name in by_dose for text in _cautions(scores.references[name])]
    else:
        bank.relation_to(_base_digest(model, base))
    for name, dose in doses.items():
        if dose <= to_dose:
            raise InputError(
                f"the dose of {name} in {model} is {dose:.3g}, not above {to_dose:g}: there is "
                "nothing to take out"
            )
        amounts[name] = to_dose - dose
    unproven = tuple(n for n in amounts if n not in cards or cards[n].verified is False)
    return Edit(amounts, doses, unproven, only_biases, tuple(cautions))


def carry_out(
    edit: Edit,
    model: str | Path,
    bank: ReferenceBank,
    out: str | Path,
    *,
    base: str | Path | None = None,
    adapter: bool = False,
    rank: int | None = None,
    float32: bool = False,
    lossy: bool = False,
) -> SteeredFolder:
    """Write the edited model: a folder like `model`, or an adapter where that is asked for.

    Where the model's dtype cannot hold the edit (`LOSSY`), an adapter for the model is written,
    which holds it exactly, or a model in float32 where an adapter cannot be.

    Model, bank and base as for `plan`. `adapter` writes the edit as an adapter of the model instead
    of a copy of it, its updates compressed to at most `rank`; `float32` writes the model in
    float32, `lossy` in its own dtype whatever that loses.

    Raises:
        WVMonitorError: as `steer_checkpoint` and `as_adapter` say.
    """
    check_outside(out, model)
    wanted: dict[Steering, float] = {}
    under = model
    if is_adapter(model):
        wanted[_change(model, base)] = 1.0
        under = base_of(model, base)
    for name, k in edit.amounts.items():
        wanted[_steering(name, bank, base or under, only_biases=edit.only_biases)] = k
    if adapter or is_adapter(model):
        return as_adapter(wanted, None, under, out, rank=rank)
    if float32:
        return steer_checkpoint(model, wanted, out, dtype=torch.float32)
    try:
        return steer_checkpoint(model, wanted, out, most_lost=math.inf if lossy else LOSSY)
    except LossyEditError as error:
        return _in_full(model, wanted, out, str(error))


def _in_full(
    model: str | Path, wanted: Mapping[Steering, float], out: str | Path, why: str
) -> SteeredFolder:
    """The edit in a form that holds it."""
    try:
        return replace(as_adapter(wanted, None, model, out), why=why)
    except UnsupportedAdapterError:
        return replace(steer_checkpoint(model, wanted, out, dtype=torch.float32), why=why)


def is_adapter(model: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (Path(model) / ADAPTER_CONFIG).is_file()


def _is_finetune(name: str, bank: ReferenceBank) -> bool:
    """Whether a name means the folder of a fine-tune; references go first."""
    return name not in bank.names and Path(name).is_dir()


def _steering(
    name: str, bank: ReferenceBank, base: str | Path | None, *, only_biases: bool
) -> Steering:
    """What a name means, or the part of it that moves biases."""
    if _is_finetune(name, bank):
        vector = _change(name, base)
        bank.relation_to(vector.origin.base_digest)
        return _biases_of(vector, name) if only_biases else vector
    reference = bank[name]
    if only_biases:
        return Reference(reference.card, _biases_of(reference.vector, name))
    return reference


def _biases_of(vector: TaskVector, name: str) -> TaskVector:
    biases = vector.select(lambda parameter: parameter.endswith(".bias"))
    if not len(biases):
        raise InputError(f"{name} moves no biases: it was trained without them")
    return biases


def _base_digest(model: str | Path, base: str | Path | None) -> str | None:
    """The digest of what a model was made from; None where that is not on this machine."""
    where = model if base is None else base
    if is_adapter(model):
        where = base_of(model, base)
        if not Path(where).is_dir():
            return read_adapter(model).origin.base_digest
    return base_digest(where)


def _doses(scores: Scores, names: list[str]) -> dict[str, float]:
    found = {}
    for name in names:
        dose = scores.references[name].dose
        if dose is None:
            raise InputError(
                f"the dose of {name} cannot be told: its reference has no independent repeats "
                "(seeds or domains), so its noise is not known; build it from several (`wvmonitor "
                f"build --seeds 3`, or `wvmonitor bank` without --quick), or say --remove {name}=K"
            )
        found[name] = dose
    return found


def _cautions(scores: ReferenceScores) -> Iterator[str]:
    """What says that the harm may not be of the reference's shape, so that its dose leaves it."""
    name = scores.reference
    values = scores.values.get("response") or scores.values.get("frobenius") or {}
    residual = values.get("residual")
    if residual is not None and residual < ALIKE:
        yield (
            f"once controls are taken out, the change points along {name} by {residual:.2f} only "
            f"(a run of its shape: {ALIKE:g} and more): most of what it does is something else, "
            "and taking the dose out may leave it; go back to an earlier checkpoint instead"
        )
    if disagree(scores.doses):
        told = ", ".join(f"{dose:.2g} ({g})" for g, dose in scores.doses.items())
        yield (
            f"the two geometries do not agree on the dose of {name}: {told}; they do where a "
            "change is of the reference's shape, so try the result before you use it"
        )


def disagree(doses: Mapping[Any, float]) -> bool:
    """Whether two geometries give doses that are not one dose, by more than a factor of `AGREE`."""
    known = [dose for dose in doses.values() if math.isfinite(dose)]
    return len(known) == 2 and max(known) > AGREE * max(min(known), 0.0)


def _change(model: str | Path, base: str | Path | None) -> TaskVector:
    if is_adapter(model):
        return read_adapter(model, base)
    if base is None:
        raise InputError(
            f"to see what {model} has picked up, say what it was made from: --base FOLDER"
        )
    return read_checkpoints(base, model)


def base_of(adapter: str | Path, base: str | Path | None) -> str | Path:
    """What an adapter was made from: as the user says it, or its own configuration.

    Raises:
        InputError: neither does.
    """
    if base is not None:
        return base
    name = read_json(Path(adapter) / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError(f"{adapter} does not say what it was made from: say --base FOLDER")
    return name
