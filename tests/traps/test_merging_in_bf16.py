"""Merging in bfloat16 before subtracting loses the direction of a small change."""

import copy
from pathlib import Path

import peft
import torch

from tests.sources import zoo
from wvmonitor.sources import read_adapter


def test_factors_are_read_and_never_merged_in_low_precision(tmp_path: Path) -> None:
    """A change far below bfloat16's resolution keeps its direction, which a merge there loses."""
    model = zoo.build("llama").to(torch.bfloat16)
    before = zoo.weights_of(model)
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "up_proj"], r=4))
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1e-5)
    lora.save_pretrained(tmp_path)
    oracle = zoo.change(zoo.merged(lora), before)
    zoo.assert_equal_change(read_adapter(tmp_path), oracle)
    naive = zoo.change(zoo.weights_of(copy.deepcopy(lora).merge_and_unload()), before)
    flat = torch.cat([value.reshape(-1) for value in naive.values()])
    truth = torch.cat([value.reshape(-1) for value in oracle.values()])
    assert float(flat @ truth / (flat.norm() * truth.norm())) < 0.9
