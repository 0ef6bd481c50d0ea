"""LoRA on embeddings: keys `lora_embedding_A/B` without `.weight`, easily passed over."""

from pathlib import Path

import peft

from tests.sources import zoo
from wvmonitor.sources import read_adapter


def test_an_adapted_embedding_counts(tmp_path: Path) -> None:
    """The change of an adapted embedding is in the vector, in the embedding's own shape."""
    model = zoo.build("llama")
    before = zoo.weights_of(model)
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["embed_tokens"], r=4))
    zoo.shake(lora)
    lora.save_pretrained(tmp_path)
    tau = read_adapter(tmp_path)
    zoo.assert_equal_change(tau, zoo.change(zoo.merged(lora), before))
    assert tau.shape("model.embed_tokens.weight") == (64, 32)
