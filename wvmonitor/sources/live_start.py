"""Where adapters start: at their base, or somewhere that must be recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wvmonitor.sources.adapters.config import as_compared
from wvmonitor.sources.adapters.kinds import MERGED_VARIANTS
from wvmonitor.sources.adapters.lora_module import ComputedStart
from wvmonitor.sources.adapters.merged import starts_at_base
from wvmonitor.sources.live_adapter import Adapted

# Starts of LoRA (`init_lora_weights`) at which B·A is zero, or zero up to rounding.
_STARTS_AT_BASE = (True, None, "gaussian", "eva", "orthogonal", "mica")


def moved_at_start(
    entry: Adapted, config: Mapping[str, Any], known: dict[tuple[str, type], bool]
) -> bool:
    """Whether a new adapter of this configuration is not the base itself.

    Args:
        entry: the module.
        config: the adapters' configurations.
        known: answers so far, by adapter and class of the adapted layer; added to.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(entry.module, BaseTunerLayer):
        return False
    layer: Any = entry.module.get_base_layer()
    for adapter in entry.adapters:
        settings = config.get(adapter)
        if settings is None:
            continue
        key = (adapter, type(layer))
        if key not in known:
            variant = any(getattr(settings, field, None) for field in MERGED_VARIANTS)
            if settings.peft_type.value == "LORA" and not variant:
                known[key] = as_compared(settings.init_lora_weights) not in _STARTS_AT_BASE
            else:
                known[key] = not starts_at_base(settings, layer, entry.path)
        if known[key]:
            return True
    return False


def computed_start(adapter: str, config: Mapping[str, Any]) -> ComputedStart | None:
    """How PEFT computes an adapter's start from the base's weights, or None where it does not."""
    settings = config.get(adapter)
    if settings is None or settings.peft_type.value != "LORA" or settings.use_dora:
        return None
    start = as_compared(settings.init_lora_weights)
    if start == "pissa":
        return "pissa"
    return "olora" if start == "olora" else None


def moves_base(entry: Adapted, config: Mapping[str, Any]) -> bool:
    """Whether making the adapter has changed the base's weights in memory (PiSSA and its kin)."""
    settings = [config[a] for a in entry.adapters if config.get(a) is not None]
    return any(
        getattr(s, "kasa_config", None)
        or (
            s.peft_type.value == "LORA"
            and as_compared(s.init_lora_weights) not in (*_STARTS_AT_BASE, False)
        )
        for s in settings
    )
