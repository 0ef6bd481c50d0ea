"""transformers 5 fuses experts: live names and shapes are not the files'."""

from pathlib import Path

import pytest

from tests.sources import zoo
from wvmonitor.errors import ShapeMismatchError
from wvmonitor.files.checkpoint_files import open_checkpoint
from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.sources import LiveModel, base_digest, read_checkpoints


def test_experts_are_fused_as_the_live_model_has_them(tmp_path: Path) -> None:
    """Files of single experts and the live model's 3-D parameters give one vector, one identity."""
    pytest.importorskip("transformers.conversion_mapping", reason="transformers 4 fuses none")
    model = zoo.build("moe")
    model.save_pretrained(tmp_path / "base")
    before = zoo.weights_of(model)
    zoo.shake(model, size=1e-3)
    model.save_pretrained(tmp_path / "end")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    with open_checkpoint(tmp_path / "end") as files:
        assert name not in files.names()
    oracle = zoo.change(zoo.weights_of(model), before)
    tau = read_checkpoints(tmp_path / "base", tmp_path / "end")
    assert tau.shape(name) == (3, 48, 32)
    zoo.assert_equal_change(tau, oracle)
    zoo.assert_equal_change(LiveModel(model, tmp_path / "base").task_vector(), oracle)
    assert base_digest(zoo.build("moe")) == base_digest(tmp_path / "base")


def test_experts_with_a_part_missing_are_refused(tmp_path: Path) -> None:
    """A file that lacks one matrix of one expert is named as such, whatever transformers says."""
    pytest.importorskip("transformers.conversion_mapping", reason="transformers 4 fuses none")
    model = zoo.build("moe")
    model.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "end")
    with open_checkpoint(tmp_path / "base") as files:
        kept = {
            n: files.read(n) for n in files.names() if not n.endswith("experts.1.gate_proj.weight")
        }
    write_safetensors(tmp_path / "end" / "model.safetensors", kept)
    tau = read_checkpoints(tmp_path / "base", tmp_path / "end")
    with pytest.raises(ShapeMismatchError, match=r"parts of .*gate_up_proj.*do not fit together"):
        tau.norm()
