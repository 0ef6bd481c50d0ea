"""A key on one side, an integer buffer, quantised weights: named, never intersected."""

from pathlib import Path

import pytest
import torch

from tests.sources import zoo
from wvmonitor.errors import KeyMismatchError, QuantizedWeightsError
from wvmonitor.files.safetensors import SafetensorsFile, write_safetensors
from wvmonitor.sources import read_checkpoints


@pytest.mark.parametrize(
    ("name", "tensor", "error"),
    [
        ("model.layers.9.mlp.up_proj.weight", torch.ones(4, 4), KeyMismatchError),
        ("model.buckets", torch.arange(4), KeyMismatchError),
        ("model.layers.0.mlp.up_proj.weight.absmax", torch.ones(4), QuantizedWeightsError),
    ],
)
def test_what_only_one_side_has_is_named(
    name: str, tensor: torch.Tensor, error: type[Exception], tmp_path: Path
) -> None:
    """Two checkpoints that do not hold the same tensors have no difference."""
    zoo.build("llama").save_pretrained(tmp_path / "base")
    zoo.build("llama").save_pretrained(tmp_path / "end")
    with SafetensorsFile(tmp_path / "end" / "model.safetensors") as file:
        tensors = {key: file.read(key) for key in file.tensors}
    write_safetensors(tmp_path / "end" / "model.safetensors", {**tensors, name: tensor})
    with pytest.raises(error, match=name):
        read_checkpoints(tmp_path / "base", tmp_path / "end")
