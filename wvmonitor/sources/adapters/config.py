"""What an adapter folder's configuration says, checked before any number is believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from wvmonitor.errors import AdapterError, UnsupportedAdapterError
from wvmonitor.files.storage import shown
from wvmonitor.sources.adapters import patterns
from wvmonitor.sources.adapters.kinds import MERGED_VARIANTS, REFUSED_VARIANTS

# Beyond this no training is meant: the factors times it would overflow float32.
_LARGEST_SCALE = 1e6
_LARGEST_RANK = 1 << 20

Start = Literal["base", "pissa", "olora", "unknown"]

# Fields of LoraConfig (PEFT 0.21) that do not change what the saved factors mean, ...
_HARMLESS = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
        *("revision", "inference_mode", "target_modules", "exclude_modules", "lora_dropout"),
        *("layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
        *("runtime_config", "merge_weights"),
    }
)
# ... and those that this package understands.
_UNDERSTOOD = frozenset(
    {
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
        *("bias", "modules_to_save", "init_lora_weights", "trainable_token_indices", "use_dora"),
        *("lora_bias", "target_parameters", "ensure_weight_tying"),
    }
)
_AT_BASE = ("gaussian", "eva", "orthogonal", "mica")
_MOVED = ("corda", "loftq", "lora_ga")
_TAKEN_OFF = ("pissa", "olora", "corda", "lora_ga")


@dataclass(frozen=True)
class LoraSettings:
    """What of a LoraConfig decides the update that saved factors stand for.

    Attributes:
        where: how messages name the configuration.
        rank: `r`, where `rank_pattern` says nothing else.
        alpha: `lora_alpha`, where `alpha_pattern` says nothing else.
        rslora: whether the scale is alpha/√r in place of alpha/r.
        ranks: `rank_pattern`, in its order.
        alphas: `alpha_pattern`, in its order.
        fan_in_fan_out: whether the adapted weights are stored (inputs, outputs).
        dora: whether magnitudes go with the factors.
        start: whether training started at the base's own weights.
        moves_base: whether making the adapter took B₀A₀ off the base's weights in memory.
        parameters: `target_parameters`.
        tied: `ensure_weight_tying`.
    """

    where: str
    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    fan_in_fan_out: bool
    dora: bool
    start: Start
    moves_base: bool
    parameters: tuple[str, ...]
    tied: bool

    @cached_property
    def _rank_patterns(self) -> patterns.Patterns:
        return patterns.Patterns(self.ranks, self.where)

    @cached_property
    def _alpha_patterns(self) -> patterns.Patterns:
        return patterns.Patterns(self.alphas, self.where)

    def rank_of(self, module: str) -> int:
        """The rank PEFT gives a module, `rank_pattern` considered."""
        key = self._rank_patterns.first(module) if self.ranks else None
        return self.rank if key is None else self.ranks[key]

    def scale_of(self, module: str) -> float:
        """The factor by which PEFT multiplies B·A of a module.

        Raises:
            AdapterError: it is beyond what any training means.
        """
        key = self._alpha_patterns.first(module) if self.alphas else None
        alpha = self.alpha if key is None else self.alphas[key]
        rank = self.rank_of(module)
        scale = alpha / (math.sqrt(rank) if self.rslora else rank)
        if abs(scale) > _LARGEST_SCALE:
            raise AdapterError(
                f"lora_alpha {alpha:g} at rank {rank} for {shown(module)} is a scale of {scale:g} "
                f"({self.where}), beyond {_LARGEST_SCALE:g}: re-save the adapter with the alpha it "
                "was trained with"
            )
        return scale


def lora_settings(config: Mapping[str, Any], where: str) -> LoraSettings:
    """Read a LoraConfig's JSON.

    Raises:
        AdapterError: a value is missing, of the wrong type, not finite or out of range.
        UnsupportedAdapterError: a variant of LoRA, or a field, that is not understood.
    """
    for field, why in REFUSED_VARIANTS.items():
        if config.get(field):
            raise UnsupportedAdapterError(
                f"{field} in {where}: {why}, so it has no task vector; leave it out of the scan"
            )
    known = _HARMLESS | _UNDERSTOOD | {*MERGED_VARIANTS, *REFUSED_VARIANTS}
    strange = sorted(key for key, value in config.items() if key not in known and value)
    if strange:
        raise UnsupportedAdapterError(
            f"{where} sets {', '.join(shown(k) for k in strange)}, which this version does not "
            "know and which may change what the factors mean: upgrade wvmonitor"
        )
    return LoraSettings(
        where=where,
        rank=_rank(config.get("r", 8), "r", where),
        alpha=_number(config.get("lora_alpha", 8), "lora_alpha", where),
        rslora=_flag(config, "use_rslora", where),
        ranks={
            key: _rank(value, f"rank_pattern[{shown(key)}]", where)
            for key, value in _table(config, "rank_pattern", where).items()
        },
        alphas={
            key: _number(value, f"alpha_pattern[{shown(key)}]", where)
            for key, value in _table(config, "alpha_pattern", where).items()
        },
        fan_in_fan_out=_flag(config, "fan_in_fan_out", where),
        dora=_flag(config, "use_dora", where),
        start=_start(config.get("init_lora_weights", True), where),
        moves_base=_moves_base(config, where),
        parameters=strings(config, "target_parameters", where),
        tied=_flag(config, "ensure_weight_tying", where),
    )


def strings(config: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    """A field that is a list of strings, or null.

    Raises:
        AdapterError: it is anything else.
    """
    value = config.get(field)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise AdapterError(
            f"{field} must be a list of strings or null, got {shown(value, 60)} ({where}): re-save "
            "the adapter"
        )
    return tuple(value)


def as_compared(start: object) -> object:
    """An `init_lora_weights` as PEFT compares it: without capitals."""
    return start.lower() if isinstance(start, str) else start


def starts_at_base(given: object) -> bool:
    """Whether an `init_lora_weights` leaves the model as it is, without a change to the base.

    PEFT takes None for False: both factors keep the random numbers that they were made with.
    """
    value = as_compared(given)
    return value is True or value in _AT_BASE


def taken_off(given: object) -> bool:
    """Whether an `init_lora_weights` puts a part of the base into B·A and takes it off the base."""
    value = as_compared(given)
    return isinstance(value, str) and value.startswith(_TAKEN_OFF)


def _start(given: object, where: str) -> Start:
    value = as_compared(given)
    if starts_at_base(given):
        return "base"
    if not value or value in _MOVED:
        return "unknown"
    if isinstance(value, str) and value.startswith("pissa_niter_"):
        return "unknown"  # a randomised SVD: another start each time
    if value in ("pissa", "olora"):
        return "pissa" if value == "pissa" else "olora"
    raise UnsupportedAdapterError(
        f"init_lora_weights {shown(given, 60)} ({where}) is not known, and may start elsewhere "
        "than at the base: upgrade wvmonitor"
    )


def _moves_base(config: Mapping[str, Any], where: str) -> bool:
    value = as_compared(config.get("init_lora_weights"))
    if value == "loftq" and config.get("use_dora"):
        raise UnsupportedAdapterError(
            f"{where} combines DoRA with LoftQ, whose rounding of the base is in no file, so that "
            "its update cannot be told; monitor such a run while it trains"
        )
    return taken_off(value)


def _flag(config: Mapping[str, Any], field: str, where: str) -> bool:
    value = config.get(field)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise AdapterError(
        f"{field} must be true or false, got {shown(value, 60)} ({where}): re-save the adapter"
    )


def _rank(value: object, field: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST_RANK:
        raise AdapterError(
            f"{field} must be a whole number from 1 to {_LARGEST_RANK}, got {shown(value, 60)} "
            f"({where}): re-save the adapter, or drop it from the scan"
        )
    return value


def _number(value: object, field: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        bad = True
    else:
        try:
            bad = not math.isfinite(float(value))
        except OverflowError:
            bad = True
    if bad:
        raise AdapterError(
            f"{field} must be a finite number, got {shown(value, 60)} ({where}): re-save the "
            "adapter, or drop it from the scan"
        )
    return float(value)  # type: ignore[arg-type]  # checked above


def _table(config: Mapping[str, Any], field: str, where: str) -> Mapping[str, Any]:
    value = config.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AdapterError(
            f"{field} must be an object, got {shown(value, 60)} ({where}): re-save the adapter"
        )
    return value
