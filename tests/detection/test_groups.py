"""Scores by layer and by kind of module."""

from __future__ import annotations

import numpy as np
import pytest

from wvmonitor.detection.groups import by_group, layer_of, module_of
from wvmonitor.detection.scores import score
from wvmonitor.reading import GEOMETRIES


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


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_scores_within_a_layer_are_those_of_its_vectors(world, geometry):
    """A layer's cosine is that of the layer's own weights; layers come in their natural order."""
    found = by_group(world.reading(), world.gram())
    assert found.groups == ("0", "1", "10")
    for n, layer in enumerate(found.groups):

        def part(weights, layer=layer):
            kept = {k: v for k, v in weights.items() if layer_of(k) == layer}
            return world.vector(kept, geometry)

        tau = part(world.run)
        assert found.norms[geometry][n] == pytest.approx(np.linalg.norm(tau), abs=1e-12)
        for r, weights in enumerate(world.references.values()):
            w = part(weights)
            got = found.within[geometry]["cosine"][n, r]
            size = np.linalg.norm(tau) * np.linalg.norm(w)
            if size == 0:
                assert np.isnan(got)
            else:
                assert got == pytest.approx(tau @ w / size, rel=1e-10)


@pytest.mark.parametrize("group", [layer_of, module_of])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_contributions_add_up_to_the_score(world, geometry, group):
    """What the groups contribute sums to the score of the whole model."""
    scores = score(world.reading(), world.gram()).references
    found = by_group(world.reading(), world.gram(), group)
    for name in ("cosine", "residual"):
        sums = found.contributions[geometry][name].sum(axis=0)
        for r, reference in enumerate(found.references):
            assert sums[r] == pytest.approx(scores[reference].values[geometry][name], rel=1e-10)


def test_one_group_is_the_whole_model(world):
    """With everything in one group each score is the global one."""
    scores = score(world.reading(), world.gram()).references
    found = by_group(world.reading(), world.gram(), lambda _: "all")
    for name in ("cosine", "residual", "margin"):
        for r, reference in enumerate(found.references):
            expected = scores[reference].values["response"][name]
            assert found.within["response"][name][0, r] == pytest.approx(expected, rel=1e-12)
