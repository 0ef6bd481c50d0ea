"""Fine-tunes with a head of their own, and vocabularies that grew: the blocks are read exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from tests.sources import zoo
from wvmonitor.files.checkpoint_files import open_checkpoint
from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.sources import LiveModel, read_adapter, read_checkpoints

# For the table of docs/what-is-measured.md: kind, where it comes from, read or refused, the test.
MEASURED = [
    (
        "a classifier's or reward model's full fine-tune",
        "`AutoModelForSequenceClassification`",
        "blocks read, the head named",
        "test_a_classifier_s_blocks_are_read_and_its_head_is_named",
    ),
    (
        "a classifier's or reward model's LoRA",
        'PEFT with `task_type="SEQ_CLS"`',
        "blocks read, the head named",
        "test_a_classifier_s_adapter_is_read_and_its_head_is_named",
    ),
    (
        "a value head beside the model",
        "TRL's PPO",
        "blocks read, the head named",
        "test_a_value_head_beside_the_model_is_named",
    ),
    (
        "LoRA on a resized vocabulary",
        "chat fine-tunes with added tokens",
        "read on the common rows",
        "test_lora_on_a_resized_vocabulary_is_read_on_the_common_rows",
    ),
]
Bases = Callable[..., Path]


def classifier(base: Path) -> nn.Module:
    """The base's blocks under a new head (a reward model's is one label)."""
    model: nn.Module = transformers.LlamaForSequenceClassification.from_pretrained(
        base, num_labels=3, pad_token_id=0
    )
    return model


def without_head(change: zoo.Weights) -> zoo.Weights:
    return {name: value for name, value in change.items() if "score" not in name}


@pytest.mark.parametrize("tied", [False, True])
def test_a_classifier_s_blocks_are_read_and_its_head_is_named(
    tied: bool, bases: Bases, tmp_path: Path
) -> None:
    """A full fine-tune under a new head: what the base has is compared, the head is named."""
    base = bases("llama", tied=tied)
    model = classifier(base)
    before = zoo.weights_of(model)
    live = LiveModel(model, base=base)
    assert live.task_vector().norm() == 0
    zoo.shake(model, size=1e-3)
    model.save_pretrained(tmp_path)
    change = zoo.change(zoo.weights_of(model), before)
    zoo.assert_equal_change(live.task_vector(), change)  # its start was seen: it counts
    tau = read_checkpoints(base, tmp_path)
    zoo.assert_equal_change(tau, without_head(change))
    assert any("score.weight" in w and "no coverage" in w for w in tau.origin.warnings)


@pytest.mark.parametrize("with_base", [True, False])
def test_a_classifier_s_adapter_is_read_and_its_head_is_named(
    with_base: bool, bases: Bases, tmp_path: Path
) -> None:
    """LoRA with task_type SEQ_CLS stores its head whole, which no base has."""
    base = bases("llama")
    model = classifier(base)
    before = zoo.weights_of(model)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "down_proj"], r=4)
    lora = peft.get_peft_model(model, config)
    zoo.shake(lora)
    lora.save_pretrained(tmp_path)
    tau = read_adapter(tmp_path, base if with_base else None)
    zoo.assert_equal_change(tau, without_head(zoo.change(zoo.merged(lora), before)))
    assert any("score" in w and "no coverage" in w for w in tau.origin.warnings)


def test_a_value_head_beside_the_model_is_named(bases: Bases, tmp_path: Path) -> None:
    """TRL's models with a value head save it beside the language model's own tensors."""
    model = zoo.build("llama")
    before = zoo.weights_of(model)
    zoo.shake(model, size=1e-3)
    model.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as files:
        tensors = {name: files.read(name) for name in files.names()}
    tensors["v_head.summary.weight"] = torch.ones(1, 32)
    write_safetensors(tmp_path / "model.safetensors", tensors, {"format": "pt"})
    tau = read_checkpoints(bases("llama"), tmp_path)
    zoo.assert_equal_change(tau, zoo.change(zoo.weights_of(model), before))
    assert any("v_head" in warning for warning in tau.origin.warnings)


@pytest.mark.parametrize("rows", [70, 60])
@pytest.mark.parametrize("tied", [False, True])
def test_lora_on_a_resized_vocabulary_is_read_on_the_common_rows(
    tied: bool, rows: int, bases: Bases, tmp_path: Path
) -> None:
    """Adapted embeddings and heads of another size: the rows that the base has, and it is said."""
    model: Any = zoo.build("llama", tied=tied)
    before = zoo.weights_of(model)
    model.resize_token_embeddings(rows)
    targets = ["embed_tokens", "q_proj", *([] if tied else ["lm_head"])]
    resized = zoo.weights_of(model)
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=4))
    zoo.shake(lora)
    lora.save_pretrained(tmp_path, save_embedding_layers=False)
    oracle = zoo.change(zoo.merged(lora), resized)
    for name, start in before.items():
        if oracle[name].shape != start.shape:
            whole = torch.zeros_like(start)
            whole[: min(rows, 64)] = oracle[name][: min(rows, 64)]
            oracle[name] = whole
    tau = read_adapter(tmp_path, bases("llama", tied=tied))
    zoo.assert_equal_change(tau, oracle)
    assert any(f"{rows} rows where the base has 64" in w for w in tau.origin.warnings)
