"""Tiny random models of three architectures, trained adapters on them, and the dense oracle."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import wvmonitor.vectors.update as updates
from wvmonitor.vectors import TaskVector

Weights = dict[str, Tensor]


def build(kind: str, *, tied: bool = False, seed: int = 0, **extra: Any) -> nn.Module:
    """A random model: "llama", "gpt2" (Conv1D, tied) or "moe" (fused experts)."""
    import transformers

    torch.manual_seed(seed)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4, **extra
        )
        return transformers.GPT2LMHeadModel(config)
    common = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
        **extra,
    }
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**common))
    config = transformers.Qwen3MoeConfig(
        **common, moe_intermediate_size=24, num_experts=3, num_experts_per_tok=2, head_dim=8
    )
    return transformers.Qwen3MoeForCausalLM(config)


def weights_of(model: nn.Module) -> Weights:
    """Every parameter in float64, tied ones once."""
    return {n: p.detach().to(torch.float64, copy=True) for n, p in model.named_parameters()}


def shake(model: nn.Module, size: float = 0.05, seed: int = 1) -> None:
    """Move every trainable parameter, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * size
                parameter.add_(noise.to(parameter.dtype))


def merged(peft_model: nn.Module) -> Weights:
    """The weights of a PEFT model merged in float64: what τ plus the start must be."""
    double = copy.deepcopy(peft_model).to(torch.float64).eval()
    return weights_of(double.merge_and_unload())


def change(after: Weights, before: Weights) -> Weights:
    """The dense oracle: the difference of every parameter."""
    assert after.keys() == before.keys()
    return {name: after[name] - before[name] for name in after}


def assert_equal_change(
    tau: TaskVector, oracle: Mapping[str, Tensor], error: float = 1e-5, cosine: float = 1e-6
) -> None:
    """τ is the oracle's change: nothing missing, nothing more."""
    got = {name: updates.to_dense(u).to(torch.float64) for name, u in tau.updates()}
    strange = set(got) - set(oracle)
    assert not strange, strange
    zeros = {name: torch.zeros_like(value) for name, value in oracle.items()}
    full = zeros | got
    flat = torch.cat([full[name].reshape(-1) for name in oracle])
    truth = torch.cat([value.reshape(-1) for value in oracle.values()])
    assert float(truth.norm()) > 0, "the oracle did not move"
    assert float((flat - truth).norm() / truth.norm()) <= error
    assert float(flat @ truth / (flat.norm() * truth.norm())) >= 1 - cosine
