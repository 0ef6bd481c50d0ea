"""A small weight file, shared by the tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wvmonitor.files.safetensors import write_safetensors


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file with a (6, 4) float32 `w`, a scalar and a boolean mask."""
    path = tmp_path / "model.safetensors"
    write_safetensors(
        path,
        {
            "w": torch.arange(24.0).reshape(6, 4),
            "scalar": torch.tensor(2.5),
            "mask": torch.tensor([True, False]),
        },
        {"step": "7"},
    )
    return path
