"""Where there are no safetensors, what is there instead is named and never opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from wvmonitor.errors import InputError, MalformedFileError, MissingPathError, UnsafeFileError
from wvmonitor.files.checkpoint_files import open_checkpoint
from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.files.weight_names import neighbours, weights_below

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


@pytest.mark.parametrize("stem", ["model", "adapter_model"])
def test_a_git_lfs_pointer_is_called_that(tmp_path: Path, stem: str) -> None:
    """A clone without `git lfs pull` holds pointers: the message says so, and what to do."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9\n"
    (tmp_path / f"{stem}.safetensors").write_text(pointer)
    with pytest.raises(MalformedFileError, match=r"Git LFS pointer.*git lfs pull"):
        open_checkpoint(tmp_path, stem=stem)


def test_weights_in_folders_below_are_pointed_to(tmp_path: Path) -> None:
    """A folder of several adapters, or with its adapter in a subfolder, is not just 'empty'."""
    for name in ("second", "default"):
        (tmp_path / name).mkdir()
        write_safetensors(tmp_path / name / "adapter_model.safetensors", {"a": torch.ones(1)})
    with pytest.raises(MissingPathError, match=r"default, second'\): give one of them"):
        open_checkpoint(tmp_path, stem="adapter_model")


def test_neighbours_of_what_was_read_are_found() -> None:
    """Weights beside the judged ones are listed; what a trainer keeps to resume is not."""
    entries = (
        *("adapter_model.safetensors", "new_embeddings.safetensors", "other.safetensors"),
        *("non_lora_trainables.bin", "optimizer.pt", "rng_state_0.pth", "training_args.bin"),
        *("model.GGUF", "config.json", "random_states_0.pkl", "mp_rank_00_model_states.pt"),
    )
    assert neighbours(entries, "adapter_model") == [
        "model.GGUF",
        "new_embeddings.safetensors",
        "non_lora_trainables.bin",
        "other.safetensors",
    ]
    shards = ("model.safetensors.index.json", "model-00001-of-00002.safetensors")
    assert neighbours(shards, "model") == []
    assert neighbours(shards, "adapter_model") == [shards[1]]


def test_folders_below_that_hold_weights_are_found(tmp_path: Path) -> None:
    """Three levels down, hidden folders, links and a trainer's own state left out."""
    held = ("a/model.gguf", "b/c/adapter_model.safetensors", "d/e/f/pytorch_model.bin")
    for name in (*held, "d/e/f/g/model.safetensors", ".cache/model.safetensors", "s/optimizer.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert weights_below(tmp_path) == ["a", "b/c", "d/e/f"]


@pytest.mark.parametrize(
    ("entry", "says"),
    [("zero_to_fp32.py", "zero_to_fp32"), ("pytorch_model_fsdp_0", "merge-weights")],
)
def test_an_engine_s_own_state_is_told_from_weights(tmp_path: Path, entry: str, says: str) -> None:
    """A checkpoint of DeepSpeed's or FSDP's shards alone says what makes weights of it."""
    (tmp_path / entry).mkdir()
    (tmp_path / entry / ".metadata").touch()
    with pytest.raises(MissingPathError, match=f"engine's own state.*{says}"):
        open_checkpoint(tmp_path)
