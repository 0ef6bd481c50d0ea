"""A truncated safetensors file is a SIGBUS under mmap, and duplicate keys are accepted."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch

from wvmonitor.errors import InputError, MalformedFileError
from wvmonitor.files.safetensors import SafetensorsFile, write_safetensors


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    """Cut before or after it was opened, a file is an error and never a crash."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"w": torch.ones(1 << 16)})
    with SafetensorsFile(path) as file:
        os.truncate(path, path.stat().st_size - 8192)
        with pytest.raises(InputError, match=r"model\.safetensors"):
            file.read("w")
    with pytest.raises(MalformedFileError, match=r"model\.safetensors"):
        SafetensorsFile(path)


def test_a_name_that_comes_twice_is_an_error(tmp_path: Path) -> None:
    """Of two tensors of one name none is chosen."""
    entry = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
    header = f'{{"w":{entry},"w":{entry}}}'.encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(MalformedFileError, match="'w' twice"):
        SafetensorsFile(path)
