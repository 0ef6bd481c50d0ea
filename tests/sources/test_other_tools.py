"""Adapters and checkpoints of other tools and times: read as what they change, or refused by name.

The oracle is PEFT's own merge in float64 where PEFT can load them, else the other tool's formula.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from tests.sources import zoo
from tests.sources.test_one_name import adapted, multimodal, rewritten
from wvmonitor.errors import (
    AdapterError,
    KeyMismatchError,
    QuantizedWeightsError,
    ShapeMismatchError,
    UnsupportedAdapterError,
)
from wvmonitor.files.checkpoint_files import open_checkpoint
from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.references import ReferenceBank
from wvmonitor.sources import base_digest, read_adapter, read_checkpoints

# For the table of docs/what-is-measured.md: kind, where it comes from, read or refused, the test.
MEASURED = [
    (
        "`experts.gate_up_projs.N` of gpt-oss",
        "Unsloth",
        "read with the base",
        "test_unsloth_s_experts_of_gpt_oss_are_the_fused_parameter_s",
    ),
    (
        "LoRA and DoRA of mlx-lm (`adapters.safetensors`)",
        "mlx-lm",
        "read; experts and full fine-tunes refused by name",
        "test_adapters_of_mlx_lm_are_what_it_fuses",
    ),
    (
        "LoRA on convolutions",
        "vision towers, multi-modal fine-tunes",
        "read with the base, as PEFT merges it",
        "test_lora_on_convolutions_is_what_peft_merges",
    ),
    (
        "`LayerNorm.gamma`, `LayerNorm.beta`",
        "BERT of TensorFlow's time",
        "read",
        "test_norms_of_old_berts_are_the_new_ones",
    ),
    (
        "plain weights under a configuration that says quantised",
        "QLoRA merged and saved",
        "read",
        "test_weights_that_are_only_configured_as_quantised_are_read",
    ),
    (
        "a full fine-tune of fused experts stored (in, out)",
        "gpt-oss",
        "read; one layout with its adapters",
        "test_fused_experts_have_one_layout_however_they_were_trained",
    ),
]
Bases = Callable[..., Path]


def gpt_oss() -> Any:
    """A tiny gpt-oss of three experts."""
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    model = transformers.GptOssForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name:  # transformers leaves them empty
                parameter.copy_(torch.randn(parameter.shape) * 0.05)
    return model


class ListedExperts(nn.Module):
    """The experts as Unsloth has them: a layer for each, of the fused parameters' matrices."""

    def __init__(self, fused: Any) -> None:
        super().__init__()
        self.gate_up_projs = nn.ModuleList(self._layers(fused.gate_up_proj))
        self.down_projs = nn.ModuleList(self._layers(fused.down_proj))

    @staticmethod
    def _layers(fused: Tensor) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for matrix in fused.detach():
            layer = nn.Linear(*matrix.shape, bias=False)
            layer.weight.data.copy_(matrix.mT)
            layers.append(layer)
        return layers


@pytest.mark.parametrize("every", [True, False])
def test_unsloth_s_experts_of_gpt_oss_are_the_fused_parameter_s(
    every: bool, tmp_path: Path
) -> None:
    """Adapters of single experts, all of them or some, against PEFT's merge of each layer."""
    model = gpt_oss()
    model.save_pretrained(tmp_path / "base")
    before = zoo.weights_of(model)
    listed = copy.deepcopy(model)
    for layer in listed.model.layers:
        layer.mlp.experts = ListedExperts(layer.mlp.experts)
    names = [n for n, m in listed.named_modules() if isinstance(m, nn.Linear) and "experts" in n]
    chosen = names if every else [n for n in names if n.endswith(("projs.0", "projs.2"))]
    config = peft.LoraConfig(target_modules=[*chosen, "q_proj"], r=2, rank_pattern={chosen[0]: 3})
    lora = peft.get_peft_model(listed, config)
    zoo.shake(lora)
    lora.save_pretrained(tmp_path / "adapter")
    after = zoo.merged(lora)
    oracle: zoo.Weights = {}
    for name, start in before.items():
        if name in after:
            oracle[name] = after[name] - start
            continue
        if name.endswith("_bias"):
            continue
        moved = torch.stack([after[f"{name}s.{n}.weight"].mT for n in range(3)])
        oracle[name] = moved - start
    zoo.assert_equal_change(read_adapter(tmp_path / "adapter", tmp_path / "base"), oracle)
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    saved["base_model_name_or_path"] = "unsloth/gpt-oss-20b"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(saved))
    with pytest.raises(AdapterError, match=r"one by one.*Unsloth.*--base"):
        read_adapter(tmp_path / "adapter")


def test_listed_experts_of_another_model_are_refused(bases: Bases, tmp_path: Path) -> None:
    """Keys that look like Unsloth's gpt-oss against a base that is none name both."""
    key = "base_model.model.model.layers.0.mlp.experts.gate_up_projs.0.lora_{}.weight"
    tensors = {key.format("A"): torch.ones(2, 32), key.format("B"): torch.ones(48, 2)}
    write_safetensors(tmp_path / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"gate_up_projs\.0.*is no gpt-oss"):
        read_adapter(tmp_path, bases("moe"))


def test_fused_experts_have_one_layout_however_they_were_trained(tmp_path: Path) -> None:
    """A full fine-tune, and LoRA by `target_parameters`, of gpt-oss are measured by one bank."""
    from wvmonitor.references import Reference
    from wvmonitor.testing import planted_bank

    model = gpt_oss()
    model.save_pretrained(tmp_path / "base")
    trained = copy.deepcopy(model)
    config = peft.LoraConfig(target_parameters=["mlp.experts.gate_up_proj"], r=2)
    lora = peft.get_peft_model(trained, config)
    zoo.shake(lora)
    lora.save_pretrained(tmp_path / "adapter")
    lora.merge_and_unload().save_pretrained(tmp_path / "merged")
    adapter = read_adapter(tmp_path / "adapter", tmp_path / "base")
    whole = read_checkpoints(tmp_path / "base", tmp_path / "merged")
    card = next(iter(planted_bank(tmp_path / "base"))).card
    bank = ReferenceBank([Reference(card, adapter)])
    for tau in (adapter, whole):
        reading = bank.measure(tau)
        values = reading.geometries["frobenius"]
        at = reading.parameters.index("model.layers.0.mlp.experts.gate_up_proj")
        norm = values.squared_norms[at]
        assert norm > 0
        assert values.products[at, 0] == pytest.approx(norm, rel=1e-3)
    assert base_digest(tmp_path / "base") == adapter.origin.base_digest


def mlx_folder(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """An adapter as mlx-lm saves it."""
    folder.mkdir()
    write_safetensors(folder / "adapters.safetensors", tensors)
    said = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 20.0}, **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_of_mlx_lm_are_what_it_fuses(kind: str, bases: Bases, tmp_path: Path) -> None:
    """ΔW = scale·(A·B)ᵀ, and DoRA's rows scaled to m, as mlx-lm's `fuse` computes them."""
    base = bases("llama")
    weights = zoo.weights_of(zoo.build("llama"))
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    oracle = {name: torch.zeros_like(value) for name, value in weights.items()}
    modules = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    for module in modules:
        weight = weights[f"{module}.weight"]
        a = torch.randn(weight.shape[1], 2, generator=generator)
        b = torch.randn(2, weight.shape[0], generator=generator) * 0.01
        tensors |= {f"{module}.lora_a": a, f"{module}.lora_b": b}
        moved = weight + 20.0 * (a.double() @ b.double()).mT
        if kind == "dora":
            m = weight.norm(dim=1) * (1 + 0.1 * torch.rand(weight.shape[0], generator=generator))
            tensors[f"{module}.m"] = m.float()
            moved = m.float().double()[:, None] * moved / moved.norm(dim=1, keepdim=True)
        oracle[f"{module}.weight"] = moved - weight
    if kind == "lora":
        a, b = (torch.randn(s, generator=generator) * 0.1 for s in ((64, 2), (2, 32)))
        tensors |= {"model.embed_tokens.lora_a": a, "model.embed_tokens.lora_b": b}
        oracle["model.embed_tokens.weight"] = 20.0 * a.double() @ b.double()
    folder = mlx_folder(tmp_path / "adapter", tensors, fine_tune_type=kind)
    tau = read_adapter(folder, base)
    zoo.assert_equal_change(tau, oracle)
    assert (tau.origin.method, tau.origin.rank) == (kind, 2)
    if kind == "lora":
        zoo.assert_equal_change(read_adapter(folder), oracle)
    else:
        with pytest.raises(AdapterError, match=r"DoRA adapter of mlx-lm.*--base"):
            read_adapter(folder)


MLX_SHAPES = {"lora_a": (32, 2), "lora_b": (2, 48)}
A, B = "model.layers.0.self_attn.q_proj.lora_a", "model.layers.0.self_attn.q_proj.lora_b"


@pytest.mark.parametrize(
    ("tensors", "config", "error", "says"),
    [
        ({A: (32, 2), B: (2, 32)}, {"fine_tune_type": "full"}, UnsupportedAdapterError, "full"),
        (
            {f"model.layers.0.mlp.switch_mlp.up_proj.{k}": (3, 2, 2) for k in ("lora_a", "lora_b")},
            {},
            UnsupportedAdapterError,
            "all experts",
        ),
        ({A: (32, 2)}, {}, AdapterError, "lora_a where a LoRA has"),
        ({A: (32, 2), B: (3, 32)}, {}, AdapterError, "no factors of one matrix"),
        ({A: (32, 2), B: (2, 32), "x.bias": (2,)}, {}, AdapterError, r"x\.bias"),
        ({A: (32, 2), B: (2, 32)}, {"lora_parameters": {}}, AdapterError, "scale must be"),
        (
            {A: (32, 2), B: (2, 32)},
            {"lora_parameters": {"rank": 2, "alpha": 4, "scale": 10.0}},
            AdapterError,
            "versions of mlx-lm differ",
        ),
        ({A: (16, 2), B: (2, 32)}, {}, ShapeMismatchError, "q_proj"),
        (
            {f"model.layers.9.mlp.up_proj.{k}": s for k, s in MLX_SHAPES.items()},
            {},
            KeyMismatchError,
            "layers.9",
        ),
    ],
)  # fmt: skip
def test_what_of_mlx_lm_is_not_read_is_refused_by_name(
    tensors: dict[str, tuple[int, ...]],
    config: dict[str, Any],
    error: type[Exception],
    says: str,
    bases: Bases,
    tmp_path: Path,
) -> None:
    """Experts, full fine-tunes, and tensors that do not fit: an error with the key in it."""
    made = {name: torch.ones(shape) for name, shape in tensors.items()}
    with pytest.raises(error, match=says):
        read_adapter(mlx_folder(tmp_path / "adapter", made, **config), bases("llama"))


@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "alpha_pattern": {"q_proj": 2}}])
def test_lora_on_convolutions_is_what_peft_merges(options: dict[str, Any], tmp_path: Path) -> None:
    """A convolution's factors have its kernel's dimensions; PEFT says what they change."""
    model = multimodal("llava")
    model.save_pretrained(tmp_path / "base")
    targets = ["patch_embedding", "q_proj"]
    oracle = adapted(model, tmp_path / "adapter", targets, **options)
    tau = read_adapter(tmp_path / "adapter", tmp_path / "base")
    assert any("patch_embedding" in name for name in tau.names())
    zoo.assert_equal_change(tau, oracle)
    assert tau.origin.method == "lora"


def test_norms_of_old_berts_are_the_new_ones(tmp_path: Path) -> None:
    """A checkpoint with gamma and beta is what transformers loads it as."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = transformers.BertForMaskedLM(config)
    model.save_pretrained(tmp_path / "base")
    zoo.shake(model, size=1e-2)
    model.save_pretrained(tmp_path / "end")
    new = {"weight": "gamma", "bias": "beta"}

    def old(name: str) -> str:
        module, _, leaf = name.rpartition(".")
        return f"{module}.{new[leaf]}" if module.endswith("LayerNorm") else name

    rewritten(tmp_path / "end", old, stem="model")
    with open_checkpoint(tmp_path / "end") as files:
        assert any(name.endswith("gamma") for name in files.names())
    loaded = {
        side: zoo.weights_of(transformers.BertForMaskedLM.from_pretrained(tmp_path / side))
        for side in ("base", "end")
    }
    tau = read_checkpoints(tmp_path / "base", tmp_path / "end")
    zoo.assert_equal_change(tau, zoo.change(loaded["end"], loaded["base"]))


@pytest.mark.parametrize("method", ["bitsandbytes", "mxfp4", "gptq"])
def test_weights_that_are_only_configured_as_quantised_are_read(
    method: str, bases: Bases, tmp_path: Path
) -> None:
    """A merge into the dequantised base often keeps quantization_config: the tensors decide."""
    model = zoo.build("llama").to(torch.bfloat16)
    before = {n: w.double() for n, w in zoo.weights_of(zoo.build("llama")).items()}
    zoo.shake(model, size=1e-2)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tau = read_checkpoints(bases("llama"), tmp_path)
    zoo.assert_equal_change(tau, zoo.change(zoo.weights_of(model), before))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.0.mlp.up_proj.weight", torch.ones(48, 32, dtype=torch.int8)),
        ("model.layers.0.mlp.up_proj.weight_scale", torch.ones(48)),
        ("model.layers.0.mlp.up_proj.qweight", torch.ones(4, 48, dtype=torch.int32)),
        ("model.layers.0.mlp.up_proj.W_q", torch.ones(4, 48)),
    ],
)
def test_what_is_really_quantised_is_refused_all_the_same(
    name: str, tensor: Tensor, bases: Bases, tmp_path: Path
) -> None:
    """One packed tensor, or a scale beside one, and the folder is quantised."""
    model = zoo.build("llama")
    model.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as files:
        tensors = {n: files.read(n) for n in files.names()}
    tensors[name] = tensor
    write_safetensors(tmp_path / "model.safetensors", tensors)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "any"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(QuantizedWeightsError, match="quantised"):
        read_checkpoints(bases("llama"), tmp_path)


@pytest.mark.parametrize("side", ["adapter", "checkpoint", "shape"])
def test_a_refusal_never_advises_what_was_done(side: str, bases: Bases, tmp_path: Path) -> None:
    """With the base at hand, an error names it and what does not fit; it asks for no base."""
    if side == "checkpoint":
        zoo.build("llama").save_pretrained(tmp_path)
        reading = partial(read_checkpoints, bases("gpt2"), tmp_path)
    else:
        adapted(zoo.build("llama"), tmp_path, ["q_proj"])
        other = bases("gpt2") if side == "adapter" else bases("llama", hidden_size=16)
        reading = partial(read_adapter, tmp_path, other)
    with pytest.raises((KeyMismatchError, ShapeMismatchError)) as caught:
        reading()
    said = str(caught.value)
    assert "give the base" not in said
    assert "--base" not in said
    assert "check that" in said
