"""Names and layout of parameters, the same for files, adapters and live models.

A parameter is called what `named_parameters()` of the base's *causal language model* calls it,
whatever wraps it now: a trainer, PEFT, a multi-modal model around it, or a model without its head.
One function says so for all three sources, so that digests, readings and banks agree. A 2-D
parameter is `transposed` where it maps rows to columns: embeddings (one row a token) and GPT-2's
`Conv1D`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from wvmonitor.errors import InputError
from wvmonitor.files.documents import read_json
from wvmonitor.files.storage import Location, joined
from wvmonitor.reading import component_of

# Path components that wrappers put into names: torch.compile, activation checkpointing, FSDP, PEFT.
WRAPPERS = frozenset(
    {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "base_layer"}
)

# The model types of transformers that use `transformers.pytorch_utils.Conv1D`, which stores
# (inputs, outputs), and their modules. A square Conv1D cannot be told from a Linear by its shape.
# tests/sources/test_names.py compares this with transformers itself.
_CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_STEP_FOLDER = re.compile(r"(?:checkpoint|global_step|step|iter)[-_]?(\d{1,12})")


# What trainers (DDP, FSDP, DeepSpeed) and PEFT put before a name, once or twice.
_OUTER = re.compile(r"^(?:module\.|base_model\.model\.)+")
# The language model inside a multi-modal one, as transformers calls it now, and did before 4.52.
_INSIDE = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?")
_OWN_ROOT = re.compile(r"^(?:lm_head|transformer|gpt_neox)\.")
# Parameters of a model without its head (`AutoModel`), by the prefix they have under one.
_HEADLESS = (
    (
        re.compile(
            r"^(?:layers\.\d+\.(?:self_attn|linear_attn|block_sparse_moe|\w*layernorm)\b"
            r"|layers\.\d+\.mlp\.(?:gate|up|down|experts|shared)"
            r"|embed_tokens\.|norm\.)"
        ),
        "model.",
    ),
    (re.compile(r"^(?:h\.\d+\.|wte\.|wpe\.|ln_f\.)"), "transformer."),
)
# What a multi-modal model has beside its language model.
_TOWER = re.compile(
    r"(?:^|\.)(?:vision\w*|visual|audio\w*|image\w*|speech\w*|\w*projector|connector|perceiver)\."
)


_TASK_HEAD = re.compile(
    r"(?:^|\.)(?:score|classifier|classification_head|qa_outputs|v_head|value_head|reward_head"
    r"|regression_head|lm_head|embed_out)\."
)


# What TensorFlow's BERT called a norm's weight and bias; transformers renames both on loading.
_OLD_NORM = re.compile(r"(?<=LayerNorm\.)(gamma|beta)$")


def unwrapped(name: str) -> str:
    """`name` without the components that wrappers insert."""
    parts = name.split(".")
    if not WRAPPERS.isdisjoint(parts):
        name = ".".join(part for part in parts if part not in WRAPPERS)
    return _OUTER.sub("", name)


def parameter_name(name: str) -> str:
    """What the base's causal language model calls a parameter, from any name of it.

    Example:
        >>> parameter_name("module._orig_mod.model.layers.0.mlp.up_proj.base_layer.weight")
        'model.layers.0.mlp.up_proj.weight'
        >>> parameter_name("language_model.model.layers.0.mlp.up_proj.weight")  # LLaVA, before 4.52
        'model.layers.0.mlp.up_proj.weight'
        >>> parameter_name("model.language_model.layers.0.mlp.up_proj.weight")
        'model.layers.0.mlp.up_proj.weight'
        >>> parameter_name("layers.0.mlp.up_proj.weight")  # without its head
        'model.layers.0.mlp.up_proj.weight'
    """
    plain = unwrapped(name)
    old = _OLD_NORM.search(plain)
    if old:
        plain = plain[: old.start()] + ("weight" if old[1] == "gamma" else "bias")
    inside = _INSIDE.match(plain)
    if inside:
        rest = plain[inside.end() :]
        return rest if _OWN_ROOT.match(rest) else f"model.{rest}"
    for pattern, prefix in _HEADLESS:
        if pattern.match(plain):
            return prefix + plain
    return plain


def beside_the_language_model(name: str) -> bool:
    """Whether a parameter is of a multi-modal model's other parts: a vision tower, a projector."""
    return bool(_TOWER.search(name))


def is_task_head(name: str) -> bool:
    """Whether a parameter is of a head that a fine-tune may put on, or take off.

    A classifier's, a reward's, a value's, or that of a language model's logits.
    """
    return bool(_TASK_HEAD.search(name))


def new_head_note(names: Sequence[str], where: str) -> str:
    """What to say of heads that only the fine-tuned side has."""
    which = ", ".join(names[:3])
    return (
        f"{where} has a head of its own ({which}), which the base has not: where it started is "
        "not known, so it is not in the change, and no coverage counts it"
    )


def is_conv1d(name: str, model_type: object) -> bool:
    """Whether a parameter of a model of this type (`config.model_type`) is a Conv1D's weight."""
    return model_type in _CONV1D_MODELS and may_be_conv1d(name)


def may_be_conv1d(name: str) -> bool:
    """Whether the name alone leaves open that this is a Conv1D's weight."""
    parts = name.split(".")
    return len(parts) > 1 and parts[-1] == "weight" and parts[-2] in _CONV1D_MODULES


def is_transposed(name: str, shape: Sequence[int], *, conv1d: bool) -> bool:
    """Whether a parameter is stored as (inputs, outputs)."""
    return len(shape) == 2 and (conv1d or component_of(name, shape) == "embeddings")


def step_of(folder: Location) -> int | None:
    """The optimiser step a folder was saved at: its trainer state's, or its `checkpoint-N` name's.

    `step_N`, `global_stepN` and `iter_N` say the same; `epoch_N` does not.
    """
    state: Mapping[str, Any]
    try:
        state = read_json(joined(folder, "trainer_state.json"), limit=200_000_000)
    except InputError:
        state = {}  # a log that is too long to be read says nothing about the weights
    step = state.get("global_step")
    if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
        return step
    match = _STEP_FOLDER.fullmatch(PurePath(str(folder)).name)
    return int(match.group(1)) if match else None
