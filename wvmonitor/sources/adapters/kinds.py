"""Which kinds of adapter have a task vector, how they are read, and why the others are refused."""

from __future__ import annotations

from collections.abc import Mapping

# Kinds (peft.PeftType) that are read through PEFT's own merge.
MERGED = (
    *("ADALORA", "ADAMSS", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA"),
    *("GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "OSF"),
    *("PEANUT", "PSOFT", "PVERA", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING", "TINYLORA"),
    *("TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT"),
)
# Fields of variants of LoRA whose weights only PEFT itself can compute.
MERGED_VARIANTS = ("kasa_config", "use_bdlora", "monteclora_config")

_PROMPTS = "it adds virtual tokens and changes no weight"
_ATTENTION = "it adds keys and values to attention and changes no weight"
_INPUTS = "what it does depends on the input, so that no merged weight exists"

# Kind -> why it has no task vector
REFUSED: Mapping[str, str] = {
    "PROMPT_TUNING": _PROMPTS,
    "MULTITASK_PROMPT_TUNING": _PROMPTS,
    "P_TUNING": _PROMPTS,
    "PREFIX_TUNING": _ATTENTION,
    "CPT": _PROMPTS,
    "CARTRIDGE": _ATTENTION,
    "ADAPTION_PROMPT": "it adds gated attention to learned prompts and changes no weight",
    "LILY": _INPUTS,
    "POLY": _INPUTS,
    "XLORA": _INPUTS,
    "SHADOW": "it runs a second network beside the model and changes no weight",
}
# Field of a LoraConfig -> why what it asks for has no task vector
REFUSED_VARIANTS: Mapping[str, str] = {
    "alora_invocation_tokens": "an activated LoRA (aLoRA) changes only some tokens' activations",
    "arrow_config": "Arrow routes among adapters input by input",
    "use_qalora": "QA-LoRA exists for GPTQ bases only",
    "layer_replication": "layer_replication makes a model of more layers than the base",
    "megatron_config": "Megatron's parallel layers are not read",
}

RECORD_IT = (
    "save the adapter before the first step and give that folder as `initial` "
    "(WVMonitorCallback and LiveModel record it by themselves)"
)
