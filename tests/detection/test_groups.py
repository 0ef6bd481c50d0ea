"""Layers and kinds of module, by the names of parameters."""

from __future__ import annotations

import pytest

from wvmonitor.detection.groups import layer_of, module_of


@pytest.mark.parametrize(
    ("name", "layer", "module"),
    [
        ("model.layers.3.mlp.up_proj.weight", "3", "mlp.up_proj"),
        ("transformer.h.11.attn.c_attn.bias", "11", "attn.c_attn"),
        ("model.layers.2.mlp.experts.7.down_proj.weight", "2", "mlp.experts.*.down_proj"),
        ("model.layers.0.mlp.experts", "0", "mlp.experts"),
        ("model.embed_tokens.weight", "model.embed_tokens", "model.embed_tokens"),
        ("weight", "weight", "weight"),
    ],
)
def test_parameters_are_grouped_by_their_names(name, layer, module):
    """Layers come from the first index, kinds of module from what follows it."""
    assert layer_of(name) == layer
    assert module_of(name) == module
