"""The activation-steering baseline, against hand computations that use no hook."""

from __future__ import annotations

import copy

import pytest
import torch

from wvmonitor.errors import InputError, NonFiniteError, ShapeMismatchError
from wvmonitor.steering.activations import (
    ActivationDirection,
    activation_steered,
    blocks_of,
    choose_block,
    mean_difference,
)

FAMILIES = {"llama": "model.layers", "gpt2": "transformer.h"}


def responses(seed, lengths, start=3, width=10):
    """A batch of random tokens whose responses begin at `start` and have these lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 32, (len(lengths), width), generator=generator)
    at = torch.arange(width)
    mask = torch.stack([(at >= start) & (at < start + n) for n in lengths])
    return {"input_ids": ids}, mask


def by_hand(model, layers, batches):
    """Mean activations from the blocks called one after the other, a response at a time."""
    rows = []
    for inputs, mask in batches:
        for ids, counted in zip(inputs["input_ids"], mask, strict=True):
            hidden = embed(model, ids[None])
            states = [hidden]
            for block in model.get_submodule(layers):
                states.append(hidden := run_block(model, block, states[-1]))
            rows.append(torch.stack([s[0][counted].double().mean(0) for s in states]))
    return torch.stack(rows).mean(0)


def embed(model, ids):
    if hasattr(model, "transformer"):
        return model.transformer.wte(ids) + model.transformer.wpe(torch.arange(ids.shape[1]))
    return model.model.embed_tokens(ids)


def run_block(model, block, hidden):
    more = {}
    if not hasattr(model, "transformer"):
        positions = torch.arange(hidden.shape[1])[None]
        more["position_embeddings"] = model.model.rotary_emb(hidden, positions)
    output = block(hidden, **more)
    return output if isinstance(output, torch.Tensor) else output[0]


@pytest.fixture(params=FAMILIES)
def family(request, world):
    """A model and where it keeps its blocks."""
    return getattr(world, request.param)(), FAMILIES[request.param]


@torch.no_grad()
def test_the_direction_is_the_difference_of_mean_response_activations(family):
    """Each response counts once, its prompt not at all, at every depth from the input on."""
    model, layers = family
    positive = [responses(1, [2, 5, 7]), responses(2, [1])]
    negative = [responses(3, [4, 4])]
    model.train()
    found = mean_difference(model, positive, negative, layers=layers)
    assert model.training
    model.eval()
    expected = by_hand(model, layers, positive) - by_hand(model, layers, negative)
    assert found.blocks == 2
    torch.testing.assert_close(found.means.double(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.after(1), found.means[2])
    telescoped = found.increments().sum(0)
    torch.testing.assert_close(telescoped, found.means[2] - found.means[0])


def with_biases(model, family, vectors):
    """A copy whose blocks end in a bias: the same addition to the residual stream, no hook."""
    moved = copy.deepcopy(model)
    for block, vector in zip(moved.get_submodule(FAMILIES[family]), vectors, strict=True):
        last = block.mlp.c_proj if family == "gpt2" else block.mlp.down_proj
        bias = vector.clone() if last.bias is None else last.bias.detach() + vector
        last.bias = torch.nn.Parameter(bias)
    return moved


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", [0, 1, None])
def test_steering_is_a_bias_at_the_end_of_a_block(world, family, block):
    """k·a^l after one block, or k·(a^l − a^{l−1}) after all; and nothing is left afterwards."""
    model = getattr(world, family)()
    means = torch.randn(3, 16, generator=torch.Generator().manual_seed(5))
    if block is None:
        vectors = [-1.5 * (means[1] - means[0]), -1.5 * (means[2] - means[1])]
    else:
        vectors = [torch.zeros(16), torch.zeros(16)]
        vectors[block] = -1.5 * means[block + 1]
    expected = world.logits(with_biases(model, family, vectors))
    before = world.logits(model)
    direction = ActivationDirection(means)
    with activation_steered(model, direction, -1.5, block=block, layers=FAMILIES[family]) as inside:
        assert inside is model
        torch.testing.assert_close(world.logits(model), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(world.logits(model), before)


def test_only_the_last_position_can_be_moved(world):
    """With positions="last" what was said before is left as it is."""
    model = world.llama()
    direction = ActivationDirection(torch.ones(3, 16))
    before = world.logits(model)
    with activation_steered(model, direction, 2.0, block=1, positions="last"):
        last = world.logits(model)
    with activation_steered(model, direction, 2.0, block=1):
        everywhere = world.logits(model)
    assert torch.equal(last[:, :-1], before[:, :-1])
    torch.testing.assert_close(last[:, -1], everywhere[:, -1])


def test_a_failing_block_removes_its_hooks(world):
    """An exception inside leaves the model as it was."""
    model = world.llama()
    before = world.logits(model)
    with (
        pytest.raises(ZeroDivisionError),
        activation_steered(model, ActivationDirection(torch.ones(3, 16)), 1.0, block=None),
    ):
        _ = 1 / 0
    assert torch.equal(world.logits(model), before)


def test_wrapped_models_and_other_dtypes_are_steered(world):
    """The blocks are found under PEFT and torch.compile, and bfloat16 stays bfloat16."""
    from peft import LoraConfig, get_peft_model

    model = world.llama(dtype=torch.bfloat16)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["up_proj"]))
    assert len(blocks_of(torch.compile(wrapped))) == 2
    before = world.logits(wrapped)
    with activation_steered(wrapped, ActivationDirection(torch.ones(3, 16)), 1.0, block=0):
        moved = world.logits(wrapped)
    assert moved.dtype == torch.bfloat16
    assert not torch.equal(moved, before)


def test_the_block_is_chosen_where_held_out_questions_do_best(world):
    """The chosen block has the best score, and the scores are those of the steered models."""
    model = world.llama()
    direction = ActivationDirection(torch.randn(3, 16, generator=torch.Generator().manual_seed(1)))

    def score(steered):
        return float(world.logits(steered)[..., 7].mean())

    best, scores = choose_block(model, direction, 3.0, score)
    expected = []
    for block in range(2):
        with activation_steered(model, direction, 3.0, block=block):
            expected.append(score(model))
    assert scores == expected
    assert best == max(range(2), key=expected.__getitem__)


def test_what_cannot_be_meant_is_refused(world):
    """Each with the way out, before anything is changed."""
    model = world.llama()
    direction = ActivationDirection(torch.ones(3, 16))

    def steer(error, match, d=direction, k=1.0, **more):
        with pytest.raises(error, match=match), activation_steered(model, d, k, **more):
            world.logits(model)

    steer(NonFiniteError, "finite", k=float("nan"), block=0)
    steer(InputError, "no block 2: the model has 2", block=2)
    steer(
        InputError, r"at 'transformer.h' \(it has model.layers\)", block=0, layers="transformer.h"
    )
    steer(ShapeMismatchError, "4 blocks", ActivationDirection(torch.ones(5, 16)), block=0)
    steer(ShapeMismatchError, "width 8", ActivationDirection(torch.ones(3, 8)), block=0)
    with pytest.raises(InputError, match="no responses"):
        mean_difference(model, [], [responses(1, [2])])
    with pytest.raises(InputError, match="no tokens"):
        mean_difference(model, [responses(1, [2, 0])], [responses(1, [2])])
