"""Pure-bfloat16 full fine-tuning loses updates as it makes them."""

import torch

from tests.sources import zoo
from wvmonitor.sources import LiveModel


def test_bf16_without_masters_is_said() -> None:
    """A run whose trained weights are bfloat16 carries the warning in every vector."""
    live = LiveModel(zoo.build("llama").to(torch.bfloat16))
    assert any("float32 masters" in text for text in live.task_vector().origin.warnings)
    assert not LiveModel(zoo.build("llama")).task_vector().origin.warnings
