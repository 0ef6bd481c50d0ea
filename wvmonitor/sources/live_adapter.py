"""The modules of a live model that PEFT wrapped, and the state of their adapters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from wvmonitor.errors import UnmeasurableModelError
from wvmonitor.files.storage import shown
from wvmonitor.sources.distributed import memory_of
from wvmonitor.sources.names import unwrapped

_PREFIX = "base_model.model."
# Where PEFT lets the adapter of tied weights share memory.
_SHARED = (
    ("lora_embedding_A", None),
    ("lora_B", "weight"),
    ("modules_to_save", "weight"),
    ("trainable_tokens_delta", None),
)


@dataclass(frozen=True)
class Adapted:
    """One wrapped module of a live model.

    Attributes:
        path: the wrapped module in the base model (for a fused parameter, the parameter).
        adapters: its active adapters.
    """

    path: str
    module: Any
    adapters: tuple[str, ...]


def adapted_modules(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[Adapted]:
    """Every module that PEFT wrapped, the nested wrappers of fused parameters included.

    Raises:
        UnmeasurableModelError: an adapter is merged into its base layer right now, or a kind of
            wrapper is nested in another in a way that is not understood.
    """
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper

    outer: list[tuple[str, nn.Module]] = []
    for path, module in modules:
        while outer and not path.startswith(f"{outer[-1][0]}."):
            outer.pop()
        if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            continue
        if outer:
            holder = outer[-1][1]
            if isinstance(holder, TrainableTokensWrapper) and module is holder.token_adapter:
                continue
            if not (isinstance(holder, ParamWrapper) and isinstance(module, ParamWrapper)):
                raise UnmeasurableModelError(
                    f"{shown(path)} is a {type(module).__name__} inside a "
                    f"{type(holder).__name__}, which is not understood: adapt or save the module, "
                    "not both"
                )
        if getattr(module, "merged_adapters", None):
            raise merged_error(path)
        outer.append((path, module))
        name = unwrapped(path)
        if isinstance(module, ParamWrapper):
            # one wrapper a parameter, nested: without the parameter they would share a path
            name = f"{name}.{module.parameter_name}"
        yield Adapted(name, module, tuple(module.active_adapters))


def merged_error(path: str) -> UnmeasurableModelError:
    """What to raise when an adapter is merged into its base layer."""
    return UnmeasurableModelError(
        f"an adapter is merged into {shown(path)} right now: call unmerge_adapter() first"
    )


def state_key(path: str, adapter: str, rest: str) -> str:
    """The key of an adapter's tensor in a recorded start: PEFT's own for the default adapter."""
    name = "" if adapter == "default" else f".{adapter}"
    kind, _, tail = rest.partition(".")
    if kind == "lora_magnitude_vector":
        tail = ""  # as PEFT saves it
    return f"{_PREFIX}{path}.{kind}{name}{f'.{tail}' if tail else ''}"


def is_state_key(name: str) -> bool:
    """Whether a recorded tensor is an adapter's own, and not a weight of the base."""
    return name.startswith(_PREFIX)


def adapter_state(adapted: Adapted) -> dict[str, Tensor]:
    """The active adapters' own tensors of a module, copied to host memory."""
    state: dict[str, Tensor] = {}
    for name, tensor in adapter_tensors(adapted.module):
        for adapter in adapted.adapters:
            rest = without_adapter(name, adapter)
            if rest is not None:
                copied = tensor.detach().to("cpu", copy=True)
                state[state_key(adapted.path, adapter, rest)] = copied
    return state


def is_recorded(adapted: Adapted, initial: Mapping[str, Tensor]) -> bool:
    """Whether a recorded start holds anything of a module."""
    return any(key.startswith(f"{_PREFIX}{adapted.path}.") for key in initial)


def adapter_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A wrapper's own parameters and buffers, by their names in it."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not name.startswith("base_layer."):
            yield name, tensor


def without_adapter(name: str, adapter: str) -> str | None:
    """A tensor's name without the adapter's, or None where it is not that adapter's."""
    parts = name.split(".")
    if adapter not in parts[1:]:
        return None
    parts.pop(parts.index(adapter, 1))
    return ".".join(parts)


def has_adapter(module: Any, adapter: str) -> bool:
    """Whether a wrapper holds tensors of an adapter."""
    return any(without_adapter(name, adapter) is not None for name, _ in adapter_tensors(module))


def counted_twice(adapted: Iterable[Adapted]) -> frozenset[str]:
    """Paths of modules whose adapter is another module's own, on tied weights.

    With `ensure_weight_tying` PEFT lets the head's factors share the embedding's memory. The change
    counts once, as it takes effect once in each place (PEFT's own merge adds it twice).
    """
    seen: set[object] = set()
    copies: set[str] = set()
    for entry in adapted:
        module = entry.module
        for adapter in entry.adapters:
            for kind, name in _SHARED:
                by_adapter = getattr(module, kind, None)
                if by_adapter is None or adapter not in by_adapter:
                    continue
                tensor = (
                    by_adapter[adapter]
                    if name is None
                    else getattr(by_adapter[adapter], name, None)
                )
                if not isinstance(tensor, Tensor):
                    continue
                place = memory_of(tensor)
                if place in seen:
                    copies.add(entry.path)
                seen.add(place)
    return frozenset(copies)


def method_and_rank(
    adapted: Iterable[Adapted], config: Mapping[str, Any]
) -> tuple[str, int | None]:
    """The kinds of adapters ("full" where there are none), and their largest rank."""
    kinds: list[str] = []
    ranks: list[int] = []
    for entry in adapted:
        for adapter in entry.adapters:
            settings = config.get(adapter)
            if settings is None:
                continue
            kind = "dora" if getattr(settings, "use_dora", False) else settings.peft_type.value
            kinds.append(kind.lower())
            own = getattr(entry.module, "r", None)
            rank = own.get(adapter) if isinstance(own, dict) else None
            ranks += [rank] if isinstance(rank, int) else []
    return ("+".join(dict.fromkeys(kinds)) or "full"), max(ranks, default=None)
