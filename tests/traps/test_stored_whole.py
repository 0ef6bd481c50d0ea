"""`modules_to_save`, biases and `trainable_token_indices` store weights, not changes."""

from pathlib import Path
from typing import Any

import peft
import pytest

from tests.sources import zoo
from wvmonitor.sources import read_adapter


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"bias": "lora_only"},
        {"trainable_token_indices": {"embed_tokens": [7, 2]}},
    ],
)
def test_what_is_stored_whole_counts_as_a_difference(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Weights stored whole are neither dropped nor taken for changes."""
    model = zoo.build("llama", attention_bias=True)
    model.save_pretrained(tmp_path / "base")
    before = zoo.weights_of(model)
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], **options))
    zoo.shake(lora)
    lora.save_pretrained(tmp_path / "adapter")
    tau = read_adapter(tmp_path / "adapter", tmp_path / "base")
    zoo.assert_equal_change(tau, zoo.change(zoo.merged(lora), before))
    whole = tau.select(lambda name: "q_proj.weight" not in name)
    assert 0 < whole.norm() < 10
