"""`torch.compile` puts `_orig_mod.` into names, and every lookup by name fails."""

import torch

from tests.sources import zoo
from wvmonitor.sources import LiveModel


def test_compiled_models_keep_their_names() -> None:
    """A compiled model's parameters are called what the model calls them."""
    model = zoo.build("llama")
    assert LiveModel(torch.compile(model)).task_vector().names() == list(zoo.weights_of(model))
