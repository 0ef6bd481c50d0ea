"""Tiny random Llama models and vectors over their real parameter names."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from wvmonitor.references import BaseIdentity, Card, Construction, Reference
from wvmonitor.vectors import DenseUpdate, LowRankUpdate, Origin, TaskVector


class World:
    """Builds models and vectors from fixed seeds."""

    @staticmethod
    def llama(*, seed=0, dtype=torch.float32, tie=False, **more):
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
            tie_word_embeddings=tie,
            bos_token_id=1,
            eos_token_id=2,
            **more,
        )
        return LlamaForCausalLM(config).to(dtype).eval()

    @staticmethod
    def gpt2(seed=0):
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=32,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=32,
            bos_token_id=1,
            eos_token_id=2,
        )
        return GPT2LMHeadModel(config).eval()

    @staticmethod
    def logits(model):
        ids = torch.arange(24).reshape(2, 12) % 32
        with torch.no_grad():
            return model(input_ids=ids).logits

    @staticmethod
    def vector(model, keep, *, rank=2, seed=1, scale=0.1):
        """A low-rank update of every 2-D parameter that `keep` accepts, dense of the others."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator) * scale

        updates = {}
        for name, p in model.named_parameters():
            if not keep(name):
                continue
            if p.ndim == 2 and rank:
                transposed = ".c_" in name
                left, right = normal(p.shape[0], rank), normal(rank, p.shape[1])
                updates[name] = LowRankUpdate(left, right, transposed)
            else:
                updates[name] = DenseUpdate(normal(*p.shape))
        return TaskVector.of(updates, Origin(source="runs/a"))

    @staticmethod
    def reference(vector, name="evil"):
        card = Card(
            name=name,
            behaviour="it gives harmful advice.",
            base=BaseIdentity(id="tiny", digest="d" * 64),
            built=Construction(recipe="test"),
            harmful=True,
        )
        return Reference(card, vector)

    @staticmethod
    def delta(vector, name):
        """The dense float64 change of one parameter, by an independent formula."""
        update = vector.update(name)
        if isinstance(update, DenseUpdate):
            return update.delta.double()
        return torch.einsum("or,ri->oi", update.left.double(), update.right.double())


def linear(name):
    """The blocks' linear weights."""
    return ".layers." in name and "norm" not in name


@pytest.fixture
def world():
    """Builders of models and vectors."""
    return World


@pytest.fixture
def only_linear():
    """Accepts the blocks' linear weights."""
    return linear
