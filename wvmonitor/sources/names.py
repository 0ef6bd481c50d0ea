"""Names and layout of parameters, the same for files, adapters and live models.

A parameter is called what the base model's `named_parameters()` calls it, whatever wraps it now,
and a 2-D parameter is `transposed` where it maps rows to columns: embeddings (one row a token) and
GPT-2's `Conv1D`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from wvmonitor.errors import InputError
from wvmonitor.files.documents import read_json
from wvmonitor.files.storage import Location, joined
from wvmonitor.vectors.coverage import component_of

# Path components that wrappers put into names: torch.compile, activation checkpointing, FSDP, PEFT.
WRAPPERS = frozenset(
    {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "base_layer"}
)

# The model types of transformers that use `transformers.pytorch_utils.Conv1D`, which stores
# (inputs, outputs), and their modules. A square Conv1D cannot be told from a Linear by its shape.
# tests/sources/test_names.py compares this with transformers itself.
_CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_STEP_FOLDER = re.compile(r"checkpoint-(\d{1,12})")


def unwrapped(name: str) -> str:
    """`name` without the components that wrappers insert."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def is_conv1d(name: str, model_type: object) -> bool:
    """Whether a parameter of a model of this type (`config.model_type`) is a Conv1D's weight."""
    parts = name.split(".")
    return (
        model_type in _CONV1D_MODELS
        and len(parts) > 1
        and parts[-1] == "weight"
        and parts[-2] in _CONV1D_MODULES
    )


def may_be_conv1d(name: str) -> bool:
    """Whether the name alone leaves open that this is a Conv1D's weight."""
    return any(is_conv1d(name, kind) for kind in _CONV1D_MODELS)


def is_transposed(name: str, shape: Sequence[int], *, conv1d: bool) -> bool:
    """Whether a parameter is stored as (inputs, outputs).

    Args:
        name: the parameter's name in the base model.
        shape: its shape.
        conv1d: whether it belongs to a Conv1D.
    """
    return len(shape) == 2 and (conv1d or component_of(name, shape) == "embeddings")


def step_of(folder: Location) -> int | None:
    """The optimiser step a folder was saved at: its trainer state's, or its `checkpoint-N` name."""
    state: Mapping[str, Any]
    try:
        state = read_json(joined(folder, "trainer_state.json"), limit=200_000_000)
    except InputError:
        state = {}  # a log that is too long to be read says nothing about the weights
    step = state.get("global_step")
    if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
        return step
    found = _STEP_FOLDER.fullmatch(PurePath(str(folder)).name)
    return int(found.group(1)) if found else None
