"""k·w that rides along in training: what it does to losses and gradients, and what it leaves."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch

from wvmonitor.errors import (
    InputError,
    KeyMismatchError,
    ShapeMismatchError,
    UnmeasurableModelError,
)
from wvmonitor.steering import inoculated, steered
from wvmonitor.vectors import LowRankUpdate, TaskVector

K = 0.7


def ids() -> torch.Tensor:
    return torch.arange(24).reshape(2, 12) % 32


def everything(name: str) -> bool:
    return True


def moved(model: Any, world: Any, vector: Any) -> Any:
    """A copy that holds θ + k·w, by an independent float64 sum."""
    other = copy.deepcopy(model).double()
    with torch.no_grad():
        for name in vector.names():
            other.get_parameter(name).add_(K * world.delta(vector, name))
    return other


def loss_of(model: Any) -> torch.Tensor:
    return model(input_ids=ids(), labels=ids()).loss


@pytest.mark.parametrize("rank", [2, 0], ids=["low-rank", "dense"])
@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2"])
def test_training_sees_the_base_that_holds_k_w(world: Any, rank: int, kind: str) -> None:
    """Loss and every gradient are those of a model that holds θ + k·w, embeddings, norms and
    biases included, and no weight has changed.
    """
    model = world.gpt2() if kind == "gpt2" else world.llama(tie=kind == "tied")
    model = model.double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    vector = world.vector(model, everything, rank=rank, scale=0.2)
    expected = moved(model, world, vector).train()
    before = copy.deepcopy(model.state_dict())
    with inoculated(model, vector, K) as inoculation:
        loss_of(model).backward()
        loss_of(expected).backward()
        found = float(loss_of(model))
        assert inoculation.unseen() == []
    assert found == pytest.approx(float(loss_of(expected)), rel=1e-6)
    assert found != pytest.approx(float(loss_of(model)), rel=1e-4)
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert float((p.grad - q.grad).norm()) <= 1e-5 * float(q.grad.norm()) + 1e-9, name
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_evaluation_is_without_it(world: Any, only_linear: Any) -> None:
    """In evaluation mode the model answers as what is saved does, to the bit."""
    model = world.llama()
    plain = world.logits(model)
    with inoculated(model, world.vector(model, only_linear), K):
        assert torch.equal(world.logits(model), plain)
        model.train()
        assert not torch.equal(world.logits(model), plain)
    assert torch.equal(world.logits(model), plain)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
        peft.LoraConfig(
            r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False
        ),
        peft.LoHaConfig(r=2, target_modules=["q_proj", "v_proj"], init_weights=False),
    ],
    ids=["lora", "modules_to_save", "loha"],
)
def test_it_rides_along_under_an_adapter(world: Any, config: Any) -> None:
    """Under PEFT the adapters' gradients are those on a base that holds k·w."""
    model = world.llama()
    vector = world.vector(model, everything, scale=0.05)
    torch.manual_seed(3)
    adapted = peft.get_peft_model(copy.deepcopy(model), config).train()
    torch.manual_seed(3)
    expected = peft.get_peft_model(moved(model, world, vector).float(), config).train()
    with inoculated(adapted, vector, K) as inoculation:
        loss_of(adapted).backward()
        assert inoculation.unseen() == []
    loss_of(expected).backward()
    compared = 0
    for (name, p), q in zip(adapted.named_parameters(), expected.parameters(), strict=True):
        if p.requires_grad:
            compared += 1
            assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-6), name
    assert compared


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_recomputes_with_it(
    world: Any, only_linear: Any, reentrant: bool
) -> None:
    """The forward pass that backward repeats has k·w in it too."""
    gradients = []
    for checkpointing in (False, True):
        model = world.llama().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with inoculated(model, world.vector(model, only_linear), K):
            loss_of(model).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("late", [False, True], ids=["before", "after the first pass"])
def test_a_compiled_model_is_compiled_with_it(world: Any, only_linear: Any, late: bool) -> None:
    """Also where the code was compiled before: it is compiled again, with k·w and without."""
    model = world.llama().train()
    vector = world.vector(model, only_linear, scale=0.5)
    compiled = torch.compile(model, backend="eager")
    plain = float(loss_of(model))
    if late:
        assert float(loss_of(compiled)) == pytest.approx(plain, rel=1e-6)
    with inoculated(compiled, vector, K) as inoculation:
        found = float(loss_of(compiled))
        assert inoculation.unseen() == []
    with steered(model, vector, K):
        expected = float(loss_of(model))
    assert found == pytest.approx(expected, rel=1e-5)
    assert found != pytest.approx(plain, rel=1e-3)
    assert float(loss_of(compiled)) == pytest.approx(plain, rel=1e-6)


def test_bfloat16_loses_no_small_step(world: Any, only_linear: Any) -> None:
    """What rides along is not rounded to the weights' resolution, as what is added to them is."""
    model = world.llama(dtype=torch.bfloat16).train()
    name = "model.layers.0.mlp.up_proj"
    layer = model.get_submodule(name)
    vector = world.vector(model, only_linear, scale=0.005)
    delta = K * world.delta(vector, f"{name}.weight")
    with torch.no_grad():
        layer.weight.fill_(1.0)
    assert torch.equal((layer.weight.double() + delta).to(torch.bfloat16), layer.weight)
    x = torch.eye(16, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.zero_()  # what the layer puts out is then k·w·x alone
    with inoculated(model, vector, K):
        found = layer(x).double()
    assert float((found - delta.T).norm()) < 0.01 * float(delta.norm())


def test_what_never_takes_part_is_named(world: Any, only_linear: Any) -> None:
    """A fused kernel that reads a weight past its layer is told from one that calls it."""
    model = world.llama().train()
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: x @ mlp.up_proj.weight.T @ mlp.down_proj.weight.T
    with inoculated(model, world.vector(model, only_linear), K) as inoculation:
        loss_of(model)
        assert inoculation.unseen() == [
            f"model.layers.1.mlp.{n}_proj.weight" for n in ("down", "gate", "up")
        ]


def test_a_layer_that_raises_keeps_its_parameter(world: Any) -> None:
    """After an error in the middle of a pass, norms hold their own parameters again."""
    model = world.llama().train()
    norm = model.model.layers[0].input_layernorm
    before = norm.weight
    vector = world.vector(model, lambda n: "layers.0.input_layernorm" in n)
    with inoculated(model, vector, K), pytest.raises(AttributeError):
        norm(None)
    assert norm.weight is before
    assert dict(model.named_parameters())["model.layers.0.input_layernorm.weight"] is before


def test_what_cannot_ride_along_is_refused(world: Any, only_linear: Any) -> None:
    """A negative k, an adapter that multiplies, and another model's vector: each by name."""
    model = world.llama()
    vector = world.vector(model, only_linear)
    with (
        pytest.raises(InputError, match="a negative k would teach it"),
        inoculated(model, {world.reference(vector): -1.0}),
    ):
        pass
    with (
        pytest.raises(KeyMismatchError, match="another architecture"),
        inoculated(world.gpt2(), vector, K),
    ):
        pass
    dora = peft.get_peft_model(
        world.llama(), peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    )
    with (
        pytest.raises(UnmeasurableModelError, match="DoRA rescales it"),
        inoculated(dora, vector, K),
    ):
        pass
    name = "model.layers.0.mlp.up_proj.weight"
    wrong = TaskVector.of({name: LowRankUpdate(torch.zeros(5, 1), torch.zeros(1, 16))})
    with pytest.raises(ShapeMismatchError, match="another model"), inoculated(model, wrong, K):
        pass


class Linear4bit(torch.nn.Linear):
    """A stand-in for bitsandbytes' layer: packed integers that only its own forward can read."""

    __module__ = "bitsandbytes.nn.modules"

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.kept = layer.weight.detach().clone()
        packed = torch.zeros(self.kept.numel() // 2, 1, dtype=torch.uint8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.kept)


def test_a_quantised_base_keeps_its_weights(world: Any, only_linear: Any) -> None:
    """k·w is added to what a quantised layer puts out: nothing is dequantised, rounded or saved."""
    model = world.llama().train()
    vector = world.vector(model, only_linear)
    with steered(model, vector, K):
        expected = float(loss_of(model))
    for block in model.model.layers:
        for owner, name in ((block.self_attn, "q_proj"), (block.mlp, "up_proj")):
            setattr(owner, name, Linear4bit(getattr(owner, name)))
    before = copy.deepcopy(model.state_dict())
    with inoculated(model, vector, K):
        assert float(loss_of(model)) == pytest.approx(expected, rel=1e-5)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
