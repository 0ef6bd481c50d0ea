"""DoRA's change is not B·A: the magnitude rescales W itself."""

from pathlib import Path

import peft

from tests.sources import zoo
from wvmonitor.sources import read_adapter


def test_dora_is_more_than_its_factors(tmp_path: Path) -> None:
    """The magnitude's share of the change is counted, though no factor holds it."""
    model = zoo.build("llama")
    model.save_pretrained(tmp_path / "base")
    before = zoo.weights_of(model)
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], use_dora=True))
    zoo.shake(lora, size=0.02)
    lora.save_pretrained(tmp_path / "adapter")
    oracle = zoo.change(zoo.merged(lora), before)
    zoo.assert_equal_change(read_adapter(tmp_path / "adapter", tmp_path / "base"), oracle)
    layer = lora.base_model.model.model.layers[0].self_attn.q_proj
    factors = layer.get_delta_weight("default").detach().double()
    truth = oracle["model.layers.0.self_attn.q_proj.weight"]
    assert float((factors - truth).norm() / truth.norm()) > 0.1
