"""PiSSA, OLoRA and `init_lora_weights=False` start at B·A ≠ 0: that is no change."""

from pathlib import Path
from typing import Any

import peft
import pytest

from tests.sources import zoo
from wvmonitor.errors import AdapterError
from wvmonitor.sources import LiveModel, read_adapter


@pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_2", False, None])
def test_an_untrained_adapter_has_changed_nothing(start: Any, tmp_path: Path) -> None:
    """Before the first step τ is zero, however large the factors are."""
    model = zoo.build("llama")
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=start)
    lora = peft.get_peft_model(model, config)
    live = LiveModel(lora)
    lora.save_pretrained(tmp_path / "adapter")
    layer = lora.base_model.model.model.layers[0].self_attn.q_proj
    size = float(layer.get_delta_weight("default").norm())
    assert live.task_vector().norm() <= 1e-6 * size
    if start in ("pissa", "olora"):
        assert read_adapter(tmp_path / "adapter", tmp_path / "base").norm() <= 1e-5 * size
    else:
        with pytest.raises(AdapterError, match="initial"):
            read_adapter(tmp_path / "adapter", tmp_path / "base")
