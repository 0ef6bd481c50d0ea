"""The shapes of real models' linear layers, without the models."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """The layers of a model that LoRA adapts, and the tables around them.

    Attributes:
        name: whose shapes these are.
        hidden: width of the residual stream.
        kv: outputs of the key and value maps.
        mlp: width of the MLP (of each expert).
        layers: transformer blocks.
        vocabulary: rows of the embeddings.
        experts: experts a layer; 0 for a plain MLP.
        heads: outputs of the query map, where they are not `hidden`.
    """

    name: str
    hidden: int
    kv: int
    mlp: int
    layers: int
    vocabulary: int
    experts: int = 0
    heads: int | None = None

    def linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear layer of the blocks, by parameter name."""
        query = self.heads or self.hidden
        block = {
            "self_attn.q_proj": (query, self.hidden),
            "self_attn.k_proj": (self.kv, self.hidden),
            "self_attn.v_proj": (self.kv, self.hidden),
            "self_attn.o_proj": (self.hidden, query),
        }
        mlps = [f"mlp.experts.{i}" for i in range(self.experts)] or ["mlp"]
        for mlp in mlps:
            block[f"{mlp}.gate_proj"] = (self.mlp, self.hidden)
            block[f"{mlp}.up_proj"] = (self.mlp, self.hidden)
            block[f"{mlp}.down_proj"] = (self.hidden, self.mlp)
        return {
            f"model.layers.{layer}.{name}.weight": shape
            for layer in range(self.layers)
            for name, shape in block.items()
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a dense checkpoint with tied embeddings (biases left out)."""
        found: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden)
        }
        found.update(self.linears())
        for layer in range(self.layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                found[f"model.layers.{layer}.{norm}.weight"] = (self.hidden,)
        found["model.norm.weight"] = (self.hidden,)
        return found

    def lora_parameters(self, rank: int) -> int:
        """Parameters of a LoRA of this rank on every linear layer."""
        return rank * sum(o + i for o, i in self.linears().values())

    def parameters(self) -> int:
        """Parameters of a dense checkpoint."""
        return sum(math.prod(s) for s in self.tensors().values())

    def part(self, part: int) -> Shape:
        """The same model with 1/part of its blocks, at least one."""
        return self.with_layers(max(1, self.layers // part))

    def with_layers(self, layers: int) -> Shape:
        """The same model with another number of blocks."""
        return replace(self, layers=layers)


SMOLLM2 = Shape("SmolLM2-135M", 576, 192, 1536, 30, 49_152)
QWEN_05B = Shape("Qwen2.5-0.5B", 896, 128, 4864, 24, 151_936)
QWEN_7B = Shape("Qwen2.5-7B", 3584, 512, 18_944, 28, 152_064)
# 48 layers of 4 + 3·128 maps: 18,624 modules, and 76 more than these would make 18,700
QWEN_30B_MOE = Shape("Qwen3-30B-A3B", 2048, 512, 768, 48, 151_936, experts=128, heads=4096)
TINY = Shape("tiny", 64, 16, 128, 2, 256)
