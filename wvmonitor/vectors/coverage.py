"""Which part of a model a parameter belongs to, from its name and shape.

The names are those of Hugging Face models' `named_parameters()`. Scores look at the linear weights
of the transformer blocks by default; the other components are measured and reported beside them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from wvmonitor.reading import Component

# A parameter inside a numbered block: `model.layers.3.`, `transformer.h.3.`, `gpt_neox.layers.3.`,
# `encoder.block.3.`, `backbone.blocks.3.`
_IN_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.(.+)$")
_NORM = re.compile(r"(?:^|[._])(?:\w*norm\w*|ln|ln_\w+)(?:[._]|$)", re.IGNORECASE)
_HEAD = re.compile(
    r"(?:^|\.)(?:lm_head|embed_out|output_projection|score|classifier|qa_outputs|cls)\."
)
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:\w*embed\w*|wte|wpe|embeddings?|shared|position_ids)(?:\.|$)", re.IGNORECASE
)
# Inside a block, yet no map of activations: T5's table of position biases, experts' stacked biases
_TABLE_IN_BLOCK = re.compile(r"\.relative_attention_bias\.")
_BIAS = re.compile(r"(?:^|[._])bias$")


def component_of(name: str, shape: Sequence[int]) -> Component:
    """The component of the model that a parameter belongs to.

    Args:
        name: the parameter's name in the base model.
        shape: its shape: a vector is never one of the blocks' linear weights.
    """
    return _component_of(name, len(shape) > 1)


@functools.lru_cache(maxsize=1 << 17)  # asked at every reading, of the same names
def _component_of(name: str, is_map: bool) -> Component:  # noqa: FBT001  a key of the cache
    if _NORM.search(name):
        return "norms"
    if _TABLE_IN_BLOCK.search(name):
        return "embeddings"
    if _IN_BLOCK.search(name):
        return "blocks" if is_map and not _BIAS.search(name) else "other"
    if _HEAD.search(name):
        return "head"
    if _EMBEDDING.search(name):
        return "embeddings"
    return "other"


def layer_of(name: str) -> int | None:
    """Index of the transformer block that a parameter belongs to, or None outside them."""
    found = _IN_BLOCK.search(name)
    return int(found.group(1)) if found else None


def module_type_of(name: str) -> str:
    """What a parameter is within its block, e.g. `self_attn.q_proj.weight`; itself outside them."""
    found = _IN_BLOCK.search(name)
    return found.group(2) if found else name
