"""Where there are no safetensors, what is there instead is named and never opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wvmonitor.errors import InputError, MissingPathError, UnsafeFileError
from wvmonitor.files.checkpoint_files import open_checkpoint

PICKLES = [
    "pytorch_model.bin",
    "pytorch_model-00001-of-00002.bin",
    "adapter_model.bin",
    "model.pt",
    "model.PTH",
    "last.ckpt",
    "weights.pkl",
    ".metadata",
    "__0_0.distcp",
]


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("stem", ["model", "adapter_model"])
def test_pickles_are_named_and_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stem: str
) -> None:
    """Pickled weights are refused unopened, named, with the way to convert them."""
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (tmp_path / "optimizer.pt").write_bytes(b"")
    opened: list[object] = []
    monkeypatch.setattr(os, "open", lambda *args, **_: opened.append(args))
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UnsafeFileError, match=r"pickle.*convert.*save_pretrained") as caught:
            open_checkpoint(path, stem=stem)
        assert name in str(caught.value)
    assert opened == []


def test_a_folder_without_weights_is_missing_them(tmp_path: Path) -> None:
    """An empty folder, one with only a trainer's own files, and no folder at all are missing."""
    (tmp_path / "optimizer.pt").write_bytes(b"")
    (tmp_path / "training_args.bin").write_bytes(b"")
    for path in (tmp_path, tmp_path / "nope", tmp_path / "nope.safetensors", "a\0b"):
        with pytest.raises(MissingPathError):
            open_checkpoint(path)
    with pytest.raises(InputError, match="too long"):
        open_checkpoint(tmp_path / ("x" * 300))
