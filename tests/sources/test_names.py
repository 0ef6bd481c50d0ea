"""Names and layout of parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from wvmonitor.sources.names import (
    _CONV1D_MODELS,
    _CONV1D_MODULES,
    is_conv1d,
    is_transposed,
    step_of,
    unwrapped,
)


def test_wrappers_leave_no_trace_in_names() -> None:
    """torch.compile, activation checkpointing, FSDP and PEFT do not change a parameter's name."""
    name = "_orig_mod.model._fsdp_wrapped_module.layers.0._checkpoint_wrapped_module.q.base_layer"
    assert unwrapped(f"{name}.weight") == "model.layers.0.q.weight"
    assert unwrapped("model.layers.0.q.weight") == "model.layers.0.q.weight"


@pytest.mark.parametrize("kind", sorted(_CONV1D_MODELS))
def test_the_conv1d_table_is_what_transformers_builds(kind: str) -> None:
    """The models and modules known to store (inputs, outputs) are those of transformers."""
    import transformers
    from transformers.pytorch_utils import Conv1D

    sizes = {"n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 5, "n_positions": 4}
    config = transformers.AutoConfig.for_model(kind, **sizes, hidden_size=8)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    found = {path for path, module in model.named_modules() if isinstance(module, Conv1D)}
    assert found
    assert {path.rpartition(".")[2] for path in found} <= _CONV1D_MODULES
    named = {n for n, p in model.named_parameters() if is_conv1d(n, kind)}
    assert named == {f"{path}.weight" for path in found}


def test_no_other_causal_language_model_of_transformers_has_conv1d() -> None:
    """No causal language model that stores (inputs, outputs) is missing from the table."""
    import transformers

    root = Path(transformers.__file__).parent / "models"
    users = {
        path.parent.name
        for path in root.glob("*/modeling_*.py")
        if "Conv1D(" in path.read_text() and "ForCausalLM" in path.read_text()
    }
    users |= {
        path.parent.name
        for path in root.glob("*/modeling_*.py")
        if "Conv1D(" in path.read_text() and "LMHeadModel" in path.read_text()
    }
    assert users - {"openai"} <= _CONV1D_MODELS | {"clvp"}


def test_layout_is_told_by_kind() -> None:
    """Embeddings and Conv1D map rows to columns; everything else maps columns to rows."""
    assert is_transposed("model.embed_tokens.weight", (64, 8), conv1d=False)
    assert is_transposed("transformer.h.0.attn.c_attn.weight", (8, 24), conv1d=True)
    assert not is_transposed("lm_head.weight", (64, 8), conv1d=False)
    assert not is_transposed("model.layers.0.mlp.experts.down_proj", (3, 8, 4), conv1d=False)


def test_the_step_is_the_trainers(tmp_path: Path) -> None:
    """The step comes from the trainer's state, or else from the folder's name, or is not known."""
    folder = tmp_path / "checkpoint-40"
    folder.mkdir()
    assert step_of(folder) == 40
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 41}))
    assert step_of(folder) == 41
    assert step_of(tmp_path) is None
