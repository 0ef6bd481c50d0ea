"""rsLoRA's scale is α/√r, and rank_pattern and alpha_pattern give modules their own."""

from pathlib import Path

import peft

from tests.sources import zoo
from wvmonitor.sources import read_adapter


def test_each_module_has_its_own_scale(tmp_path: Path) -> None:
    """A module's update is scaled as PEFT scales it, not by one α/r for all."""
    config = peft.LoraConfig(
        target_modules=["q_proj", "k_proj"],
        r=4,
        use_rslora=True,
        rank_pattern={"k_proj": 2},
        alpha_pattern={"layers.1.self_attn.q_proj": 24},
    )
    model = zoo.build("llama")
    before = zoo.weights_of(model)
    lora = peft.get_peft_model(model, config)
    zoo.shake(lora)
    lora.save_pretrained(tmp_path)
    zoo.assert_equal_change(read_adapter(tmp_path), zoo.change(zoo.merged(lora), before))
    layers = lora.base_model.model.model.layers
    assert layers[0].self_attn.q_proj.scaling["default"] == 8 / 2
    assert layers[0].self_attn.k_proj.scaling["default"] == 8 / 2**0.5
    assert layers[1].self_attn.q_proj.scaling["default"] == 24 / 2
