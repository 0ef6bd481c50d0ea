"""OFT, BOFT, HRA, IA3, LN tuning and FourierFT hold no factors of ΔW: it is merged − base."""

from pathlib import Path
from typing import Any

import peft
import pytest

from tests.sources import zoo
from wvmonitor.sources import LiveModel, read_adapter


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("OFT", {"oft_block_size": 8}),
        ("BOFT", {"boft_block_size": 4}),
        ("HRA", {"r": 4}),
        ("IA3", {"feedforward_modules": []}),
        ("LN_TUNING", {"target_modules": ["input_layernorm"]}),
        ("FOURIERFT", {"n_frequency": 16, "init_weights": True}),
    ],
)
def test_small_changes_of_merged_adapters_are_exact(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Even a change of one part in ten thousand keeps its direction."""
    model = zoo.build("llama")
    model.save_pretrained(tmp_path / "base")
    before = zoo.weights_of(model)
    made = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    config = made(**{"target_modules": ["q_proj"]} | options)
    adapted = peft.get_peft_model(model, config)
    live = LiveModel(adapted)
    zoo.shake(adapted, size=1e-4)
    adapted.save_pretrained(tmp_path / "adapter")
    oracle = zoo.change(zoo.merged(adapted), before)
    zoo.assert_equal_change(live.task_vector(), oracle)
    zoo.assert_equal_change(read_adapter(tmp_path / "adapter", tmp_path / "base"), oracle)
