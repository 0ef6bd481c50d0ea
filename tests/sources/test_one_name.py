"""A parameter has one name for files, adapters and live models, whoever saved or wraps it.

The oracle is PEFT's own loading: what an adapter with older names changes once PEFT has loaded it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from tests.sources import zoo
from wvmonitor.errors import UnmeasurableModelError
from wvmonitor.files.checkpoint_files import open_checkpoint
from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.sources import LiveModel, base_digest, read_adapter, read_checkpoints, read_model
from wvmonitor.sources.names import parameter_name
from wvmonitor.testing import planted_bank
from wvmonitor.vectors import DenseUpdate, TaskVector

# For the table of docs/what-is-measured.md: kind, where it comes from, read or refused, the test.
MEASURED = [
    (
        "`language_model.model.layers.…` (LLaVA, Gemma3, PaliGemma)",
        "adapters of transformers before 4.52",
        "read",
        "test_adapters_from_before_transformers_4_52_are_read",
    ),
    (
        "the language model alone against a multi-modal folder (Qwen3.5, Gemma3, LLaVA)",
        "`AutoModelForCausalLM`, adapters and full fine-tunes",
        "read; one digest",
        "test_the_language_model_alone_is_the_multimodal_one",
    ),
    (
        "names without the model's prefix",
        "`AutoModel`: embedding models",
        "read",
        "test_adapters_of_headless_models_are_read",
    ),
    (
        "`module.`, `_orig_mod.`, `_fsdp_wrapped_module.` in files",
        "DDP, torch.compile, FSDP, activation checkpointing",
        "read",
        "test_wrappers_in_files_are_looked_through",
    ),
    (
        "PEFT's prefix twice",
        "a PEFT model inside a PEFT model",
        "read",
        "test_a_peft_model_inside_a_peft_model_is_read",
    ),
    (
        "LoRA of single experts (Mixtral, Qwen3-MoE)",
        "transformers 4",
        "read with the base",
        "test_adapters_of_single_experts_are_read_as_peft_loads_them",
    ),
    (
        "an `nn.Module` around the model, live",
        "own training loops, value heads",
        "read; the module's own head is named",
        "test_a_model_inside_a_module_is_found",
    ),
    (
        "a module that holds several models, live",
        "actor and critic",
        "refused: which one is asked",
        "test_two_models_in_one_module_are_an_error",
    ),
]
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
TARGETS = r".*language_model.*(q_proj|down_proj)"


def multimodal(kind: str) -> nn.Module:
    """A tiny model with a vision tower beside its language model."""
    torch.manual_seed(0)
    if kind == "llava":
        config: Any = transformers.LlavaConfig(
            text_config={"model_type": "llama", **TEXT},
            vision_config={"model_type": "clip_vision_model", **VISION},
            image_token_index=63,
        )
        return transformers.LlavaForConditionalGeneration(config)
    if kind == "gemma3":
        config = transformers.Gemma3Config(
            text_config={**TEXT, "sliding_window": 8},
            vision_config={"model_type": "siglip_vision_model", **VISION},
            mm_tokens_per_image=4,
        )
        return transformers.Gemma3ForConditionalGeneration(config)
    config = transformers.Qwen3_5Config(
        text_config={
            **TEXT,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "depth": 2,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 32,
        },
    )
    return transformers.Qwen3_5ForConditionalGeneration(config)


def rewritten(folder: Path, name_of: Callable[[str], str], stem: str = "adapter_model") -> Path:
    """The same tensors under other names."""
    with open_checkpoint(folder, stem=stem) as files:
        tensors = {name_of(name): files.read(name) for name in files.names()}
    write_safetensors(folder / f"{stem}.safetensors", tensors, {"format": "pt"})
    return folder


def canonical(change: zoo.Weights) -> zoo.Weights:
    """A dense oracle by the names that all readers share."""
    return {parameter_name(name): value for name, value in change.items()}


def adapted(model: nn.Module, folder: Path, targets: Any, **options: Any) -> zoo.Weights:
    """Saves a moved adapter of a model; what it changes, by PEFT's merge in float64."""
    before = zoo.weights_of(model)
    config = peft.LoraConfig(target_modules=targets, r=4, **options)
    lora = peft.get_peft_model(copy.deepcopy(model), config)
    zoo.shake(lora)
    lora.save_pretrained(folder)
    return canonical(zoo.change(zoo.merged(lora), before))


def loaded(model: nn.Module, folder: Path) -> zoo.Weights:
    """What an adapter changes once PEFT itself has loaded it."""
    lora = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(folder))
    return canonical(zoo.change(zoo.merged(lora), zoo.weights_of(model)))


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
@pytest.mark.parametrize("with_base", [True, False])
def test_adapters_from_before_transformers_4_52_are_read(
    kind: str, with_base: bool, tmp_path: Path
) -> None:
    """`language_model.model.layers.` is what `model.language_model.layers.` was called."""
    model = multimodal(kind)
    model.save_pretrained(tmp_path / "base")
    oracle = adapted(model, tmp_path / "adapter", TARGETS)
    rewritten(
        tmp_path / "adapter",
        lambda n: n.replace("model.language_model.layers", "language_model.model.layers"),
    )
    zoo.assert_equal_change(loaded_or_read(tmp_path, with_base), oracle)
    assert canonical_equal(loaded(model, tmp_path / "adapter"), oracle)


def loaded_or_read(folder: Path, with_base: bool) -> Any:
    """Reads the adapter, with its base or by itself."""
    return read_adapter(folder / "adapter", folder / "base" if with_base else None)


def canonical_equal(one: zoo.Weights, other: zoo.Weights) -> bool:
    """Whether two oracles agree to float64's rounding."""
    return all(torch.allclose(one[n], other[n], atol=1e-6) for n in other)


@pytest.mark.parametrize("kind", ["llava", "gemma3", "qwen3.5"])
def test_the_language_model_alone_is_the_multimodal_one(kind: str, tmp_path: Path) -> None:
    """Text class, multi-modal folder and live model have one digest and one set of names."""
    whole = multimodal(kind)
    whole.save_pretrained(tmp_path / "base")
    text = transformers.AutoModelForCausalLM.from_config(whole.config.get_text_config())
    inner = {parameter_name(n): p for n, p in whole.named_parameters()}
    with torch.no_grad():
        for name, parameter in text.named_parameters():
            parameter.copy_(inner[parameter_name(name)])
    digest = base_digest(tmp_path / "base")
    assert base_digest(text) == base_digest(whole) == digest
    oracle = adapted(text, tmp_path / "adapter", ["q_proj", "down_proj"])
    zoo.assert_equal_change(read_adapter(tmp_path / "adapter", tmp_path / "base"), oracle)
    before = zoo.weights_of(text)
    zoo.shake(text, size=1e-3)
    text.save_pretrained(tmp_path / "end")
    change = canonical(zoo.change(zoo.weights_of(text), before))
    tau = read_checkpoints(tmp_path / "base", tmp_path / "end")
    zoo.assert_equal_change(tau, change)
    assert any("in the base only" in warning for warning in tau.origin.warnings)
    zoo.assert_equal_change(read_model(text, base=tmp_path / "base"), change)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("with_base", [True, False])
def test_adapters_of_headless_models_are_read(
    kind: str, with_base: bool, bases: Callable[..., Path], tmp_path: Path
) -> None:
    """An embedding model's adapter (`AutoModel`) names what a causal folder has under a prefix."""
    causal = transformers.AutoModelForCausalLM.from_pretrained(bases(kind))
    targets = ["q_proj", "down_proj"] if kind == "llama" else ["c_attn"]
    fan = {"fan_in_fan_out": True} if kind == "gpt2" else {}
    oracle = adapted(causal.base_model, tmp_path, targets, **fan)
    tau = read_adapter(tmp_path, bases(kind) if with_base else None)
    zoo.assert_equal_change(tau, oracle)
    names = {parameter_name(n) for n, _ in causal.named_parameters()}
    assert set(tau.names()) <= names
    lora = peft.get_peft_model(causal.base_model, peft.LoraConfig(target_modules=targets, **fan))
    live = LiveModel(lora)
    assert set(live.task_vector().names()) <= names
    assert live.base_digest == base_digest(bases(kind))


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda n: f"module.{n}",
        lambda n: f"_orig_mod.{n}",
        lambda n: n.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
        lambda n: n.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
        lambda n: f"module._orig_mod.{n}",
    ],
)
def test_wrappers_in_files_are_looked_through(
    wrapped: Callable[[str], str], bases: Callable[..., Path], tmp_path: Path
) -> None:
    """What DDP, torch.compile, FSDP and checkpointing leave in names is in no task vector's."""
    model = zoo.build("llama")
    oracle = adapted(model, tmp_path / "adapter", ["q_proj"])
    rewritten(tmp_path / "adapter", wrapped)
    zoo.assert_equal_change(read_adapter(tmp_path / "adapter", bases("llama")), oracle)
    before = zoo.weights_of(model)
    zoo.shake(model, size=1e-3)
    model.save_pretrained(tmp_path / "end")
    rewritten(tmp_path / "end", wrapped, stem="model")
    tau = read_checkpoints(bases("llama"), tmp_path / "end")
    zoo.assert_equal_change(tau, zoo.change(zoo.weights_of(model), before))


def test_a_peft_model_inside_a_peft_model_is_read(
    bases: Callable[..., Path], tmp_path: Path
) -> None:
    """Keys that were given PEFT's prefix twice name what they name."""
    oracle = adapted(zoo.build("llama"), tmp_path, ["q_proj"])
    rewritten(tmp_path, lambda n: f"base_model.model.{n}")
    zoo.assert_equal_change(read_adapter(tmp_path, bases("llama")), oracle)
    zoo.assert_equal_change(read_adapter(tmp_path), oracle)


def per_expert(kind: str) -> tuple[nn.Module, dict[str, Any], tuple[str, ...]]:
    """A model whose experts transformers 5 fuses, and what transformers 4 called them."""
    if kind == "qwen3":
        return zoo.build("moe"), {}, ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**TEXT, num_local_experts=3, num_experts_per_tok=2)
    return (
        transformers.MixtralForCausalLM(config),
        {},
        ("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3"),
    )


@pytest.mark.parametrize("kind", ["qwen3", "mixtral"])
def test_adapters_of_single_experts_are_read_as_peft_loads_them(kind: str, tmp_path: Path) -> None:
    """What transformers 4 adapted expert by expert is the fused parameters' change."""
    model, _, halves = per_expert(kind)
    model.save_pretrained(tmp_path / "base")
    down = halves[0].replace("gate_proj", "down_proj").replace("w1", "w2")
    experts = model.model.layers[0].mlp.experts
    _, width, size = experts.gate_up_proj.shape
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for layer in range(2):
        for expert in range(3):
            for module in (*halves, down):
                outputs, inputs = (size, width // 2) if module == down else (width // 2, size)
                path = f"base_model.model.model.layers.{layer}.{module.format(expert)}"
                a = torch.randn(2, inputs, generator=generator)
                b = torch.randn(outputs, 2, generator=generator) * 0.05
                tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = a, b
    (tmp_path / "adapter").mkdir()
    write_safetensors(tmp_path / "adapter" / "adapter_model.safetensors", tensors)
    leaves = sorted({m.rsplit(".", 1)[1] for m in (*halves, down)})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": leaves}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    tau = read_adapter(tmp_path / "adapter", tmp_path / "base")
    zoo.assert_equal_change(tau, loaded(model, tmp_path / "adapter"))
    # without a base nothing is fused, and no expert is left out either
    assert len(read_adapter(tmp_path / "adapter")) == len(tensors) // 2


class Wrapper(nn.Module):
    """What people put around a model: a head of their own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.value = nn.Linear(32, 1)


@pytest.mark.parametrize("lora", [True, False])
def test_a_model_inside_a_module_is_found(
    lora: bool, bases: Callable[..., Path], tmp_path: Path
) -> None:
    """An nn.Module around the model, or around a PEFT model, changes no name; its head is named."""
    model: Any = zoo.build("llama")
    before = zoo.weights_of(model)
    if lora:
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    live = LiveModel(Wrapper(model), base=bases("llama"))
    zoo.shake(model, size=1e-2)
    after = zoo.merged(model) if lora else zoo.weights_of(model)
    tau = live.task_vector()
    zoo.assert_equal_change(tau, zoo.change(after, before))
    assert any("value.weight" in warning for warning in tau.origin.warnings)
    assert live.base_digest == base_digest(bases("llama"))


def test_what_no_reference_touches_is_named(bases: Callable[..., Path]) -> None:
    """A vector of another architecture's names is compared with nothing, which the reading says."""
    bank = planted_bank(bases("llama"))
    change = DenseUpdate(torch.ones(4, 4))
    tau = TaskVector.of({"transformer.h.0.attn.c_attn.weight": change})
    (said,) = [w for w in bank.measure(tau).warnings if "compared" in w]
    assert "transformer.h.0.attn.c_attn.weight" in said
    assert "model.layers.0." in said


def test_two_models_in_one_module_are_an_error() -> None:
    """Which of several models is watched is asked, not guessed."""
    both = nn.ModuleDict({"policy": zoo.build("llama"), "critic": zoo.build("llama")})
    with pytest.raises(UnmeasurableModelError, match=r"several models.*policy"):
        LiveModel(both)
