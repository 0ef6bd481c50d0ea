"""LoRA from its saved factors, read by key: nothing of the configuration is evaluated.

Shapes as PEFT stores them, with R the rank: `lora_A.weight` (R, in), `lora_B.weight` (out, R);
for embeddings `lora_embedding_A` (R, tokens), `lora_embedding_B` (dim, R), without `.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wvmonitor.errors import AdapterError, KeyMismatchError, ShapeMismatchError
from wvmonitor.files.storage import shown
from wvmonitor.sources.adapters import initialised, saved_modules
from wvmonitor.sources.adapters.config import (
    MERGED_VARIANTS,
    LoraSettings,
    lora_settings,
)
from wvmonitor.sources.adapters.dora import dora_delta
from wvmonitor.sources.adapters.folder import AdapterFolder, InitialState
from wvmonitor.sources.adapters.parts import Part, assembled
from wvmonitor.sources.checkpoint import stored
from wvmonitor.sources.names import is_transposed, may_be_conv1d, unwrapped
from wvmonitor.vectors import DenseUpdate, LowRankUpdate, Origin, TaskVector, Update
from wvmonitor.vectors import update as updates

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
class _Module:
    """The keys of one adapted module, by role.

    Attributes:
        path: the module, with `base_layer` where PEFT nests wrappers.
        keys: role -> key without PEFT's prefix.
        embedding: whether the factors are an embedding's.
    """

    path: str
    embedding: bool
    keys: dict[str, str] = field(default_factory=dict)


def read_lora(folder: AdapterFolder, initial: InitialState | None) -> TaskVector:
    """The task vector of a LoRA or DoRA adapter folder.

    Raises:
        AdapterError: configuration and tensors contradict each other, or the base is needed.
        KeyMismatchError: a key belongs to nothing.
        ShapeMismatchError: a factor does not fit the base.
    """
    if any(folder.config.get(variant) for variant in MERGED_VARIANTS):
        from wvmonitor.sources.adapters.merged import read_merged

        return read_merged(folder, initial)
    settings = lora_settings(folder.config, folder.config_where)
    modules, rest = _sorted_keys(folder)
    _check_complete(folder, settings, modules)
    initialised.check_start(settings, folder.base, initial=initial is not None)
    parts: list[Part] = []
    fused = _fused_layout(folder, settings, modules, initial)
    embeddings = [module for module in modules.values() if module.embedding]
    mixed = _mixed(modules)
    for module in modules.values():
        if module.path in fused:
            parts.append(fused[module.path])
        elif not _is_tied_copy(folder, settings, module, embeddings):
            parts += _module_parts(folder, settings, module, initial, mixed=mixed)
    if settings.moves_base:
        # W − s·B₀A₀, as it was made: the factors' own start takes it into account
        linear = {f"{m.path}.base_layer.weight" for m in modules.values() if not m.embedding}
        rest = [key for key in rest if key not in linear or (initial and key in initial)]
    parts += saved_modules.whole_parts(folder, rest, initial)
    ranks = [folder.shape(m.keys["A"])[0] for m in modules.values() if m.path not in fused]
    origin = Origin(
        source=folder.where,
        base_digest=folder.base_digest,
        base_name=folder.base_name,
        method="dora" if settings.dora else "lora",
        rank=max(ranks, default=settings.rank),
        step=folder.step,
        warnings=tuple(folder.warnings),
    )
    return assembled(parts, origin)


def factors(
    a: Tensor, b: Tensor, scale: float, *, transposed: bool, mark: bool | None = None
) -> LowRankUpdate:
    """scale·B·A as an update of a weight (out, in), or of one stored (in, out) if `transposed`.

    The scale goes into the smaller factor, in float32 (float64 where a factor is).

    Args:
        a: (..., rank, in).
        b: (..., out, rank).
        scale: alpha/r, or as PEFT resolves it.
        transposed: whether the weight is stored (in, out).
        mark: what to mark the update as, where that differs (fused experts: never).
    """
    dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    a, b = a.detach().to(dtype), b.detach().to(dtype)
    if scale != 1:
        a, b = (a * scale, b) if a.numel() < b.numel() else (a, b * scale)
    left, right = (a.mT, b.mT) if transposed else (b, a)
    return LowRankUpdate(left, right, transposed if mark is None else mark)


def _sorted_keys(folder: AdapterFolder) -> tuple[dict[str, _Module], list[str]]:
    modules: dict[str, _Module] = {}
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
        module = modules.setdefault(path, _Module(path, "_embedding_" in ending))
        if _ROLES[ending] in module.keys:
            raise AdapterError(
                f"{folder.where} holds {shown(key)} and {shown(module.keys[_ROLES[ending]])}, "
                "which are one thing: re-save the adapter"
            )
        module.keys[_ROLES[ending]] = key
        module.embedding |= "_embedding_" in ending
    return modules, rest


def _check_complete(
    folder: AdapterFolder, settings: LoraSettings, modules: Mapping[str, _Module]
) -> None:
    for module in modules.values():
        for role in ("A", "B", *(("magnitude",) if settings.dora else ())):
            if role not in module.keys:
                raise AdapterError(
                    f"{shown(module.path)} of {folder.where} has "
                    f"{', '.join(sorted(module.keys))} but no {role}: the save is incomplete; "
                    "re-save the adapter"
                )
        if "magnitude" in module.keys and not settings.dora:
            raise AdapterError(
                f"{shown(module.path)} of {folder.where} has a DoRA magnitude, but use_dora is "
                "false: re-save the adapter with its configuration"
            )


def _module_parts(
    folder: AdapterFolder,
    settings: LoraSettings,
    module: _Module,
    initial: InitialState | None,
    *,
    mixed: bool,
) -> list[Part]:
    a, b = module.keys["A"], module.keys["B"]
    a_shape, b_shape = folder.shape(a), folder.shape(b)
    rank = settings.rank_of(module.path)
    if len(a_shape) != 2 or len(b_shape) != 2 or a_shape[0] != rank or b_shape[1] != rank:
        raise AdapterError(
            f"{shown(a)} {a_shape} and {shown(b)} {b_shape} of {folder.where} are no factors of "
            f"rank {rank}, which {settings.where} says: re-save the adapter"
        )
    inputs, outputs = a_shape[1], b_shape[0]
    name = unwrapped(f"{module.path}.weight")
    if module.embedding:
        shape, conv1d = (inputs, outputs), False
    else:
        conv1d = _is_conv1d(folder, settings, name, (inputs, outputs), mixed=mixed)
        shape = (inputs, outputs) if conv1d else (outputs, inputs)
    _check_fits(folder, name, shape)
    scale = settings.scale_of(module.path)
    by_column = module.embedding or conv1d
    if folder.base is not None:
        # an adapted head that is tied changes the embedding it is
        name = stored(folder.base, name) or name
    mark = is_transposed(name, shape, conv1d=conv1d)
    # PEFT has these starts for linear layers only: an embedding's adapter starts at zero
    computed = settings.start in ("pissa", "olora")
    start = "base" if computed and module.embedding else settings.start

    # DoRA since a start of its own is what two large changes leave: float32 keeps too few digits
    wide = settings.dora and initial is not None and start != "base"

    def plain(source: AdapterFolder | InitialState) -> LowRankUpdate:
        one, two = source.read(a), source.read(b)
        if wide:
            one, two = one.to(torch.float64), two.to(torch.float64)
        made = factors(one, two, scale, transposed=by_column, mark=mark)
        if made.shape != torch.Size(shape):
            raise ShapeMismatchError(
                f"the factors of {shown(module.path)} in {source.where} make {tuple(made.shape)}, "
                f"not {shape}: give the state that this adapter had at step 0"
            )
        return made

    def whole(source: AdapterFolder | InitialState) -> Update:
        low_rank = plain(source)
        if not settings.dora:
            return low_rank
        base = folder.needed_base("DoRA's update depends on the weights it started from")
        magnitude = source.read(module.keys["magnitude"])
        if magnitude.numel() != outputs:
            raise AdapterError(
                f"{shown(module.keys['magnitude'])} of {source.where} has {magnitude.numel()} "
                f"magnitudes for {outputs} outputs: re-save the adapter"
            )
        weight = base.read(stored(base, name) or name)
        if wide and initial is not None:
            weight = weight.to(torch.float64)
            if settings.moves_base:
                weight = weight - updates.to_dense(plain(initial))
        delta = dora_delta(
            weight, low_rank.left, low_rank.right, magnitude.reshape(-1), by_column=by_column
        )
        return DenseUpdate(delta, mark)

    def produce() -> Update:
        now = whole(folder)
        if initial is not None and (a in initial or start != "base"):
            return initialised.minus(now, whole(initial))
        if start != "base":
            weight = _base_weight(folder, name)
            at_start = initialised.start_product(start, weight, rank, scale, transposed=conv1d)
            return initialised.minus(now, at_start)
        return now

    if settings.dora:
        folder.needed_base("DoRA's update depends on the weights it started from")
        if start != "base" and initial is None:
            raise AdapterError(
                f"{settings.where} combines DoRA with a start that is not zero: "
                f"{initialised.RECORD_IT}"
            )
    parts = [Part(name, shape, produce)]
    if "bias" in module.keys:
        parts.append(_bias_part(folder, module, scale, outputs, initial))
    return parts


def _bias_part(
    folder: AdapterFolder,
    module: _Module,
    scale: float,
    outputs: int,
    initial: InitialState | None,
) -> Part:
    """What `lora_bias=True` adds: the bias of B, scaled, on top of the layer's own."""
    key = module.keys["bias"]
    if folder.shape(key) != (outputs,):
        raise AdapterError(
            f"{shown(key)} of {folder.where} has shape {folder.shape(key)} for {outputs} outputs: "
            "re-save the adapter"
        )

    def produce() -> Update:
        delta = folder.read(key).to(torch.float32) * scale
        if initial is not None and key in initial:
            delta = delta - initial.read(key).to(torch.float32) * scale
        return DenseUpdate(delta)

    return Part(unwrapped(f"{module.path}.bias"), (outputs,), produce)


def _is_conv1d(
    folder: AdapterFolder,
    settings: LoraSettings,
    name: str,
    sizes: tuple[int, int],
    *,
    mixed: bool,
) -> bool:
    base = folder.base
    if base is not None:
        held = stored(base, name)
        if held is not None and sizes[0] != sizes[1]:
            return base.shape(held) == sizes
        standard = "model_type" in base.config and "auto_map" not in base.config
        return base.is_conv1d(name) if standard else settings.fan_in_fan_out
    if settings.fan_in_fan_out or not may_be_conv1d(name):
        return settings.fan_in_fan_out and (may_be_conv1d(name) or not mixed)
    if mixed:
        # PEFT keeps one flag for all modules and saves what the last one set it to
        folder.needed_base(
            f"fan_in_fan_out does not say how {shown(name)} is stored where Conv1D and Linear "
            "modules are adapted together"
        )
    return False


def _mixed(modules: Mapping[str, _Module]) -> bool:
    """Whether names alone allow Conv1D for some adapted modules and not for others."""
    linear = [may_be_conv1d(f"{m.path}.weight") for m in modules.values() if not m.embedding]
    return any(linear) and not all(linear)


def _check_fits(folder: AdapterFolder, name: str, shape: tuple[int, int]) -> None:
    if folder.base is None:
        return
    held = stored(folder.base, name)
    if held is None:
        raise KeyMismatchError(
            f"{folder.where} changes {shown(name)}, which the base {folder.base.where} does not "
            "have: give the base that the adapter was trained on"
        )
    expected = folder.base.shape(held)
    if expected != shape:
        raise ShapeMismatchError(
            f"{folder.where} changes {shown(name)} as {shape}, the base {folder.base.where} has "
            f"{expected}: give the base that the adapter was trained on"
        )


def _base_weight(folder: AdapterFolder, name: str) -> Tensor:
    base = folder.needed_base("its start was computed from the base's weights")
    return base.read(stored(base, name) or name)


def _is_tied_copy(
    folder: AdapterFolder,
    settings: LoraSettings,
    module: _Module,
    embeddings: list[_Module],
) -> bool:
    """Whether this is the head's half of an adapter on tied weights, which count once."""
    if not settings.tied or module.embedding:
        return False
    return any(
        folder.shape(module.keys["A"]) == folder.shape(m.keys["B"])[::-1]
        and folder.shape(module.keys["B"]) == folder.shape(m.keys["A"])[::-1]
        and folder.read(module.keys["A"]).equal(folder.read(m.keys["B"]).mT)
        and folder.read(module.keys["B"]).equal(folder.read(m.keys["A"]).mT)
        for m in embeddings
    )


def _fused_layout(
    folder: AdapterFolder,
    settings: LoraSettings,
    modules: Mapping[str, _Module],
    initial: InitialState | None,
) -> dict[str, Part]:
    if not settings.parameters:
        return {}
    from wvmonitor.sources.adapters.fused import fused_parts

    return fused_parts(folder, settings, {m.path: m.keys for m in modules.values()}, initial)
