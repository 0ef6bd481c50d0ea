"""θ + k·w in live models: the dense formula while it lasts, every bit back afterwards."""

import copy

import numpy as np
import pytest
import torch

from wvmonitor.errors import (
    InputError,
    KeyMismatchError,
    NonFiniteError,
    QuantizedWeightsError,
    ShapeMismatchError,
    UnmeasurableModelError,
)
from wvmonitor.steering import steered
from wvmonitor.vectors import DenseUpdate, TaskVector


def bits(model):
    """The exact bytes of every parameter and buffer."""
    return {
        n: t.detach().contiguous().flatten().view(torch.uint8).clone()
        for n, t in model.state_dict().items()
    }


def same_bits(model, before):
    after = bits(model)
    return after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)


def everything(_name):
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_move_by_the_dense_formula_and_come_back(world, dtype):
    """Inside, each weight is θ + k·w rounded to its dtype; after, every bit is as before."""
    model = world.llama(dtype=dtype)
    w = world.vector(model, everything)
    before, original = bits(model), copy.deepcopy(model)
    with steered(model, world.reference(w), -1.7) as inside:
        assert inside is model
        for name, p in model.named_parameters():
            expected = original.get_parameter(name).double() - 1.7 * world.delta(w, name)
            assert p.dtype == dtype
            error = (p.double() - expected).abs()
            assert (error <= torch.finfo(dtype).eps * expected.abs() + 1e-6).all(), name
        assert not torch.equal(world.logits(model), world.logits(original))
    assert same_bits(model, before)
    assert torch.equal(world.logits(model), world.logits(original))


def test_an_exception_inside_restores_too(world):
    """A failing block leaves the model as it was, and its own error goes through."""
    model = world.llama(dtype=torch.bfloat16)
    before = bits(model)
    with pytest.raises(ZeroDivisionError), steered(model, world.vector(model, everything), 1.0):
        _ = 1 / 0
    assert same_bits(model, before)


def test_odd_bits_come_back(world):
    """Signed zeros and subnormals are restored bit for bit, where subtracting would lose them."""
    model = world.llama(dtype=torch.bfloat16)
    name = "model.norm.weight"
    with torch.no_grad():
        odd = torch.tensor([-0.0, 1e-40, 3e-39, 65280.0] * 4, dtype=torch.bfloat16)
        model.get_parameter(name).copy_(odd)
    before = bits(model)
    with steered(model, world.vector(model, lambda n: n == name), 3.0):
        assert not same_bits(model, before)
    assert same_bits(model, before)


def test_several_references_add_up(world, only_linear):
    """A mapping and nested blocks both add every k·w, and unwind in order."""
    model = world.llama()
    a = world.reference(world.vector(model, only_linear), "a")
    b = world.reference(world.vector(model, everything, rank=0, seed=2), "b")
    before, original = bits(model), copy.deepcopy(model)
    name = "model.layers.1.mlp.up_proj.weight"
    expected = original.get_parameter(name).double() + (
        2 * world.delta(a.vector, name) - 0.5 * world.delta(b.vector, name)
    )
    with steered(model, {a: 2.0, b: -0.5}):
        torch.testing.assert_close(
            model.get_parameter(name).double(), expected, atol=1e-6, rtol=1e-6
        )
    assert same_bits(model, before)
    with steered(model, a, 2.0):
        between = bits(model)
        with steered(model, b, -0.5):
            torch.testing.assert_close(
                model.get_parameter(name).double(), expected, atol=1e-6, rtol=1e-6
            )
        assert same_bits(model, between)
    assert same_bits(model, before)


def test_tied_weights_move_once(world):
    """A head tied to the embeddings moves by k·w, not twice, under either or both names."""
    model = world.llama(tie=True)
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    assert model.get_parameter(embed) is model.get_parameter(head)
    delta = DenseUpdate(torch.full((32, 16), 0.25))
    start = model.get_parameter(embed).detach().clone()
    for names in ([embed], [head], [embed, head]):
        with steered(model, TaskVector.of(dict.fromkeys(names, delta)), 2.0):
            torch.testing.assert_close(model.get_parameter(embed).detach(), start + 0.5)
    with steered(model, {TaskVector.of({embed: delta}): 1.0, TaskVector.of({head: delta}): 1.0}):
        torch.testing.assert_close(model.get_parameter(embed).detach(), start + 0.5)
    other = TaskVector.of({embed: delta, head: DenseUpdate(torch.ones(32, 16))})
    with pytest.raises(KeyMismatchError, match="one tied weight"), steered(model, other, 1.0):
        pass
    assert torch.equal(model.get_parameter(embed), start)


def lora(model, **more):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False, **more)
    return get_peft_model(model, config).eval()


def test_a_lora_model_moves_as_its_merged_weights_would(world):
    """Under PEFT, θ + BA + k·w is what runs, with names of the base model, and all comes back."""
    torch.manual_seed(3)
    model = lora(world.llama(), modules_to_save=["lm_head"])
    w = world.vector(world.llama(), everything)
    merged = copy.deepcopy(model).merge_and_unload()
    before = bits(model)
    with steered(model, w, 0.7), steered(merged, w, 0.7):
        torch.testing.assert_close(world.logits(model), world.logits(merged), atol=1e-4, rtol=1e-4)
        with model.disable_adapter(), steered(world.llama(), w, 0.7) as plain:
            torch.testing.assert_close(world.logits(model), world.logits(plain))
    assert same_bits(model, before)


def test_compiled_and_parallel_models_are_looked_through(world, only_linear, tmp_path):
    """torch.compile and DistributedDataParallel around the model, in any order, change nothing."""
    model = world.llama()
    w = world.vector(model, only_linear)
    name = "model.layers.0.mlp.up_proj.weight"
    before = bits(model)
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        wraps = [
            torch.compile(model),
            parallel,
            torch.compile(parallel),
            torch.compile(lora(model)),
        ]
        for wrapped in wraps:
            start = before.get(name)
            with steered(wrapped, w, 1.0):
                moved = dict(model.named_parameters())
                now = moved.get(name, moved.get(name.replace("up_proj", "up_proj.base_layer")))
                assert not torch.equal(now.detach().flatten().view(torch.uint8), start)
            assert torch.equal(now.detach().flatten().view(torch.uint8), start)
    finally:
        torch.distributed.destroy_process_group()


def test_a_compiled_block_runs_with_the_moved_weights(world, only_linear):
    """Blocks compiled one by one (`_orig_mod` inside names) are steered by their base names."""
    model = world.llama()
    w = world.vector(model, only_linear)
    plain = copy.deepcopy(model)
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    assert any("_orig_mod" in n for n, _ in model.named_parameters())
    with steered(model, w, 1.0), steered(plain, w, 1.0):
        torch.testing.assert_close(world.logits(model), world.logits(plain))


def test_training_settings_survive(world, only_linear):
    """Gradients, requires_grad and the parameters' identity are left alone."""
    model = world.llama()
    model.model.embed_tokens.weight.requires_grad_(requires_grad=False)
    model(
        input_ids=torch.arange(8).reshape(1, 8), labels=torch.arange(8).reshape(1, 8)
    ).loss.backward()
    state = {n: (id(p), p.requires_grad, id(p.grad)) for n, p in model.named_parameters()}
    with steered(model, world.vector(model, only_linear), 1.0):
        pass
    assert {n: (id(p), p.requires_grad, id(p.grad)) for n, p in model.named_parameters()} == state


def test_the_precision_does_not_depend_on_autocast(world, only_linear):
    """Entering the block under torch.autocast moves the weights by exactly as much."""
    model, other = world.llama(), world.llama()
    w = world.vector(model, only_linear)
    with (
        steered(model, w, 1.0),
        torch.autocast("cpu", dtype=torch.bfloat16),
        steered(other, w, 1.0),
    ):
        assert same_bits(model, bits(other))


def refuses(error, match, model, reference, k=1.0):
    before = bits(model)
    with pytest.raises(error, match=match), steered(model, reference, k):
        pytest.fail("the block must not run")
    assert same_bits(model, before)


def test_what_does_not_fit_is_refused_before_anything_moves(world, only_linear):
    """Unknown names, other shapes and a k that is no number are errors of their own."""
    model = world.llama()
    w = world.vector(model, only_linear)
    for k in (float("nan"), float("inf"), np.float32("nan")):
        refuses(NonFiniteError, "k must be finite, got (nan|inf) for runs/a", model, w, k)
    refuses(InputError, "k is missing", model, w, None)
    refuses(InputError, "beside several", model, {w: 1.0}, 2.0)
    odd = {f"model.layers.{i}.x.weight": DenseUpdate(torch.ones(2)) for i in range(5)}
    refuses(KeyMismatchError, r"layers\.0\.x\.weight.*and 2 more", model, TaskVector.of(odd))
    bad = TaskVector.of({"model.norm.weight": DenseUpdate(torch.ones(7))})
    refuses(ShapeMismatchError, r"\(16,\) in the model but \(7,\)", model, bad)


def test_overflow_is_refused_and_undone(world):
    """A sum beyond the model's dtype is an error naming the weight, and nothing stays moved."""
    model = world.llama(dtype=torch.float16)
    names = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    w = TaskVector.of({n: DenseUpdate(torch.ones(model.get_parameter(n).shape)) for n in names})
    refuses(NonFiniteError, r"up_proj\.weight would hold NaN or infinity", model, w, 1e6)
    poisoned = TaskVector.of(
        {names[0]: w.update(names[0]), names[1]: DenseUpdate(torch.full((16,), torch.nan))}
    )
    refuses(NonFiniteError, r"model\.norm\.weight", model, poisoned)


def test_quantised_weights_are_refused(world, only_linear):
    """Integer and 8-bit float weights cannot be steered, and the error says what can."""
    model = world.llama()
    w = world.vector(model, only_linear)
    for dtype in (torch.int8, torch.float8_e4m3fn):
        weight = torch.nn.Parameter(torch.ones(24, 16).to(dtype), requires_grad=False)
        model.model.layers[0].mlp.up_proj.weight = weight
        refuses(QuantizedWeightsError, r"up_proj\.weight is torch\.(int8|float8)", model, w)
    model.is_quantized = True
    packed = TaskVector.of({"model.layers.0.gone.weight": DenseUpdate(torch.ones(2))})
    refuses(QuantizedWeightsError, "the model is quantised", model, packed)


def test_weights_that_are_not_there_are_refused(world, only_linear):
    """A model on the meta device cannot be steered."""
    model = world.llama()
    w = world.vector(model, only_linear)
    with pytest.raises(UnmeasurableModelError, match="meta"), steered(model.to("meta"), w, 1.0):
        pass


@pytest.mark.parametrize("method", ["dora", "ia3", "oft", "tokens"])
def test_adapters_that_do_not_add_are_refused(world, method):
    """Where an adapter rescales the weight, base + k·w is not θ + k·w, and that is said."""
    from peft import IA3Config, LoraConfig, OFTConfig, get_peft_model

    model = world.llama()
    w = world.vector(model, everything)
    configs = {
        "dora": lambda: LoraConfig(r=2, target_modules=["up_proj"], use_dora=True),
        "ia3": lambda: IA3Config(target_modules=["up_proj"], feedforward_modules=[]),
        "oft": lambda: OFTConfig(target_modules=["up_proj"], r=0, oft_block_size=4),
        "tokens": lambda: LoraConfig(
            r=2, target_modules=["up_proj"], trainable_token_indices={"embed_tokens": [3, 4]}
        ),
    }
    wrapped = get_peft_model(model, configs[method]())
    name = r"embed_tokens\.weight" if method == "tokens" else r"layers\.0\.mlp\.up_proj\.weight"
    refuses(UnmeasurableModelError, rf"{name} cannot be moved.*merge", wrapped, w)
