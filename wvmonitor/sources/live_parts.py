"""The parts of a live PEFT model's task vector: what each adapted module does to its weight.

Factors are read where they are, when they are asked for; only what PEFT must merge is copied, one
module at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from wvmonitor.errors import KeyMismatchError, UnsupportedAdapterError
from wvmonitor.files.storage import shown
from wvmonitor.sources.adapters.lora_module import ComputedStart, Layout, LoraModule, bias_delta
from wvmonitor.sources.adapters.merged import merged_weights
from wvmonitor.sources.adapters.saved_modules import difference, rows_update
from wvmonitor.sources.live_adapter import (
    Adapted,
    adapter_tensors,
    has_adapter,
    state_key,
    without_adapter,
)
from wvmonitor.sources.names import is_transposed, parameter_name
from wvmonitor.vectors import DenseUpdate, Update
from wvmonitor.vectors import update as updates
from wvmonitor.vectors.task_vector import Part

# PEFT's variants of LoRA whose merged weight is still W + s·BA: they differ in training only.
_PLAIN_VARIANTS = frozenset({"VeloraLinearVariant", "MiCALinearVariant", "MiCAEmbeddingVariant"})
_DORA_VARIANTS = frozenset({"DoraLinearVariant", "DoraEmbeddingVariant"})
_ROUTED_VARIANTS = frozenset({"ALoraLinearVariant", "ArrowLinearVariant"})
_WEIGHTS = ("lora_A.weight", "lora_B.weight")

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Starts:
    """Adapters that PEFT started from the base's own weights, where no start was recorded.

    Attributes:
        of: how, by adapter.
        weight: gives the base's weight of a parameter.
    """

    of: Mapping[str, ComputedStart]
    weight: Callable[[str], Tensor]


def _no_weight(name: str) -> Tensor:
    raise KeyMismatchError(f"no base is at hand for {shown(name)}: give base")


NO_STARTS = Starts({}, _no_weight)


def parts_of(
    adapted: Adapted, initial: State, owners: Mapping[int, str], starts: Starts
) -> list[Part]:
    """What a wrapped module changes.

    Args:
        adapted: the module.
        initial: the recorded start, by `state_key`; modules without an entry start at their base,
            or as `starts` says.
        owners: the base's parameters by `id`, tied ones under their first name.
        starts: adapters whose start PEFT computed from the base.

    Raises:
        UnsupportedAdapterError: this kind has no task vector.
    """
    from peft.tuners.adalora import AdaLoraLayer
    from peft.tuners.lora.layer import LoraLayer, MultiheadAttention, ParamWrapper, _ConvNd
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    module = adapted.module
    if isinstance(module, ModulesToSaveWrapper):
        return _saved_parts(adapted)
    if isinstance(module, TrainableTokensWrapper):
        return _token_parts(adapted)
    if not isinstance(module, LoraLayer) or isinstance(module, AdaLoraLayer):
        present = tuple(a for a in adapted.adapters if has_adapter(module, a))
        return _merged_parts(adapted, present, initial, owners) if present else []
    present = tuple(
        a for a in adapted.adapters if a in module.lora_A or a in module.lora_embedding_A
    )
    if not present:
        return []
    variants = {type(module.lora_variant[a]).__name__ for a in present if a in module.lora_variant}
    if variants & _ROUTED_VARIANTS:
        raise UnsupportedAdapterError(
            f"{shown(adapted.path)} uses {', '.join(sorted(variants))}, whose change depends on "
            "the input, so it has no task vector"
        )
    if isinstance(module, ParamWrapper):
        return [_parameter_part(adapted, present, initial, starts)]
    plain = not variants - _PLAIN_VARIANTS
    dora = len(present) == 1 and variants <= _DORA_VARIANTS
    # a quantised layer's factors are as simple as a Linear's
    simple = not isinstance(module, _ConvNd | MultiheadAttention)
    if not simple or not (plain or dora):
        return _merged_parts(adapted, present, initial, owners)
    return _lora_parts(adapted, present, initial, owners, starts)


def factors_alone(adapted: Adapted) -> bool:
    """Whether the change is read from the adapters' factors, whatever the base's weights are."""
    from peft.tuners.adalora import AdaLoraLayer
    from peft.tuners.lora.layer import LoraLayer, MultiheadAttention, _ConvNd

    module = adapted.module
    if not isinstance(module, LoraLayer) or isinstance(
        module, AdaLoraLayer | _ConvNd | MultiheadAttention
    ):
        return False
    return all(_plain(module, a) for a in adapted.adapters if a in module.lora_variant)


# LoRA


def _lora_parts(
    adapted: Adapted,
    present: Sequence[str],
    initial: State,
    owners: Mapping[int, str],
    starts: Starts,
) -> list[Part]:
    from peft.tuners.lora.layer import Embedding

    module = adapted.module
    name = owners.get(
        id(getattr(module.get_base_layer(), "weight", None)),
        parameter_name(f"{adapted.path}.weight"),
    )
    embedding = isinstance(module, Embedding)
    conv1d = bool(getattr(module, "fan_in_fan_out", False)) and not embedding
    outputs_last = embedding or conv1d
    shape = _logical_shape(module, by_column=outputs_last)
    layout = Layout(shape, outputs_last, is_transposed(name, shape, conv1d=conv1d))
    # PEFT has these starts for linear layers only: an embedding's adapter starts at zero
    computed = NO_STARTS if embedding else starts
    parts = [_factors_part(adapted, present, initial, computed, name, layout)]
    biased = [a for a in present if not embedding and module.lora_B[a].bias is not None]
    if biased:
        parts.append(_bias_part(adapted, biased, initial))
    return parts


def _parameter_part(
    adapted: Adapted, present: Sequence[str], initial: State, starts: Starts
) -> Part:
    module = adapted.module
    shape = tuple(module.get_param().shape)
    outputs_last = len(shape) == 3 and not module._did_swap_in_out_features
    name = parameter_name(adapted.path)
    layout = Layout(shape, outputs_last, is_transposed(name, shape, conv1d=False))
    return _factors_part(adapted, present, initial, starts, name, layout)


def _factors_part(
    adapted: Adapted,
    present: Sequence[str],
    initial: State,
    starts: Starts,
    name: str,
    layout: Layout,
) -> Part:
    module = adapted.module
    recorded = {a for a in present if _recorded(adapted, a, initial)}

    def made(adapter: str, *, start: bool) -> LoraModule:
        a, b = _factors_of(adapted, adapter, initial if start else None)
        magnitude = None
        if adapter in module.lora_variant and not _plain(module, adapter):
            magnitude = module.lora_magnitude_vector[adapter].weight
            if start:
                magnitude = _at_start(adapted, adapter, "lora_magnitude_vector.weight", initial)
        return LoraModule(name, a, b, module.scaling[adapter], layout, magnitude)

    def produce() -> Update:
        changes = []
        for adapter in present:
            start: LoraModule | ComputedStart | None = starts.of.get(adapter)
            base: Callable[[], Tensor] = partial(starts.weight, name)
            if adapter in recorded:
                start = made(adapter, start=True)
            if start is None or isinstance(start, LoraModule):
                base = partial(_plain_weight, module)
            changes.append(replace(made(adapter, start=False), start=start).delta(base))
        return reduce(updates.add, changes)

    return Part(name, layout.shape, produce)


def _plain(module: Any, adapter: str) -> bool:
    return type(module.lora_variant[adapter]).__name__ in _PLAIN_VARIANTS


def _factors_of(adapted: Adapted, adapter: str, initial: State | None) -> tuple[Tensor, Tensor]:
    module = adapted.module
    embedding = adapter in module.lora_embedding_A
    if initial is not None:
        roles = ("lora_embedding_A", "lora_embedding_B") if embedding else _WEIGHTS
        a, b = (_at_start(adapted, adapter, role, initial) for role in roles)
        return a, b
    if embedding:
        return module.lora_embedding_A[adapter].detach(), module.lora_embedding_B[adapter].detach()
    return module.lora_A[adapter].weight.detach(), module.lora_B[adapter].weight.detach()


def _recorded(adapted: Adapted, adapter: str, initial: State) -> bool:
    keys = (state_key(adapted.path, adapter, r) for r in (*_WEIGHTS, "lora_embedding_A"))
    return any(key in initial for key in keys)


def _at_start(adapted: Adapted, adapter: str, rest: str, initial: State) -> Tensor:
    key = state_key(adapted.path, adapter, rest)
    if key not in initial:
        raise KeyMismatchError(
            f"the recorded start of the run lacks {shown(key)}: restore the state that was "
            "recorded at step 0 of this run"
        )
    device = next(adapted.module.parameters()).device
    return initial[key].to(device)


def _bias_part(adapted: Adapted, adapters: Sequence[str], initial: State) -> Part:
    module = adapted.module
    outputs = module.lora_B[adapters[0]].bias.numel()

    def produce() -> Update:
        changes: list[Update] = []
        for adapter in adapters:
            recorded = _recorded(adapted, adapter, initial)
            start = _at_start(adapted, adapter, "lora_B.bias", initial) if recorded else None
            bias = module.lora_B[adapter].bias
            changes.append(bias_delta(bias, start, module.scaling[adapter]))
        return reduce(updates.add, changes)

    return Part(parameter_name(f"{adapted.path}.bias"), (outputs,), produce)


def _logical_shape(module: Any, *, by_column: bool) -> tuple[int, int]:
    # from the factors, not from the base layer: its weight may be packed by quantisation
    name = next(iter([*module.lora_embedding_A, *module.lora_A]))
    if name in module.lora_embedding_A:
        inputs = module.lora_embedding_A[name].shape[1]
        outputs = module.lora_embedding_B[name].shape[0]
    else:
        inputs = module.lora_A[name].weight.shape[1]
        outputs = module.lora_B[name].weight.shape[0]
    return (inputs, outputs) if by_column else (outputs, inputs)


def _plain_weight(module: Any) -> Tensor:
    from peft.utils.integrations import dequantize_module_weight

    weight: Tensor = dequantize_module_weight(module.get_base_layer())
    return weight.detach()


# Everything else


def _merged_parts(
    adapted: Adapted, present: Sequence[str], initial: State, owners: Mapping[int, str]
) -> list[Part]:
    module = adapted.module
    layer = module.get_base_layer()

    def part(name: str, parameter: Tensor) -> Part:
        full = owners.get(id(parameter), parameter_name(f"{adapted.path}.{name}"))
        conv1d = type(layer).__name__ == "Conv1D" and parameter.ndim == 2
        transposed = is_transposed(full, parameter.shape, conv1d=conv1d)

        def produce() -> Update:
            now = merged_weights(module, present)[name]
            before = _merged_start(adapted, present, initial, name)
            return DenseUpdate((now - before).to(torch.float32), transposed)

        return Part(full, tuple(parameter.shape), produce)

    return [part(name, parameter) for name, parameter in layer.named_parameters()]


def _merged_start(adapted: Adapted, present: Sequence[str], initial: State, name: str) -> Tensor:
    module = adapted.module
    started = [a for a in present if any(k in initial for k in _state_keys(adapted, a))]
    if not started:
        weight: Tensor = module.get_base_layer().get_parameter(name).detach()
        return weight.to(torch.float64)
    replaced = {
        own: _at_start(adapted, adapter, rest, initial)
        for own, _ in adapter_tensors(module)
        for adapter in started
        if (rest := without_adapter(own, adapter)) is not None
    }
    return merged_weights(module, present, replaced)[name]


def _state_keys(adapted: Adapted, adapter: str) -> list[str]:
    rests = [without_adapter(name, adapter) for name, _ in adapter_tensors(adapted.module)]
    return [state_key(adapted.path, adapter, rest) for rest in rests if rest is not None]


def _saved_parts(adapted: Adapted) -> list[Part]:
    module = adapted.module
    present = [a for a in adapted.adapters if a in module.modules_to_save]
    if not present:
        return []
    now, before = module.modules_to_save[present[0]], module.original_module

    def part(name: str, parameter: Tensor) -> Part:
        full = parameter_name(f"{adapted.path}.{name}")
        conv1d = type(before).__name__ == "Conv1D" and parameter.ndim == 2

        def produce() -> Update:
            delta = difference(now.get_parameter(name).detach(), parameter.detach())
            return DenseUpdate(delta, is_transposed(full, parameter.shape, conv1d=conv1d))

        return Part(full, tuple(parameter.shape), produce)

    return [part(name, parameter) for name, parameter in before.named_parameters()]


def _token_parts(adapted: Adapted) -> list[Part]:
    tokens = adapted.module.token_adapter
    present = [a for a in adapted.adapters if a in tokens.trainable_tokens_delta]
    if not present or tokens.tied_adapter:  # the one it is tied to counts, once
        return []
    adapter, weight = present[0], tokens.get_base_layer().weight
    full = parameter_name(f"{adapted.path}.weight")

    def produce() -> Update:
        indices = tokens.token_indices[adapter]
        change = difference(
            tokens.trainable_tokens_delta[adapter].detach(), weight.detach()[indices]
        )
        return rows_update(change, indices, weight.shape, full)

    return [Part(full, tuple(weight.shape), produce)]
