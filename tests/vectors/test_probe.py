"""The probe's rows against second moments computed from the inputs themselves."""

import numpy as np
import pytest
import torch
from torch import nn

from wvmonitor.errors import InputError, KeyMismatchError
from wvmonitor.vectors.probe import Probe, collect_probe

NAMES = [f"layers.0.{m}.weight" for m in ("q", "k", "v", "o")]


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.o = nn.Linear(width, 3, bias=False)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.o(self.drop(self.q(x) * self.k(x) + self.v(x)))


class Model(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.embed_tokens = nn.Embedding(20, width)
        self.layers = nn.ModuleList([Block(width)])

    def forward(self, ids):
        return self.layers[0](self.embed_tokens(ids))


def batches(seed=0, count=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        ids = torch.randint(0, 20, (4, 6), generator=generator)
        yield {"ids": ids}, torch.rand(4, 6, generator=generator) < 0.7


def oracle(model, name):
    """E[x xᵀ] over the tokens that count, in float64."""
    block, rows = model.layers[0], []
    for inputs, mask in batches():
        x = model.embed_tokens(inputs["ids"])
        if name.endswith("o.weight"):
            x = block.q(x) * block.k(x) + block.v(x)
        rows.append(x[mask].detach().double().numpy())
    stacked = np.concatenate(rows)
    return stacked.T @ stacked / len(stacked), len(stacked)


def test_narrow_layers_are_held_exactly():
    """Up to `rows` inputs the probe's XᵀX is E[x xᵀ] of the counted tokens, dropout off."""
    torch.manual_seed(0)
    model = Model().train()
    probe = collect_probe(model, batches(), NAMES, rows=8)
    for name in NAMES:
        expected, tokens = oracle(model, name)
        x = probe.inputs[name].double().numpy()
        assert x.shape == (8, 8)
        np.testing.assert_allclose(x.T @ x, expected, rtol=1e-4, atol=1e-5)
        assert probe.tokens == tokens
        eigenvalues = np.linalg.eigvalsh(expected)
        dimension = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
        assert probe.effective_dimension(name) == pytest.approx(dimension, rel=1e-3)
    assert model.training
    assert model.layers[0].drop.training


def test_maps_fed_by_one_tensor_share_one_probe():
    """q, k and v hold the very same rows; o has its own."""
    probe = collect_probe(Model(), batches(), NAMES, rows=8)
    q, k, v, o = (probe.inputs[n] for n in NAMES)
    assert q is k
    assert k is v
    assert o is not q


def test_wide_layers_are_sketched_without_bias():
    """Beyond `rows` inputs the sketch has the right shape and the right mean over seeds."""
    torch.manual_seed(0)
    model = Model(width=12)
    expected, _ = oracle(model, NAMES[0])
    found = []
    for seed in range(300):
        x = collect_probe(model, batches(), NAMES[:1], rows=6, seed=1000 * seed).inputs[NAMES[0]]
        assert x.shape == (6, 12)
        found.append((x.T @ x).double().numpy())
    error = np.abs(np.mean(found, axis=0) - expected).max()
    assert error < 5 * np.std(found, axis=0).max() / np.sqrt(len(found))


def test_the_sketch_is_fixed_by_its_seed():
    """The same texts and seed give the same probe, another seed another one."""
    model = Model(width=12)
    a, b, c = (
        collect_probe(model, batches(), NAMES, rows=6, seed=s).inputs[NAMES[0]] for s in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_inputs_of_unit_size_give_every_layer_the_same_say():
    """Tr C = I for each layer; a layer that no token moves stays 0; what is shared stays shared."""
    torch.manual_seed(0)
    probe = collect_probe(Model(), batches(), NAMES, rows=8)
    loud = dict(probe.inputs) | {NAMES[3]: 1e4 * probe.inputs[NAMES[3]], "dead": torch.zeros(2, 8)}
    scaled = Probe(loud, probe.tokens).of_unit_size()
    for name in NAMES:
        x = scaled.inputs[name].double()
        assert float((x.mT @ x).trace()) == pytest.approx(x.shape[1], rel=1e-5)
        ratio = scaled.inputs[name] / loud[name]
        assert float(ratio.std()) < 1e-5 * float(ratio.mean()), "directions are as they were"
    assert scaled.inputs[NAMES[0]] is scaled.inputs[NAMES[1]]
    assert not scaled.inputs["dead"].any()


def test_effective_dimension_counts_directions():
    """Equal inputs in every direction give I, a single direction gives 1."""
    one = torch.zeros(4, 6)
    one[0, 2] = 3.0
    probe = Probe({"all": torch.eye(6), "one": one}, 1)
    assert probe.effective_dimension("all") == pytest.approx(6)
    assert probe.effective_dimension("one") == pytest.approx(1)


def test_what_has_no_inputs_is_refused():
    """Unknown names, embeddings and masks that leave nothing are errors that say so."""
    model = Model()
    with pytest.raises(KeyMismatchError, match=r"no parameter layers\.9\.q"):
        collect_probe(model, batches(), ["layers.9.q.weight"])
    with pytest.raises(InputError, match="no 2-D map of activations"):
        collect_probe(model, batches(), ["embed_tokens.weight"])
    nothing = [({"ids": torch.zeros(1, 2, dtype=torch.long)}, torch.zeros(1, 2))]
    with pytest.raises(InputError, match="no token"):
        collect_probe(model, nothing, NAMES)
    with pytest.raises(InputError, match="no token"):
        collect_probe(model, [], NAMES)
