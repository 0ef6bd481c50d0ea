"""transformers follows `../` in an index, and links out of the folder."""

import json
from pathlib import Path

import pytest

from tests.sources import zoo
from wvmonitor.errors import UnsafeFileError
from wvmonitor.sources import read_checkpoints


@pytest.mark.parametrize("name", ["../outside.safetensors", "linked.safetensors"])
def test_a_checkpoint_is_read_from_its_own_folder(name: str, tmp_path: Path) -> None:
    """Neither an index nor a link makes a checkpoint of files that lie somewhere else."""
    model = zoo.build("llama")
    model.save_pretrained(tmp_path / "base")
    end = tmp_path / "end"
    model.save_pretrained(end)
    outside = tmp_path / "outside.safetensors"
    (end / "model.safetensors").rename(outside)
    (end / "linked.safetensors").symlink_to(outside)
    weight_map = dict.fromkeys(model.state_dict(), name)
    index = {"metadata": {}, "weight_map": weight_map}
    (end / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafeFileError):
        read_checkpoints(tmp_path / "base", end)
