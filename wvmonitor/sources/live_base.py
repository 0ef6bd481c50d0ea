"""What a live model is under its wrappers: the base's own parameters, their names and identity."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wvmonitor.errors import UnmeasurableModelError, UnsupportedAdapterError
from wvmonitor.files.storage import shown
from wvmonitor.sources import identity
from wvmonitor.sources.adapters.kinds import REFUSED
from wvmonitor.sources.distributed import any_sharded, full_shape, has_master, whole
from wvmonitor.sources.names import parameter_name, unwrapped

_LOW_PRECISION = (torch.bfloat16, torch.float16)


def unwrapped_model(model: nn.Module) -> tuple[nn.Module, Mapping[str, Any]]:
    """The base model's module and its adapters' configurations (empty without adapters)."""
    current: Any = model
    while True:
        if hasattr(current, "_orig_mod"):
            current = current._orig_mod
        elif isinstance(current, nn.parallel.DistributedDataParallel | nn.DataParallel) or type(
            current
        ).__name__ in ("DeepSpeedEngine", "DistributedDataParallel"):
            current = current.module
        else:
            break
    current = _only_model(current)
    if not has_peft(current):
        return current, {}
    from peft import PeftMixedModel, PeftModel

    config: Mapping[str, Any] = getattr(current, "peft_config", {}) or {}
    for settings in config.values():
        _refuse(settings.peft_type.value)
        if getattr(settings, "layer_replication", None):
            raise UnsupportedAdapterError(
                "the model is trained with layer_replication, which makes a model of more layers "
                "than the base, so it has no task vector"
            )
    if isinstance(current, PeftModel | PeftMixedModel):
        return current.base_model.model, config
    return current, config or {"default": None}


def _only_model(root: Any) -> Any:
    """The one transformers or PEFT model inside a module; the module itself where there is none.

    Raises:
        UnmeasurableModelError: there are several, or parameters are trained outside of it in blocks
            of their own.
    """
    if _is_whole_model(root):  # everything else is inside of it
        return root
    models: list[tuple[str, nn.Module]] = []
    for path, module in root.named_modules():
        inside = any(not outer or path.startswith(f"{outer}.") for outer, _ in models)
        if not inside and _is_whole_model(module):
            models.append((path, module))
    if len(models) > 1:
        names = ", ".join(shown(path) for path, _ in models[:3])
        raise UnmeasurableModelError(
            f"the module holds several models ({names}): give the one that is trained"
        )
    return models[0][1] if models else root


def _is_whole_model(module: nn.Module) -> bool:
    # without importing either library: whoever made such a model has imported it
    names = {f"{c.__module__.partition('.')[0]}.{c.__name__}" for c in type(module).__mro__}
    return bool(names & {"transformers.PreTrainedModel", "peft.PeftModel", "peft.PeftMixedModel"})


def trained_outside(model: nn.Module, own: Container[int]) -> list[str]:
    """Trained parameters of a wrapper that are not of the model in it: a value head.

    `own` are the identities of the model's parameters.
    """
    return [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in own]


def _refuse(kind: str) -> None:
    if kind in REFUSED:
        raise UnsupportedAdapterError(
            f"the model is trained with {kind}: {REFUSED[kind]}, so it has no task vector"
        )


def has_peft(model: nn.Module) -> bool:
    """Whether PEFT has wrapped any module."""
    # Without importing PEFT: a model that was adapted has imported it.
    return any(type(m).__module__.startswith("peft.") for m in model.modules())


def check_readable(named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse parameters, given by name, whose values no process can put together.

    Raises:
        UnmeasurableModelError: naming the first one.
    """
    for name, parameter in named:
        why = ""
        if name.endswith("_flat_param"):
            why = "is flattened by FSDP1; use FSDP2 (`fsdp_version: 2`), or measure"
        elif parameter.is_meta and parameter.requires_grad:
            why = "is on the meta device (offloaded), so its values are not here: measure"
        if why:
            raise UnmeasurableModelError(
                f"{shown(unwrapped(name))} {why} the saved checkpoints with `wvmonitor scan`"
            )


def low_precision_note(parameters: Iterable[Tensor]) -> list[str]:
    """What to say where trained parameters are too coarse to hold small steps; nothing else."""
    low = [
        p.dtype
        for p in parameters
        if p.requires_grad and p.dtype in _LOW_PRECISION and not has_master(p)
    ]
    if not low:
        return []
    return [
        f"{len(low)} trained parameters are {low[0]} and no float32 masters are seen: steps below "
        "that resolution are lost as they are made"
    ]


def named_base(root: nn.Module) -> str | None:
    """The folder or Hub id that a model says it was loaded from."""
    name = getattr(root, "name_or_path", None)
    return name if isinstance(name, str) and name else None


def digest_of_model(model: nn.Module) -> str:
    """The digest of a live model's base: its own parameters, under PEFT those of the base."""
    root, _ = unwrapped_model(model)
    check_readable(root.named_parameters())
    return digest_since(root, {})


def digest_since(root: nn.Module, initial: Mapping[str, Tensor]) -> str:
    """The digest of a live base, trained parameters replaced by their start.

    A collective where parameters are sharded: every process must call it, without `initial`.

    `initial` is θ_0 of parameters that have changed, by name.

    Raises:
        UnmeasurableModelError: the base is quantised, or has no transformer blocks.
    """
    tensors: dict[str, tuple[tuple[int, ...], Callable[[], Iterable[Tensor]]]] = {}
    named = list(root.named_parameters())
    for name, parameter in base_parameters(root, named, root.named_modules()).items():
        tensor = initial.get(name, parameter)
        if tensor.is_meta:
            raise UnmeasurableModelError(
                f"{shown(name)} is on the meta device (offloaded): give the folder of the base"
            )
        if not tensor.dtype.is_floating_point:
            raise UnmeasurableModelError(
                f"{shown(name)} is {tensor.dtype} (a quantised base): give the folder of the "
                "unquantised base"
            )
        shape = tuple(full_shape(tensor))
        tensors[name] = (shape, lambda held=tensor: [whole(held)])  # type: ignore[misc]
    return identity.digest_of(tensors, "the live model", singly=any_sharded(p for _, p in named))


def base_parameters(
    root: nn.Module,
    named: Iterable[tuple[str, Tensor]],
    modules: Iterable[tuple[str, nn.Module]],
) -> dict[str, Tensor]:
    """The base's own parameters by its own names, adapters' left out, tied ones once."""
    adapters: set[int] = set()
    if has_peft(root):
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        tuners = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        wrappers = {path for path, module in modules if isinstance(module, tuners)}
        for name, parameter in root.named_parameters(remove_duplicate=False):
            if any(not belongs_to_base(rest) for rest in _inside(wrappers, name)):
                adapters.add(id(parameter))
    return {base_name(n): p for n, p in named if id(p) not in adapters}


def _inside(wrappers: Container[str], name: str) -> Iterator[str]:
    """What each wrapper around a parameter calls it."""
    parts = name.split(".")
    for depth in range(len(parts)):
        if ".".join(parts[:depth]) in wrappers:
            yield ".".join(parts[depth:])


def belongs_to_base(name: str) -> bool:
    """Whether a wrapper's parameter is the wrapped module's own."""
    parts = name.split(".")
    return parts[0] in ("base_layer", "original_module") or parts[:2] == [
        "token_adapter",
        "base_layer",
    ]


def base_name(name: str) -> str:
    """What the base itself calls a parameter that wrappers hold."""
    plain = name.replace(".original_module.", ".").replace(".token_adapter.", ".")
    return parameter_name(plain)
