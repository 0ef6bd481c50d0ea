"""The keys of a LoRA folder, module by module, and the checks of their factors' shapes."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from wvmonitor.errors import AdapterError
from wvmonitor.files.storage import shown
from wvmonitor.sources.adapters.config import LoraSettings
from wvmonitor.sources.adapters.folder import AdapterFolder, InitialState
from wvmonitor.sources.adapters.lora_module import Layout

# What a key ends with, and what it then is. Longer endings first.
_ROLES = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".lora_velora_embed": "none",  # VeLoRA's projection of activations, used in training only
}


@dataclass
class Keys:
    """The keys of one adapted module, by role.

    Attributes:
        path: the module, with `base_layer` where PEFT nests wrappers.
        embedding: whether the factors are an embedding's.
        of: role -> key without PEFT's prefix.
    """

    path: str
    embedding: bool
    of: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What every module of one adapter is read with."""

    folder: AdapterFolder
    settings: LoraSettings
    initial: InitialState | None
    mixed: bool


def sorted_keys(folder: AdapterFolder) -> tuple[dict[str, Keys], list[str]]:
    """The adapted modules by their paths, and the keys of what is stored whole.

    Raises:
        AdapterError: a key that PEFT's LoRA does not save, or two for one thing.
    """
    modules: dict[str, Keys] = {}
    rest: list[str] = []
    for key in folder.keys():  # noqa: SIM118  a method of the folder, not a dict's
        ending = next((e for e in _ROLES if key.endswith(e)), None)
        if ending is None:
            if ".lora_" in key:
                raise AdapterError(
                    f"the key {shown(key)} of {folder.where} is not one that PEFT's LoRA saves: "
                    "re-save the adapter with save_pretrained"
                )
            rest.append(key)
            continue
        path = key.removesuffix(ending)
        module = modules.setdefault(path, Keys(path, "_embedding_" in ending))
        if _ROLES[ending] in module.of:
            raise AdapterError(
                f"{folder.where} holds {shown(key)} and {shown(module.of[_ROLES[ending]])}, "
                "which are one thing: re-save the adapter"
            )
        module.of[_ROLES[ending]] = key
        module.embedding |= "_embedding_" in ending
    return modules, rest


def factors(run: Run, module: Keys) -> tuple[Tensor, Tensor, float, Layout]:
    """A, B, scale and layout of a linear layer's factors."""
    a, b = (run.folder.factor(module.of[role]) for role in "AB")
    layout = Layout((b.shape[0], a.shape[1]), outputs_last=False, transposed=False)
    check_factors(run, module, run.settings.rank_of(module.path), layout)
    return a, b, run.settings.scale_of(module.path), layout


def check_factors(run: Run, module: Keys, rank: int, layout: Layout) -> None:
    """Hold a module's factors against its rank, and the parameter's shape.

    Raises:
        AdapterError: they do not fit.
    """
    a, b = (run.folder.shape(module.of[role]) for role in "AB")
    stacked = rank * (layout.shape[0] if len(layout.shape) == 3 else 1)
    inputs, outputs = layout.shape[-2:] if layout.outputs_last else layout.shape[:-3:-1]
    if a != (stacked, inputs) or b != (outputs, stacked):
        raise AdapterError(
            f"{shown(module.of['A'])} {a} and {shown(module.of['B'])} {b} of {run.folder.where} "
            f"are no factors of rank {rank} (as {run.settings.where} says) for a parameter of "
            f"shape {layout.shape}: re-save the adapter, or check that the base is the one that it "
            "was trained on"
        )
