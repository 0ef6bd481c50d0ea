"""Which part of a model a parameter is, over the real names of tiny random models."""

import pytest
import torch

from wvmonitor.reading import component_of, group_of, layer_of, module_of

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
GROUPED = {**SIZES, "num_key_value_heads": 1}
MODELS = {
    "LlamaForCausalLM": GROUPED,
    "LlamaForSequenceClassification": GROUPED,
    "GPT2LMHeadModel": {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "GPTNeoXForCausalLM": SIZES,
    "MixtralForCausalLM": {**GROUPED, "num_local_experts": 2},
    "Qwen3MoeForCausalLM": {**GROUPED, "num_experts": 2, "moe_intermediate_size": 8},
    "OPTForCausalLM": {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "word_embed_proj_dim": 8,
    },
    "BertForMaskedLM": SIZES,
    "BertForSequenceClassification": SIZES,
    "T5ForConditionalGeneration": {
        "vocab_size": 64,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
    },
    "Gemma3ForCausalLM": {**GROUPED, "head_dim": 8},
    "PhiForCausalLM": SIZES,
    "GptOssForCausalLM": {**GROUPED, "num_local_experts": 2, "head_dim": 8},
}


def model_of(kind):
    import transformers

    made = getattr(transformers, kind)
    with torch.device("meta"):
        return made(made.config_class(**MODELS[kind]))


@pytest.mark.parametrize("kind", MODELS)
def test_components_follow_the_modules(kind):
    """Every parameter of the common architectures is told by its module's own class."""
    model = model_of(kind)
    output = model.get_output_embeddings()
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        found = component_of(name, parameter.shape)
        if "norm" in type(owner).__name__.lower():
            expected = "norms"
        elif isinstance(owner, torch.nn.Embedding):
            expected = "embeddings"
        elif owner is output or name.startswith(("lm_head", "score", "classifier", "cls.")):
            expected = "head"
        elif name.endswith("bias") or parameter.ndim < 2:
            expected = "other"
        elif layer_of(name) is not None:
            expected = "blocks"
        else:
            expected = "other"
        assert found == expected, name


@pytest.mark.parametrize("kind", MODELS)
def test_every_block_is_numbered_and_alike(kind):
    """Two blocks hold the same kinds of module under layer 0 and 1; nothing else has a layer."""
    parameters = dict(model_of(kind).named_parameters())
    layers = [
        {module_of(n) for n in parameters if layer_of(n) == i and "relative" not in n}
        for i in range(2)
    ]
    assert layers[0] == layers[1]
    assert layers[0]
    assert {layer_of(n) for n in parameters} == {None, 0, 1}


def test_biases_and_fused_experts_are_told_apart():
    """A fused expert weight is a block's linear weight, its stacked bias is not."""
    assert component_of("model.layers.3.mlp.experts.gate_up_proj", (4, 64, 16)) == "blocks"
    assert component_of("model.layers.3.mlp.experts.gate_up_proj_bias", (4, 64)) == "other"
    assert component_of("h.0.attn.c_attn.weight", (16, 48)) == "blocks"
    assert layer_of("model.layers.31.mlp.up_proj.weight") == 31


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
    assert group_of(name) == layer
    assert module_of(name) == module
