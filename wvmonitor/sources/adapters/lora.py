"""LoRA from its saved factors, read by key.

Shapes as PEFT stores them, with R the rank: `lora_A.weight` (R, in), `lora_B.weight` (out, R);
for embeddings `lora_embedding_A` (R, tokens), `lora_embedding_B` (dim, R), without `.weight`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from torch import Tensor
from torch.nn.functional import pad

from wvmonitor.errors import AdapterError, KeyMismatchError, ShapeMismatchError
from wvmonitor.files.storage import shown
from wvmonitor.reading import component_of
from wvmonitor.sources.adapters import saved_modules
from wvmonitor.sources.adapters.config import LoraSettings, lora_settings
from wvmonitor.sources.adapters.experts import expert_parts, is_listed_expert, is_single_expert
from wvmonitor.sources.adapters.folder import AdapterFolder, InitialState
from wvmonitor.sources.adapters.fused import target_parameters
from wvmonitor.sources.adapters.kinds import RECORD_IT
from wvmonitor.sources.adapters.lora_keys import Keys, Run, check_factors, sorted_keys
from wvmonitor.sources.adapters.lora_module import ComputedStart, Layout, LoraModule, bias_delta
from wvmonitor.sources.adapters.targets import check_chosen
from wvmonitor.sources.folder import compare_shapes
from wvmonitor.sources.names import is_task_head, is_transposed, may_be_conv1d, parameter_name
from wvmonitor.vectors import DenseUpdate, LowRankUpdate, Origin, TaskVector, Update
from wvmonitor.vectors import update as updates
from wvmonitor.vectors.task_vector import Part

# What a language model's embeddings are called; PEFT has factors of their own for them.
_TABLES = frozenset({"embed_tokens", "wte", "wpe", "word_embeddings", "embed_in", "shared"})


def read_lora(folder: AdapterFolder, initial: InitialState | None) -> TaskVector:
    """The task vector of a LoRA or DoRA adapter folder.

    Raises:
        AdapterError: configuration and tensors contradict each other, or the base is needed.
        KeyMismatchError: a key belongs to nothing.
        ShapeMismatchError: a factor does not fit the base.
    """
    settings = lora_settings(folder.config, folder.config_where)
    modules, rest = sorted_keys(folder)
    _check_complete(folder, settings, modules)
    _check_start(folder, settings, initial=initial is not None)
    parameters = target_parameters(folder, settings, modules) if settings.parameters else {}
    loose = sorted(p for p in modules if ".base_layer" in p and p not in parameters)
    if loose:
        raise AdapterError(
            f"{folder.where} has factors at {shown(loose[0])} that belong to no parameter of its "
            "target_parameters: re-save the adapter"
        )
    run = Run(folder, settings, initial, _mixed(modules))
    _check_chosen(run, modules, parameters)
    parts = expert_parts(run, modules) if any(".experts." in path for path in modules) else []
    fused = {path for path in modules if is_single_expert(path)} if parts else set()
    embeddings = [module for module in modules.values() if module.embedding]
    for path, module in modules.items():
        if path in fused:
            continue
        if path in parameters or not _is_tied_copy(folder, settings, module, embeddings):
            parts += _parts(run, module, *(parameters.get(path) or _weight(run, module)))
    if settings.moves_base:
        # W − s·B₀A₀, as it was made: the factors' own start takes it into account
        linear = {f"{m.path}.base_layer.weight" for m in modules.values() if not m.embedding}
        rest = [key for key in rest if key not in linear or (initial and key in initial)]
    parts += saved_modules.whole_parts(folder, rest, initial)
    ranks = [folder.shape(m.of["A"])[0] for p, m in modules.items() if p not in parameters]
    origin = Origin(
        source=folder.where,
        base_digest=folder.base_digest,
        base_name=folder.base_name,
        method="dora" if settings.dora else "lora",
        rank=max(ranks, default=settings.rank),
        step=folder.step,
        warnings=tuple(folder.warnings),
        unmeasurable=folder.unmeasurable,
    )
    return TaskVector.of_parts(parts, origin)


def _check_complete(
    folder: AdapterFolder, settings: LoraSettings, modules: Mapping[str, Keys]
) -> None:
    for module in modules.values():
        for role in ("A", "B", *(("magnitude",) if settings.dora else ())):
            if role not in module.of:
                raise AdapterError(
                    f"{shown(module.path)} of {folder.where} has "
                    f"{', '.join(sorted(module.of))} but no {role}: the save is incomplete; "
                    "re-save the adapter"
                )
        if "magnitude" in module.of and not settings.dora:
            raise AdapterError(
                f"{shown(module.path)} of {folder.where} has a DoRA magnitude, but use_dora is "
                "false: re-save the adapter with its configuration"
            )
        if "bias" in module.of and not folder.config.get("lora_bias"):
            raise AdapterError(
                f"{shown(module.path)} of {folder.where} has a bias of B, but lora_bias is false, "
                "so that PEFT would not load it: re-save the adapter with its configuration"
            )
        table = module.path.rpartition(".")[2] in _TABLES
        in_block = component_of(f"{module.path}.weight", (1, 1)) == "blocks"
        if (in_block and module.embedding) or (table and not module.embedding):
            holds, is_ = ("a linear layer", "an embedding") if table else ("an embedding", "none")
            raise AdapterError(
                f"{folder.where} holds factors of {holds} for {shown(module.path)}, which is "
                f"{is_}: PEFT would not load them; re-save the adapter with PEFT"
            )


def _check_chosen(run: Run, modules: Mapping[str, Keys], parameters: Container[str]) -> None:
    """See that PEFT would load every factor; a tied head's follow the embedding's."""
    folder, tied = run.folder, run.settings.tied
    loose = (path for path in modules if path not in parameters and not is_listed_expert(path))
    paths = [path for path in loose if not (tied and is_task_head(f"{path}."))]
    check_chosen(folder.config, paths, folder.where, folder.config_where)


def _check_start(folder: AdapterFolder, settings: LoraSettings, *, initial: bool) -> None:
    """Refuse an adapter whose start is neither zero, nor given, nor what the base alone tells.

    Raises:
        AdapterError: saying what is missing.
    """
    if settings.dora:
        folder.needed_base("DoRA's update depends on the weights it started from")
    if settings.start == "base" or initial:
        return
    if settings.start == "unknown":
        raise AdapterError(
            f"the adapter of {settings.where} did not start at zero (init_lora_weights), so its "
            f"factors alone are no update: {RECORD_IT}"
        )
    if settings.dora:
        raise AdapterError(
            f"{settings.where} combines DoRA with a start that is not zero: {RECORD_IT}"
        )
    if settings.parameters:
        raise AdapterError(
            f"{settings.where} starts target_parameters elsewhere than at zero: {RECORD_IT}"
        )
    if folder.base is None:
        raise AdapterError(
            f"the adapter of {settings.where} started as {settings.start} of its base's weights: "
            f"give the base, or {RECORD_IT}"
        )


def _weight(run: Run, module: Keys) -> tuple[str, Layout]:
    """The weight that a module's factors change, and how it is stored.

    Raises:
        KeyMismatchError, ShapeMismatchError: the base does not have it, or in another shape.
    """
    folder, name = run.folder, parameter_name(f"{module.path}.weight")
    inputs, outputs = folder.shape(module.of["A"])[-1], folder.shape(module.of["B"])[0]
    conv1d = not module.embedding and _is_conv1d(run, name, (inputs, outputs))
    outputs_last = module.embedding or conv1d
    shape = (inputs, outputs) if outputs_last else (outputs, inputs)
    if folder.base is not None:
        stored = folder.base.stored(name)
        if stored is None:
            raise KeyMismatchError(
                f"{folder.where} changes {shown(name)}, which the base {folder.base.where} does "
                "not have: check that this is the model that the adapter was trained on"
            )
        resized = compare_shapes(stored, folder.base.shape(stored), shape, folder.where)
        if resized and (run.settings.dora or run.settings.start != "base"):
            raise ShapeMismatchError(f"{resized[0]}; only plain LoRA can be: give its own base")
        folder.warnings += resized
        name = stored  # an adapted head that is tied changes the embedding it is
    return name, Layout(shape, outputs_last, is_transposed(name, shape, conv1d=conv1d))


def _parts(run: Run, module: Keys, name: str, layout: Layout) -> list[Part]:
    """What a module's factors change, and its bias."""
    folder, settings, initial = run.folder, run.settings, run.initial
    # PEFT looks patterns up by the module, of a target parameter by the parameter
    pattern_name = name if name == module.path or len(layout.shape) == 3 else module.path
    check_factors(run, module, settings.rank_of(pattern_name), layout)
    scale = settings.scale_of(pattern_name)
    computed = settings.start in ("pissa", "olora")
    # PEFT has these starts for linear layers only: an embedding's adapter starts at zero
    at_base = settings.start == "base" or (computed and module.embedding)
    started = _keys_at_start(run, module, name, at_base=at_base)

    def made(source: AdapterFolder | InitialState, keys: Mapping[str, str]) -> LoraModule:
        magnitude = source.read(keys["magnitude"]) if settings.dora else None
        a, b = source.factor(keys["A"]), source.factor(keys["B"])
        return LoraModule(name, a, b, scale, layout, magnitude)

    def produce() -> Update:
        now = made(folder, module.of)
        start: LoraModule | ComputedStart | None = None
        if initial is not None and started is not None:
            start = made(initial, started)
        elif not at_base:
            start = "pissa" if settings.start == "pissa" else "olora"

        def base() -> Tensor:
            weight = folder.needed_base("its change depends on the base's weights").read(name)
            if settings.moves_base and isinstance(start, LoraModule):
                weight = weight.double() - updates.to_dense(start.product(wide=True))
            return weight

        return (now if start is None else replace(now, start=start)).delta(base)

    stored = None if folder.base is None else folder.base.stored(name)
    in_base = layout.shape if folder.base is None or stored is None else folder.base.shape(stored)
    if in_base == layout.shape:
        parts = [Part(name, layout.shape, produce)]
    else:  # a resized vocabulary
        parts = [Part(name, in_base, lambda: _on_rows(produce(), in_base[0]))]
    if "bias" in module.of:
        parts.append(_bias_part(run, module, scale, layout))
    return parts


def _on_rows(update: Update, rows: int) -> Update:
    """A change on the first `rows` rows of a parameter; those it has not are unchanged."""
    common = updates.rows(update, 0, rows)
    if not isinstance(common, LowRankUpdate) or common.shape[0] == rows:
        return common
    return replace(common, left=pad(common.left, (0, 0, 0, rows - common.shape[0])))


def _keys_at_start(run: Run, module: Keys, name: str, *, at_base: bool) -> Mapping[str, str] | None:
    """The keys under which the initial state holds a module's start; None where it is the base."""
    if run.initial is None:
        return None
    # a start recorded live names a target parameter where PEFT's keys count wrappers
    live = {role: f"{name}.lora_{role}.weight" for role in "AB"}
    if live["A"] in run.initial:
        return live
    return module.of if module.of["A"] in run.initial or not at_base else None


def _bias_part(run: Run, module: Keys, scale: float, layout: Layout) -> Part:
    folder, initial, key = run.folder, run.initial, module.of["bias"]
    outputs = layout.shape[-1 if layout.outputs_last else -2]
    if folder.shape(key) != (outputs,):
        raise AdapterError(
            f"{shown(key)} of {folder.where} has shape {folder.shape(key)} for {outputs} outputs: "
            "re-save the adapter"
        )

    def produce() -> DenseUpdate:
        start = initial.read(key) if initial is not None and key in initial else None
        return bias_delta(folder.read(key), start, scale)

    return Part(parameter_name(f"{module.path}.bias"), (outputs,), produce)


def _is_conv1d(run: Run, name: str, sizes: tuple[int, int]) -> bool:
    folder, settings = run.folder, run.settings
    base = folder.base
    if base is not None:
        stored = base.stored(name)
        if stored is not None and sizes[0] != sizes[1]:
            return base.shape(stored) == sizes
        standard = "model_type" in base.config and "auto_map" not in base.config
        return base.is_conv1d(name) if standard else settings.fan_in_fan_out
    if settings.fan_in_fan_out or not may_be_conv1d(name):
        return settings.fan_in_fan_out and (may_be_conv1d(name) or not run.mixed)
    if run.mixed:
        # PEFT keeps one flag for all modules and saves what the last one set it to
        folder.needed_base(
            f"fan_in_fan_out does not say how {shown(name)} is stored where Conv1D and Linear "
            "modules are adapted together"
        )
    return False


def _mixed(modules: Mapping[str, Keys]) -> bool:
    """Whether names alone allow Conv1D for some adapted modules and not for others."""
    linear = [may_be_conv1d(f"{m.path}.weight") for m in modules.values() if not m.embedding]
    return any(linear) and not all(linear)


def _is_tied_copy(
    folder: AdapterFolder, settings: LoraSettings, module: Keys, embeddings: Sequence[Keys]
) -> bool:
    """Whether this is the head's half of an adapter on tied weights, which count once."""
    if not settings.tied or module.embedding:
        return False
    return any(
        folder.shape(module.of["A"]) == folder.shape(m.of["B"])[::-1]
        and folder.shape(module.of["B"]) == folder.shape(m.of["A"])[::-1]
        and folder.read(module.of["A"]).equal(folder.read(m.of["B"]).mT)
        and folder.read(module.of["B"]).equal(folder.read(m.of["A"]).mT)
        for m in embeddings
    )
